"""The processes that ``torchrun`` starts to compute one result together.

Inside `joined` they are one `Ranks` each: which process this is, of how many, and the few exchanges
between them. Elsewhere a computation is `ALONE`, and every exchange gives back what it was given.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from retailtag.errors import Unavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

T = TypeVar("T")
# torchrun ends the others when one dies. Until then they wait as long as the first one may need
# for what it does alone, such as caching the activations of a million images.
_PATIENCE = timedelta(days=2)
_TIMES = itertools.count()  # that this process has joined the others
_GIVEN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # by torchrun, to every process


@dataclass(frozen=True)
class Ranks:
    """A process among those that compute together; the first, of rank 0, writes and prints.

    Every method but the slices is called by all processes, in the same order.
    """

    rank: int = 0
    size: int = 1
    on_machine: int = 1  # how many of them share this machine

    @classmethod
    def given(cls) -> Ranks:
        """What ``torchrun`` tells this process; `ALONE` without it."""
        if not all(os.environ.get(name) for name in _GIVEN):
            return ALONE
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return cls(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def places(self, n: int) -> slice:
        """Which of the `n` images of a batch this process computes; the first if it has none."""
        return slice(self.rank, None, self.size) if self.rank < n else slice(0, 1)

    def stretch(self, n: int) -> slice:
        """Which of `n` rows this process computes, all parts one after the other."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def from_first(self, work: Callable[[], T]) -> T:
        """Result of `work`, which the first process alone does, in every process."""
        if self.size == 1:
            return work()
        import torch.distributed as dist

        box: list[Any] = [work() if self.is_first else None]
        with _exchange():
            dist.broadcast_object_list(box, src=0, device=_cpu())
        result: T = box[0]
        return result

    def are_same(self, value: str) -> bool:
        """Whether every process gives the same value."""
        if self.size == 1:
            return True
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with _exchange():
            dist.all_gather_object(values, value)
        return len(set(values)) == 1

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes; all have one dtype and device."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        flat = torch.cat([t.detach().reshape(-1) for t in tensors])  # one exchange instead of many
        with _exchange():
            dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.detach().copy_(total.view(tensor.shape))

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of `values` over the processes."""
        if self.size == 1:
            return values
        import torch

        total = torch.from_numpy(values.copy())
        self.add_up([total])
        summed: NDArray[np.float64] = total.numpy()
        return summed

    def whole(self, part: NDArray[np.float32], n: int) -> NDArray[np.float32]:
        """All `n` rows of which `part` (n_part, ...) are this process's `stretch`."""
        if self.size == 1:
            return part
        import torch

        rows = torch.zeros(n, *part.shape[1:])
        rows[self.stretch(n)] = torch.from_numpy(part)
        self.add_up([rows])  # exact: every row is added to zeros
        whole: NDArray[np.float32] = rows.numpy()
        return whole


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Compute together with the other processes of ``torchrun``, on ``cpu``, ``cuda`` or ``auto``.

    On CUDA every process needs a device of its own. Raises `Unavailable` if there are too few.
    """
    ranks = Ranks.given()
    if ranks.size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():  # by a call around this one
        yield ranks
        return
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        _check_devices(torch.cuda.device_count(), ranks.on_machine)
    with _exchange():
        dist.init_process_group(
            backend, timeout=_PATIENCE, store=_store(ranks), rank=ranks.rank, world_size=ranks.size
        )
    yield ranks
    # Not after an error: the others may be in the middle of an exchange with this process, and
    # learn of its end by the end of its connections.
    dist.destroy_process_group()


def _store(ranks: Ranks) -> Any:
    """Where the processes find each other, below a name of its own for every time."""
    import torch.distributed
    from torch.distributed.rendezvous import rendezvous

    dist: Any = torch.distributed  # its types lack the stores
    store, _, _ = next(rendezvous("env://", ranks.rank, ranks.size, timeout=_PATIENCE))
    # torchrun keeps one store through all restarts, in which addresses of processes that have
    # ended are taken for those of new ones (pytorch/pytorch#135712). On several machines the counts
    # of restarts differ; there a setting of torchrun helps (docs/finetune.md).
    is_one_machine = os.environ.get("GROUP_WORLD_SIZE") == "1"
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "") if is_one_machine else ""
    return dist.PrefixStore(f"retailtag/{life}/{next(_TIMES)}", store)


def _check_devices(n_devices: int, n_processes: int) -> None:
    if n_processes > n_devices:  # which NCCL refuses too, in other words
        raise Unavailable(
            f"This machine has {n_devices} CUDA device{'' if n_devices == 1 else 's'} for "
            f"{n_processes} processes; give torchrun --nproc-per-node {n_devices}, or use --device "
            "cpu."
        )


def _cpu() -> Any:
    import torch

    return torch.device("cpu")


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # also what torch.distributed raises of its own
        raise Unavailable(
            "Another process of this computation has ended or cannot be reached "
            f"({str(error).splitlines()[0]}); see what it says, and run the same command again to "
            "continue."
        ) from error
