"""What the settings of a fine-tune mean to the training, and which cannot be followed."""

from __future__ import annotations

from retailtag.finetuning.augment import Augment
from retailtag.finetuning.losses import parse_loss
from retailtag.finetuning.mixing import parse_mix
from retailtag.finetuning.sampling import parse_sampler
from retailtag.settings import FinetuneSettings


def check_finetune_settings(settings: FinetuneSettings) -> None:
    """Raise `UsageError` for a loss, sampler, mix or augmentation that cannot be followed."""
    parse_loss(settings.loss)
    parse_sampler(settings.sampler)
    parse_mix(settings.mix)
    Augment.parse(settings.augment)


def repeats_pixels(settings: FinetuneSettings) -> bool:
    """Whether the frozen blocks see the same pixels in every epoch, so that caching them pays.

    Mixed images do not count: mixing activations is another training than mixing pixels.
    """
    trains_some = isinstance(settings.blocks, int) and settings.blocks > 0
    cacheable = Augment.parse(settings.augment).cacheable
    return trains_some and settings.mix == "none" and cacheable
