"""k-nearest-neighbour vote: no fit, only a bank of embeddings and their labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

from retailtag.artefacts import BOUND, FINITE, LABEL, StoredModel, TensorRule
from retailtag.memory import empty_rows
from retailtag.neighbours import (
    KEYS_AT_ONCE,
    FeatureRows,
    Neighbours,
    directions,
    fill_directions,
    mean_embedding,
    nearest,
    row_blocks,
)
from retailtag.probes.solver.labels import prior_logit
from retailtag.progress import Advance, nobody

COUNTS = (100, 50, 20, 10, 5)  # neighbours that vote, the smoothest vote first
TEMPERATURE = 0.07  # as in DINO and in Wu et al. (2018)
FILE = "knn.safetensors"
TENSORS = {
    "mean": TensorRule("F32", ("embedding",), FINITE),
    "directions": TensorRule("F32", ("images", "embedding"), FINITE),
    "labels": TensorRule("I8", ("images", "tags"), LABEL),
}


@dataclass(frozen=True)
class KnnHead:
    """Weighted vote of the k training images most alike by cosine.

    References
    ----------
    Wu, Xiong, Yu & Lin (2018), Unsupervised feature learning via non-parametric instance
    discrimination, §3.4; Caron et al. (2021), DINO, with the same T and values of k.
    """

    counts: tuple[int, ...] = COUNTS  # the values of k, descending
    temperature: float = TEMPERATURE  # T of the weights exp(similarity / T)
    device: str = "cpu"  # where neighbours are searched: cpu or cuda
    name: str = "knn"

    @property
    def candidates(self) -> tuple[str, ...]:
        """Settings as text, such as ``k=20 T=0.07``."""
        return tuple(f"k={k} T={self.temperature:g}" for k in self.counts)

    def fit(self, X: FeatureRows, Y: NDArray[np.int8], advance: Advance = nobody) -> KnnFits:
        """Store X and Y as the bank; see `retailtag.probes.heads.head.Head.fit`."""
        advance(len(self.counts) * Y.shape[1])
        return KnnFits(KnnBank.build(X, Y), self.counts, self.temperature, self.device)


@dataclass(frozen=True, eq=False)
class KnnBank:
    """Training images to vote: directions of their embeddings, and their labels."""

    mean: NDArray[np.float32]  # (dim,), of the raw embeddings
    # Centred embeddings of unit length (n_images, dim); 0 for an image that lies at the mean.
    directions: NDArray[np.float32]
    labels: NDArray[np.int8]  # (n_images, n_tags): 1, 0, or -1 for cells that do not vote

    @classmethod
    def build(cls, X: FeatureRows, Y: NDArray[np.int8]) -> KnnBank:
        """Bank of raw embeddings X (n_images, dim) and labels Y (n_images, n_tags)."""
        mean = mean_embedding(X)
        placed = empty_rows(X.shape)
        fill_directions(X, mean, placed)
        return cls(mean, placed, np.ascontiguousarray(Y, np.int8))

    @cached_property
    def prior(self) -> NDArray[np.float32]:
        """Log-odds of each tag's prevalence, (n_tags,)."""
        return prior_logit(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of its three arrays."""
        return self.mean.nbytes + self.directions.nbytes + self.labels.nbytes

    def nearest(self, X: NDArray[np.float32], k: int, device: str = "cpu") -> Neighbours:
        """Indices and similarities (n_queries, min(k, n_images)) of the most alike, best first.

        X float32 (n_queries, dim) holds raw embeddings.
        """
        queries = (directions(X[rows], self.mean) for rows in row_blocks(len(X)))
        return nearest(self.directions, queries, k, device)

    def to_bytes(self) -> bytes:
        """Content of ``knn.safetensors``."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in TENSORS}
        return save(arrays, metadata=BOUND)

    @classmethod
    def read(cls, stored: StoredModel) -> KnnBank:
        """Bank of a stored probe; raises as `StoredModel.tensors` does."""
        from safetensors.numpy import load

        return cls(**stored.tensors(FILE, TENSORS, load))


@dataclass(frozen=True, eq=False)
class KnnVote:
    """The vote of a bank with its own number of neighbours for each tag, `counts` (n_tags,)."""

    bank: KnnBank
    counts: NDArray[np.integer]
    temperature: float = TEMPERATURE

    def logits(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log-odds (n_images, n_tags) of raw embeddings X (n_images, dim)."""
        return self.cast(*self.bank.nearest(X, int(self.counts.max(initial=1))))

    def cast(
        self, index: NDArray[np.int64], similarity: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Log-odds (n_queries, n_tags) from what `KnnBank.nearest` found for enough neighbours."""
        out = np.empty((len(index), len(self.counts)), np.float32)
        for k in np.unique(self.counts):
            tags = np.flatnonzero(self.counts == k)
            out[:, tags] = self._vote(index[:, :k], similarity[:, :k], tags)
        return out

    def _vote(
        self, index: NDArray[np.int64], similarity: NDArray[np.float32], tags: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Scores (n_queries, len(tags)) from neighbours (n_queries, k), the most alike first."""
        # With neighbours i of similarity s_i, the most alike first, the weights are
        # v_i = exp((s_i - s_1)/T), and the score of a tag of prevalence π is
        #     logit of (Σ v_i·y_i + π) / (Σ v_i + 1),
        # sums over the neighbours whose label is known: one imaginary neighbour, as near as the
        # nearest, votes for the prevalence, so that scores are finite and ties follow it.
        rows = self.bank.labels
        if index.size < len(rows):  # few queries: only the labels of their neighbours
            asked, inverse = np.unique(index, return_inverse=True)
            rows = rows[asked]
            index = inverse.reshape(index.shape)
        labels = torch.from_numpy(rows[:, tags])
        present = (labels == 1).float()
        known = None if bool((labels >= 0).all()) else (labels >= 0).float()
        prior = torch.sigmoid(torch.from_numpy(self.bank.prior[tags]))
        out = np.empty((len(index), len(tags)), np.float32)
        for start in range(0, len(index), KEYS_AT_ONCE):
            at = slice(start, start + KEYS_AT_ONCE)
            near = torch.from_numpy(index[at])
            s = torch.from_numpy(similarity[at])
            weight = torch.exp((s - s[:, :1]) / self.temperature)
            # Σ_i weight_i · table[near_i] for each query, (n, k) and (m, tags) to (n, tags)
            total = partial(embedding_bag, near, per_sample_weights=weight, mode="sum")
            yes = total(present)
            cast = weight.sum(dim=1, keepdim=True) if known is None else total(known)
            out[at] = torch.log((yes + prior) / (cast - yes + 1 - prior)).numpy()
        return out


class KnnFits:
    """Votes of a bank at every count.

    Neighbours are searched once for all counts, and remembered for every block of images (by its
    content): 1.2 kB per image.
    """

    def __init__(
        self, bank: KnnBank, counts: tuple[int, ...], temperature: float, device: str = "cpu"
    ) -> None:
        self.bank = bank
        self.counts = counts
        self.temperature = temperature
        self.device = device
        self._found: dict[bytes, Neighbours] = {}

    def scores(self, X: NDArray[np.float32], choice: int | NDArray[np.intp]) -> NDArray[np.float32]:
        """Log-odds of the votes; see `retailtag.probes.heads.head.HeadFits.scores`."""
        return self.at(choice).cast(*self._neighbours(X))

    def at(self, choice: int | NDArray[np.intp]) -> KnnVote:
        """Vote at candidate `choice`, one or per tag."""
        n_tags = self.bank.labels.shape[1]
        counts = np.array(self.counts)[np.broadcast_to(choice, n_tags)]
        return KnnVote(self.bank, counts, self.temperature)

    def _neighbours(self, X: NDArray[np.float32]) -> Neighbours:
        key = hashlib.sha256(np.ascontiguousarray(X).data).digest()
        if key not in self._found:
            self._found[key] = self.bank.nearest(X, max(self.counts), self.device)
        return self._found[key]
