"""The kernels of a model, counted one by one: operations, values moved, outputs.

Models are built on the meta device and run under a dispatch mode that sees every operator that
would start a kernel, those of the backward pass too. Nothing is allocated and nothing computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from retailtag.backbones.backbone import LoadedModel, last_blocks
from retailtag.backbones.factory import build_model
from retailtag.backbones.ids import components_of, resolve_id

OTHER, CONVOLUTION, PRODUCT = range(3)
# Operators that allocate or rename memory and start no kernel; views say so themselves.
_NO_KERNEL = ("detach", "alias", "_unsafe_view", "empty", "empty_like", "lift_fresh")
TrainedBlocks = int | Literal["all"]
# AdamW reads and writes weights and two moments, and reads gradients.
ADAMW_VALUES = 7
ADAMW_KERNELS = 12  # of the multi-tensor implementation, which takes many tensors at once


@dataclass(frozen=True, eq=False)
class Kernels:
    """What each kernel of a pass does; arrays (n_kernels,)."""

    kind: NDArray[np.int8]  # OTHER, CONVOLUTION or PRODUCT
    operations: NDArray[np.float64]  # a multiply-add counts as two; 0 for OTHER
    values: NDArray[np.float64]  # numbers read and written
    outputs: NDArray[np.float64]  # numbers written

    def __len__(self) -> int:
        return len(self.kind)

    def __add__(self, other: Kernels) -> Kernels:
        names = ("kind", "operations", "values", "outputs")
        return Kernels(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in names))


@dataclass(eq=False)
class _Counter(TorchDispatchMode):
    """Collects the kernels of what runs inside."""

    rows: list[tuple[int, float, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if not func.is_view and packet.__name__ not in _NO_KERNEL:
            written = _n_values(out)
            moved = written + _n_values((args, kwargs))
            counted = flop_registry.get(packet)
            operations = counted(*args, **(kwargs or {}), out_val=out) if counted else 0
            kind = _kind(packet.__name__, args) if operations else OTHER
            self.rows.append((kind, operations if kind else 0, moved, written))
        return out

    @property
    def kernels(self) -> Kernels:
        """What was counted."""
        columns = np.array(self.rows, np.float64).reshape(-1, 4).T
        return Kernels(columns[0].astype(np.int8), *columns[1:])


def _n_values(tree: Any) -> int:
    return sum(leaf.numel() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _kind(name: str, args: Any) -> int:
    if "convolution" not in name:
        return PRODUCT
    # A depthwise convolution has no sums over channels to reuse values in: memory bounds it.
    weight = args[2] if name == "convolution_backward" else args[1]
    return OTHER if weight.shape[1] == 1 else CONVOLUTION


def count_kernels(run: Callable[[], object]) -> Kernels:
    """Kernels of a call on meta tensors."""
    with _Counter() as counter:
        run()
    return counter.kernels


@cache
def embedding_kernels(backbone: str, batch_size: int) -> Kernels:
    """Kernels of embedding one batch; of several backbones side by side all of them."""
    parts = [_forward(one, batch_size) for one in components_of(backbone)]
    return sum(parts[1:], parts[0])


def _forward(backbone: str, batch_size: int) -> Kernels:
    model = _on_meta(backbone)
    pixels = _pixels(model, batch_size)
    # Without gradients, evaluation mode takes fused attention, whose operations are not counted.
    with torch.enable_grad():
        return count_kernels(lambda: model.module.eval()(pixels))


@cache
def training_kernels(backbone: str, batch_size: int, n_tags: int, blocks: TrainedBlocks) -> Kernels:
    """Kernels of one step: forward, backward through the last blocks and the head, AdamW."""
    model = _on_meta(backbone)
    pixels = _pixels(model, batch_size)
    module = model.module.train()
    if blocks != "all":
        last = last_blocks(backbone, model.layout, blocks)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(any(block.covers(name) for block in last))
    dim = module(pixels).shape[-1]
    head = nn.Linear(dim, n_tags, device="meta")
    labels = torch.zeros(batch_size, n_tags, device="meta")

    def step() -> None:
        logits = head(module(pixels))
        nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()

    trained = [*module.parameters(), *head.parameters()]
    n_values = sum(p.numel() for p in trained if p.requires_grad)
    each = n_values / ADAMW_KERNELS
    adamw = Kernels(
        np.full(ADAMW_KERNELS, OTHER, np.int8),
        np.zeros(ADAMW_KERNELS),
        np.full(ADAMW_KERNELS, ADAMW_VALUES * each),
        np.full(ADAMW_KERNELS, each),
    )
    return count_kernels(step) + adamw


def _on_meta(backbone: str) -> LoadedModel:
    with torch.device("meta"):
        return build_model(resolve_id(backbone), random_weights=True)


def _pixels(model: LoadedModel, batch_size: int) -> Tensor:
    return torch.zeros(batch_size, 3, *model.preprocess.size, device="meta")
