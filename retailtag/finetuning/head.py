"""The head that is trained with the blocks: standardisation, then one linear row per tag."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class HeadInit:
    """A fitted probe to start from (LP-FT: Kumar et al. 2022)."""

    mean: NDArray[np.float32]  # (dim,), standardisation of the embedding
    scale: NDArray[np.float32]  # (dim,)
    weight: NDArray[np.float32]  # (n_tags, dim), on standardised embeddings
    bias: NDArray[np.float32]  # (n_tags,)

    def logits(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (n_images, n_tags) of embeddings X (n_images, dim)."""
        return ((X - self.mean) / self.scale @ self.weight.T + self.bias).astype(np.float32)


class Head(nn.Module):
    """Fixed standardisation and a trainable linear layer; (n, dim) to logits (n, n_tags)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, start: HeadInit) -> None:
        super().__init__()
        n_tags, dim = start.weight.shape
        # Buffers, not parameters: with the standardisation fixed, one learning rate moves the
        # logits equally along every direction of the embedding.
        self.register_buffer("mean", torch.from_numpy(start.mean))
        self.register_buffer("scale", torch.from_numpy(start.scale))
        self.linear = nn.Linear(dim, n_tags)
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(start.weight))
            self.linear.bias.copy_(torch.from_numpy(start.bias))

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits (n, n_tags) of embeddings (n, dim)."""
        logits: Tensor = self.linear((embedding - self.mean) / self.scale)
        return logits

    def folded(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weight (n_tags, dim) and bias (n_tags,) for raw embeddings, standardisation folded in."""
        # w·(x - m)/s + b = (w/s)·x + (b - (w/s)·m), in float64: m may be large beside s.
        weight = self.linear.weight.detach().double() / self.scale.double()
        bias = self.linear.bias.detach().double() - weight @ self.mean.double()
        return weight.float().cpu().numpy(), bias.float().cpu().numpy()
