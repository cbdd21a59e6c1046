"""Extraction on Ray Data: actors embed the blocks, this process plans and stores them.

The actors run the function of the single-machine path on each block and hand the embeddings back in
order; nothing but this process writes. So the store, the resumption and the identity are those of a
single machine, and the nodes need no more than the images.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retailtag.allocator import keep_freed_memory
from retailtag.backbones import load_backbone
from retailtag.backbones.engines import EngineName, embedder_of
from retailtag.backbones.preprocess import accepts_truncated
from retailtag.compute import MAX_WORKERS, resolve_device
from retailtag.errors import RetailtagError, Unavailable, UnreadableImage, UsageError
from retailtag.extraction.costs import ExtractCost
from retailtag.extraction.embed import Block, BlockRequest, Loading, OnBatch, embed_blocks
from retailtag.extraction.embedder import identity
from retailtag.extraction.forward import Forward
from retailtag.images.loader import hash_images
from retailtag.images.sources import ImageSource
from retailtag.settings import AUTO, ComputeSettings
from retailtag.store import FeatureSpec
from retailtag.store.spec import explain_differences

if TYPE_CHECKING:
    import pyarrow as pa

LOCAL = "local"
IMAGES_PER_HASHING = 1024
HASHING_THREADS = 4  # of a task: they mostly wait for the storage
# Blocks of one dataset: their paths lie in Ray's object store, about 100 kB each. The actors load
# their models anew after as many, which is once in ten million images.
BLOCKS_AT_ONCE = 10_000
CONNECT_SECONDS = 10.0
CPUS_PER_ACTOR = 8  # at most, without a GPU: more would serve one copy of the model


@dataclass(frozen=True)
class Origin:
    """What a node loads a backbone from: the id as it was given, and local weights."""

    backbone: str
    weights: Path | None = None


@dataclass(frozen=True)
class _Recipe:
    """How a node makes the embedder of one store."""

    origin: Origin
    spec: FeatureSpec

    def embedder(self, device: str) -> Any:
        """Load it; raises `Unavailable` if its embeddings have another identity on this node."""
        origin, spec = self.origin, self.spec
        backbone = load_backbone(origin.backbone, weights=origin.weights, device=device)
        embedder = embedder_of(backbone, EngineName.parse(spec.engine))
        here = identity(embedder, spec.dtype, allow_truncated=accepts_truncated(spec))
        if here != spec:
            differences = explain_differences(spec, here, ("where extract runs", "on the node"))
            raise Unavailable(
                f"A node of Ray loads another {origin.backbone}: {differences}. Install the same "
                "versions and weights on every node."
            )
        return embedder


class _Embedding:
    """The state of an actor: its models, loaded with the first block."""

    def __init__(self, recipes: Sequence[_Recipe], loading: Loading, device: str) -> None:
        self._recipes, self._loading, self._device = recipes, loading, device
        self._models: list[Forward] = []
        self._said: list[str] = []

    def __call__(self, table: pa.Table) -> pa.Table:
        """Embed one block; an error is an answer too, or Ray would take it for a fault of ours."""
        try:
            images, which = _payload(table)
            answer: Any = (self._blocks(images, which), self._said)
        except RetailtagError as error:
            answer = error
        self._said = []
        return _table(answer)

    def _blocks(self, images: ImageSource, which: Sequence[int]) -> list[Block]:
        """Blocks of these images, one for each of the models `which`."""
        if not self._models:
            keep_freed_memory()
            device = resolve_device(self._device)
            self._models = [
                Forward(recipe.embedder(device), self._loading.batch_size, self._said.append)
                for recipe in self._recipes
            ]
            if _is_restarted():
                self._said.append("Ray has started an actor again whose process or node ended.")
        models = tuple(self._models[i] for i in which)
        request = BlockRequest(np.arange(len(images.paths)), models)
        (of_request,) = embed_blocks(images, [request], self._loading)
        return [block for _, block in of_request]


def _is_restarted() -> bool:
    import ray

    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def _hashed(table: pa.Table) -> pa.Table:
    """Hashes of the images of one task."""
    try:
        images, _ = _payload(table)
        answer: Any = list(hash_images(images, range(len(images.paths)), workers=HASHING_THREADS))
    except RetailtagError as error:
        answer = error
    return _table(answer)


def _payload(table: pa.Table) -> Any:
    # It comes from this program, by way of the cluster that the user named.
    return pickle.loads(table.column(0)[0].as_py())  # noqa: S301


def _table(answer: Any) -> pa.Table:
    import pyarrow as pa

    return pa.table({"answer": pa.array([pickle.dumps(answer)], pa.large_binary())})


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to; see `connected`."""

    origins: Sequence[Origin]  # of the backbones, in the order in which they are extracted
    device: str  # what the actors compute on: cpu or cuda
    cpus: int  # of one actor
    workers: int  # decoding processes of one actor
    n_actors: int  # that the cluster has room for now
    say: Callable[[str], None]

    def hash_images(self, images: ImageSource, rows: NDArray[np.intp]) -> Iterator[str | None]:
        """As `retailtag.images.loader.hash_images`, by tasks of Ray."""
        starts = range(0, len(rows), IMAGES_PER_HASHING)
        parts = ((images.part(rows[i : i + IMAGES_PER_HASHING].tolist()), ()) for i in starts)
        for hashes in self._answers(parts, _hashed, lambda n: {"num_cpus": 1}):
            yield from hashes

    def embed_blocks(
        self,
        images: ImageSource,
        requests: Iterable[BlockRequest],
        models: Mapping[Forward, FeatureSpec],
        loading: Loading,
        on_batch: OnBatch,
    ) -> Generator[list[tuple[Forward, Block]], None, None]:
        """As `retailtag.extraction.embed.embed_blocks`, by actors of Ray Data.

        `models` are the backbones in the order of the origins, with the identities of their stores.
        `on_batch` is called once a block.
        """
        from ray.data import ActorPoolStrategy

        positions = {model: i for i, model in enumerate(models)}
        taken: deque[BlockRequest] = deque()  # whose blocks have not come back, oldest first

        def parts() -> Iterator[tuple[ImageSource, list[int]]]:
            for request in requests:
                taken.append(request)
                which = [positions[model] for model in request.models]
                yield images.part(request.rows.tolist()), which

        pairs = zip(self.origins, models.values(), strict=True)
        recipes = [_Recipe(origin, spec) for origin, spec in pairs]
        loading = replace(loading, workers=self.workers)

        def options(n_blocks: int) -> dict[str, Any]:
            # No more than there is room for: one that waits for room would take that of an actor
            # which is about to be started again, and the blocks of that one would wait instead.
            room = min(self.n_actors, n_blocks)
            return {
                "fn_constructor_args": (recipes, loading, self.device),
                "compute": ActorPoolStrategy(min_size=1, initial_size=room, max_size=room),
                "num_cpus": self.cpus,
                "num_gpus": 1 if self.device == "cuda" else None,
            }

        last = time.perf_counter()
        with closing(self._answers(parts(), _Embedding, options)) as answers:
            for blocks, said in answers:
                request = taken.popleft()
                for line in said:
                    self.say(line)
                self._check_visible(images, request, blocks[0])
                now = time.perf_counter()
                seconds, last = (now - last) / len(blocks), now
                placed = [_placed(block, request.rows, seconds) for block in blocks]
                cost = sum((block.cost for block in placed), ExtractCost())
                on_batch(len(request.rows) * len(placed), len(placed[0].failures), cost)
                yield list(zip(request.models, placed, strict=True))

    def _answers(
        self, payloads: Iterable[Any], function: Any, options: Callable[[int], dict[str, Any]]
    ) -> Generator[Any, None, None]:
        """What `function` answers to each payload, in order; an error that it answers is raised.

        `options` are those of ``map_batches`` for a number of payloads.
        """
        import ray
        from ray.exceptions import RayError

        waiting = iter(payloads)
        while some := [{"payload": pickle.dumps(p)} for p in islice(waiting, BLOCKS_AT_ONCE)]:
            try:
                dataset = ray.data.from_items(some, override_num_blocks=len(some)).map_batches(
                    function, batch_size=1, batch_format="pyarrow", **options(len(some))
                )
                some.clear()  # Ray has its own copy
                # Blocks are stored in order, or a killed run would leave gaps and go on in others.
                dataset.context.execution_options.preserve_order = True
                dataset.context.enable_progress_bars = False
                dataset.context.print_on_execution_start = False
                for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                    for value in table.column(0):
                        answer = pickle.loads(value.as_py())  # noqa: S301
                        if isinstance(answer, RetailtagError):
                            raise answer
                        yield answer
            except RayError as error:
                raise Unavailable(_given_up(error)) from error

    def _check_visible(self, images: ImageSource, request: BlockRequest, block: Block) -> None:
        """Refuse to go on where the nodes see none of the images that this process sees."""
        if len(block.rows) or any(failure.sha256 for failure in block.failures):
            return
        row = int(request.rows[0])
        try:
            images.read(row)
        except UnreadableImage:
            return
        raise Unavailable(
            f"{images.name(row)} can be read where extract runs but not on a node of Ray "
            f"({block.failures[0].reason}); put the images where every node sees them at the same "
            "path."
        )


