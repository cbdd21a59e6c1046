"""Load a backbone by its id, whichever library it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retailtag.backbones.ids import BackboneId, resolve_id
from retailtag.backbones.imported import refuse_imported
from retailtag.backbones.registry import FAMILIES, load_function
from retailtag.errors import DataError, UsageError
from retailtag.progress import SILENT, Progress

if TYPE_CHECKING:
    from torch import nn

    from retailtag.backbones.backbone import Backbone, LoadedModel
    from retailtag.backbones.hub import Published
    from retailtag.backbones.preprocess import Preprocess

RANDOM_SEED = 0
# What the libraries raise on values of a configuration that they do not check.
_CONFIG_ERRORS = (
    TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError,
    RuntimeError,
)  # fmt: skip


def load_backbone(
    backbone_id: str,
    *,
    weights: Path | None = None,
    device: str = "cpu",
    random_weights: bool = False,
    seed: int = RANDOM_SEED,
    progress: Progress = SILENT,
) -> Backbone:
    """Load a pretrained image model by its id; see `retailtag.backbones.ids.resolve_id`.

    `weights` is a local file (safetensors, or a torch file of tensors) or folder (whose
    ``config.json`` or ``open_clip_config.json`` is followed) instead of the published weights;
    ``?branch=NAME`` behind it chooses one of several sets of weights in a checkpoint. `progress` is
    told what was stripped or converted to read it.

    `device` is ``cpu``, ``cuda`` or ``cuda:N``. With `random_weights` the weights are untrained and
    equal in every process, for tests, timing and training from scratch. The backbone is in
    evaluation mode; its id names timm's default tag if it named none and the published weights were
    loaded.

    Raises `UsageError` if the id or the path is wrong or several sets of weights fit, `DataError`
    if the weights do not fit the architecture, are damaged, or would have to run code, and
    `Unavailable` if the weights, or files or packages of the text tower, are missing and cannot be
    downloaded.
    """
    from retailtag.backbones.backbone import Backbone

    if weights is not None and random_weights:
        raise UsageError("Random weights and --weights exclude each other; drop one.")
    model = build_model(resolve_id(backbone_id), weights, random_weights=random_weights, seed=seed)
    if model.note:
        progress.say(model.note)
    with _following_config(weights):
        return Backbone(model, device)


def build_model(
    backbone_id: BackboneId,
    weights: Path | None = None,
    *,
    random_weights: bool = False,
    seed: int = RANDOM_SEED,
) -> LoadedModel:
    """Build a model and load its weights, on the CPU or the current default device.

    The caller's random state is left as it was.
    """
    import torch

    build = load_function(FAMILIES[backbone_id.scheme].build)
    with torch.random.fork_rng(devices=[]), _following_config(weights):
        torch.default_generator.manual_seed(seed)
        model: LoadedModel = build(backbone_id, weights, random_weights=random_weights)
    return model


def rebuild(
    backbone_id: BackboneId,
    architecture: Mapping[str, Any],
    preprocess: Preprocess,
    output: str,
    load: Callable[[nn.Module], None],
) -> LoadedModel:
    """Build a model that was described as data, and fill it with weights by ``load(module)``.

    Nothing is read or asked but what is given. `architecture`, `preprocess` and `output` are those
    of a `LoadedModel` or `Backbone`.

    Raises
    ------
    UsageError
        If the libraries here do not build that architecture.
    """
    import torch

    from retailtag.backbones.backbone import LoadedModel

    refuse_imported(backbone_id)
    build = load_function(FAMILIES[backbone_id.scheme].tower)
    try:
        with torch.random.fork_rng(devices=[]):
            module, layout = build(backbone_id, dict(architecture.get("args", {})), preprocess)
    except _CONFIG_ERRORS as error:
        raise UsageError(
            f"{architecture.get('library')} builds no {backbone_id} here ({error})."
        ) from error
    load(module)
    return LoadedModel(backbone_id, module, layout, preprocess, dict(architecture), output)


def licence(backbone_id: BackboneId) -> str:
    """Licence of the published weights of an id, and who states it; empty if nobody does."""
    target = FAMILIES[backbone_id.scheme].licence
    return str(load_function(target)(backbone_id)) if target else ""


@contextmanager
def _following_config(weights: Path | None) -> Iterator[None]:
    """Blame what fails on the configuration beside the weights, if there is one.

    Without a folder all values are the library's own or those of the id.
    """
    import torch

    from retailtag.backbones.weights import split_branch

    folder, _ = split_branch(weights)
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _CONFIG_ERRORS as error:
        if folder is None or not folder.is_dir():
            raise
        raise DataError(
            f"The configuration beside the weights in {folder} cannot be followed ({error}); "
            "use the files published with them."
        ) from error


def published(backbone_id: BackboneId) -> Published | None:
    """Where the weights of an id are published; None if retailtag packages them."""
    target = FAMILIES[backbone_id.scheme].published
    return load_function(target)(backbone_id) if target else None
