"""How fast this machine decodes images and computes with a backbone: counted, or timed briefly.

`counted` builds nothing and takes no time worth mentioning; it is right within a factor of three.
`timed` runs the architecture with random weights on a few images of the catalogue, for a few
seconds: neither weights nor hub are needed.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import cache
from statistics import median

import numpy as np
import torch

from retailtag.backbones import components_of
from retailtag.backbones.backbone import Backbone
from retailtag.backbones.cost import Cost, cost_of_all
from retailtag.backbones.factory import load_backbone
from retailtag.context import RunContext
from retailtag.errors import UnreadableImage
from retailtag.finetuning.head import HeadInit
from retailtag.finetuning.network import Network
from retailtag.images.decode import decode_pixels
from retailtag.settings import FinetuneSettings

NETWORK_SHARE = 0.3  # of the rate of a large matrix product that a network reaches
DECODE_SECONDS = 0.002  # per image of shop size on one core
LOAD_SECONDS = 2.0  # to build a model and load its weights
CALL_SECONDS = 0.005  # of a forward pass apart from its operations
TRAINED_SHARE = 0.5  # of the operations of a forward pass that lie in the last blocks
MEASURE_SECONDS = 0.2  # of matrix products behind `matrix_rate`
DECODED_IMAGES = 16  # images of the catalogue that are decoded, for a second at most
BATCH = 32  # images of a timed forward pass at most
PASS_SECONDS = 0.4  # that a timed pass may take, unless one of two images takes longer
TIMED_SECONDS = 1.0  # of passes of one kind, of which there are at least three

Clock = Callable[[], float]  # seconds


@dataclass(frozen=True)
class Speed:
    """Seconds per image of one backbone, and to load it; blocks are those of the fine-tune."""

    load: float  # to load the model, once
    decode: float  # read, decode and resize, on one core
    forward: float  # the whole model, in batches, by eager float32
    single: float  # the whole model, one image alone
    frozen: float = 0.0  # the blocks that are not trained; 0 where all are
    trained: float = 0.0  # the other blocks and the head
    step: float = 0.0  # forward and backward pass of these
    activation_values: int = 0  # that enter the first trained block; 0 where they are not cached

    def __add__(self, other: Speed) -> Speed:
        """Speed of two backbones side by side, on images that are decoded for each."""
        return Speed(*map(operator.add, astuple(self), astuple(other)))


# A single backbone, and whether it is fine-tuned, to its speed
Measure = Callable[[str, bool], Speed]


def matrix_rate(device: str, clock: Clock = time.perf_counter) -> float:
    """Operations per second of a 1,024 x 1,024 float32 product on `device`, measured briefly."""
    a = torch.ones(1024, 1024, device=device)
    (a @ a).sum().item()
    begun, fastest = clock(), math.inf
    while clock() - begun < MEASURE_SECONDS:
        start = clock()
        (a @ a).sum().item()  # waits for the device
        fastest = min(fastest, clock() - start)
    # An n x n product is n^3 multiply-adds, each two operations.
    return 2 * 1024**3 / fastest


@cache
def model_cost(backbone: str) -> Cost:
    """Operations and size of a backbone; the components of ``A+B`` together."""
    return cost_of_all(components_of(backbone))


def counted(backbone: str, rate: float) -> Speed:
    """Speed by counted operations on a machine whose matrix products reach `rate`."""
    cost = model_cost(backbone)
    forward = cost.flops / (NETWORK_SHARE * rate)
    trained = TRAINED_SHARE * forward
    # The backward pass costs twice the forward pass. What enters the last blocks is about as
    # large as the embedding at 7 x 7 places.
    return Speed(
        load=LOAD_SECONDS,
        decode=DECODE_SECONDS,
        forward=forward,
        single=forward + CALL_SECONDS,
        frozen=forward - trained,
        trained=trained,
        step=3 * trained,
        activation_values=49 * cost.dim,
    )


def timed(
    context: RunContext,
    settings: FinetuneSettings,
    backbone: str,
    finetuned: bool,
    clock: Clock = time.perf_counter,
) -> Speed:
    """Speed of one backbone with random weights on some images of the catalogue.

    The trained blocks are run only if it is `finetuned`.
    """
    model_cost(backbone)  # imports the libraries, whose time is not that of the model
    start = clock()
    model = load_backbone(backbone, device=context.device, random_weights=True)
    load = clock() - start
    decode = decode_seconds(context, model, clock)
    pixels = torch.randint(0, 256, (BATCH, 3, *model.preprocess.size), dtype=torch.uint8)
    pixels = pixels[: _batch(lambda: model.embed(pixels[:2]), model, clock)]
    speed = Speed(
        load=load,
        decode=decode,
        forward=_seconds(lambda: model.embed(pixels), model, clock) / len(pixels),
        single=_seconds(lambda: model.embed(pixels[:1]), model, clock),
    )
    if not finetuned:
        return speed
    head = np.zeros((len(context.catalog.table.tags), model.dim), np.float32)
    start_head = HeadInit(head[0], head[0] + 1, head, head[:, 0])
    return _with_training(speed, Network(model, start_head, settings), pixels, clock)


def _with_training(speed: Speed, network: Network, pixels: torch.Tensor, clock: Clock) -> Speed:
    """The speed with that of the frozen and the trained part of a network."""
    model, n = network.backbone, len(pixels)
    activations = network.activations(pixels)

    def step() -> None:
        torch.nn.functional.softplus(network.logits(activations)).mean().backward()

    network.train()
    step_seconds = _seconds(step, model, clock)
    network.eval()
    with torch.no_grad():
        trained = _seconds(lambda: network.logits(activations), model, clock)
    speed = replace(speed, step=step_seconds / n, trained=trained / n)
    if network.frozen_part is None:
        return speed
    frozen = _seconds(lambda: network.activations(pixels), model, clock)
    values = math.prod(activations.shape[1:])
    return replace(speed, frozen=frozen / n, activation_values=values)


def decode_seconds(context: RunContext, model: Backbone, clock: Clock) -> float:
    """Median time to read, decode and resize an image of the catalogue, on one core."""
    rows = np.linspace(0, len(context.catalog) - 1, DECODED_IMAGES).round().astype(int)
    taken: list[float] = []
    for row in np.unique(rows).tolist():
        start = clock()
        try:
            pixels = decode_pixels(context.catalog.images.read(row), **context.limits)
            model.preprocess.of_pixels(pixels)
        except (UnreadableImage, OSError):
            continue
        taken.append(clock() - start)
        if sum(taken) > TIMED_SECONDS:
            break
    # The first decodes load libraries; of one image alone that is all there is.
    return median(taken) if taken else DECODE_SECONDS


def _batch(work: Callable[[], object], model: Backbone, clock: Clock) -> int:
    """Images of a pass of about `PASS_SECONDS`, from a pass of two."""
    work()
    start = clock()
    work()
    _wait(model)
    each = max(clock() - start, 1e-9) / 2
    return int(min(max(PASS_SECONDS / each, 2), BATCH))


def _seconds(work: Callable[[], object], model: Backbone, clock: Clock) -> float:
    """Time of the fastest pass after the first: what other programs take is not the model's."""
    work()
    _wait(model)
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < TIMED_SECONDS:
        start = clock()
        work()
        _wait(model)
        taken.append(clock() - start)
        if sum(taken) > 3 * TIMED_SECONDS:
            break
    return min(taken)


def _wait(model: Backbone) -> None:
    """Until the device has computed what was asked of it."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