def _placed(block: Block, rows: NDArray[np.intp], seconds: float) -> Block:
    """A block of a part of the images as one of the catalogue, at its share of the wall time."""
    failures = [failure._replace(row=int(rows[failure.row])) for failure in block.failures]
    cost = block.cost.within(seconds)
    return replace(block, rows=rows[block.rows], failures=failures, cost=cost)


def _given_up(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return (
        f"Ray gave up ({reason.rstrip('.')}); every finished block is stored, and the same command "
        "continues."
    )


@contextmanager
def connected(
    address: str,
    origins: Sequence[Origin],
    compute: ComputeSettings,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Cluster]:
    """Connect to a Ray cluster inside the block.

    Parameters
    ----------
    address : str
        ``local`` starts a cluster on this machine; ``auto`` or ``HOST:PORT`` is one that runs. A
        connection that the program already has is used.
    origins : sequence of Origin
        The backbones.
    compute : ComputeSettings
        The device of the actors and the decoding processes of each.
    say : callable
        Told what the actors say.

    Raises
    ------
    Unavailable
        If Ray is not installed, the cluster cannot be reached, or it has no GPU and CUDA is asked
        for.
    UsageError
        If the address is one of Ray Client.
    """
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray {address}: Ray Data does not run over Ray Client; start the command on a node "
            "of the cluster (ray job submit) with --ray auto, or give HOST:PORT."
        )
    if address not in (LOCAL, "auto") and not re.fullmatch(r".+:[0-9]{1,5}", address):
        raise UsageError(f"--ray {address} is no address; give HOST:PORT, auto or --ray alone.")
    try:
        import ray.data
    except ImportError as error:
        raise Unavailable(
            f"--ray needs Ray, which is not installed ({error}); pip install 'retailtag[ray]'."
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield _cluster(origins, compute, say)
        return
    # Ray prints what befalls its processes on stdout, which is for --json.
    with redirect_stdout(sys.stderr):
        _connect(address)
        try:
            yield _cluster(origins, compute, say)
        finally:
            ray.shutdown()


def _connect(address: str) -> None:
    """Start or join a cluster, quietly."""
    import ray

    if address not in (LOCAL, "auto"):
        _check_answers(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of its C++ part, in this process
    handler = signal.getsignal(signal.SIGTERM)
    more: dict[str, Any] = {}
    if address == LOCAL:
        more = {"include_dashboard": False, "num_cpus": _n_cpus()}
    try:
        with _silent_stderr():  # which is told the log level
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **more)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise Unavailable(
            f"--ray {address}: no cluster can be reached ({reason}); start one with ray start "
            "--head, or give --ray alone for one on this machine."
        ) from error
    finally:
        with suppress(ValueError):  # not the main thread, where Ray sets no handler either
            signal.signal(signal.SIGTERM, handler)


def _check_answers(address: str) -> None:
    """Raise `Unavailable` where nothing listens: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise Unavailable(
            f"--ray {address}: nothing answers there ({error}); give HOST:PORT of the head node, "
            "as ray start --head prints it, or --ray alone for a cluster on this machine."
        ) from error


def _n_cpus() -> int:
    """Cores that this process may use: a batch system may have given it some of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what C++ code of this process writes to stderr inside the block."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _cluster(
    origins: Sequence[Origin], compute: ComputeSettings, say: Callable[[str], None]
) -> Cluster:
    """What the nodes of the cluster have room for."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpu = [node for node in nodes if node.get("GPU")]
    if compute.device == "cuda" and not with_gpu:
        raise Unavailable("--device cuda: no node of the Ray cluster has a GPU; use --device cpu.")
    is_gpu = bool(with_gpu) and compute.device in (AUTO, "cuda")
    used = with_gpu if is_gpu else [node for node in nodes if node.get("CPU", 0) >= 1]
    if not used:
        raise Unavailable("The Ray cluster has no node with a CPU; start one with --num-cpus.")
    if compute.workers is not None:
        cpus = max(compute.workers, 1)
    elif is_gpu:
        cpus = int(min(node.get("CPU", 0) // node["GPU"] for node in used))
        cpus = min(max(cpus, 1), MAX_WORKERS)
    else:
        cpus = int(min(CPUS_PER_ACTOR, *(node["CPU"] for node in used)))
    rooms = [int(node.get("CPU", 0) // cpus) for node in used]
    if is_gpu:
        rooms = [min(n, int(node["GPU"])) for n, node in zip(rooms, used, strict=True)]
    if not sum(rooms):
        raise Unavailable(
            f"--workers {cpus}: no node of the Ray cluster has as many CPUs; give fewer."
        )
    workers = cpus if compute.workers is None else compute.workers
    say(f"Ray: {sum(rooms)} actors on {'GPUs' if is_gpu else 'CPUs'}, {cpus} CPUs each.")
    return Cluster(origins, "cuda" if is_gpu else "cpu", cpus, workers, sum(rooms), say)
