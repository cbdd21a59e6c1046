"""Linear layers as 1 x 1 convolutions, on the processors where these are about twice as fast.

Tokens are the pixels of one picture, so that nothing is copied. The sums are the same in another
order: results agree to rounding, not bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from retailtag.backbones import cpu

MIN_TOKENS = 128  # with fewer tokens, laying out the weights anew costs more than it saves
enabled = True  # off: PyTorch's own layers everywhere, which benchmarks compare with


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Tokens x (..., dim) times weight (out, dim): (..., out), as `torch.nn.functional.linear`."""
    if not _convolves(x, weight):
        return functional.linear(x, weight, bias)
    picture = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    y = functional.conv2d(picture, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`torch.nn.Linear` by way of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., dim) to (..., out)."""
        return linear(x, self.weight, self.bias)


class Attention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` of tokens to themselves by way of `linear`."""

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (n, n_tokens, dim) thrice to (n, n_tokens, dim), and no weights."""
        # masks and the like are left to torch, and so are weights, which are given if not forbidden
        others = (v for name, v in options.items() if name != "need_weights")
        bare = not options.get("need_weights", True) and all(v is None for v in others)
        plain = bare and query is key is value
        if not plain or not _convolves(query, self.in_proj_weight):
            return super().forward(query, key, value, **options)
        n, n_tokens, dim = query.shape
        qkv = linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(n, n_tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        seen = seen.transpose(1, 2).reshape(n, n_tokens, dim)
        return linear(seen, self.out_proj.weight, self.out_proj.bias), None


def use_onednn(module: nn.Module) -> None:
    """Let the linear layers inside `module` compute by `linear`; parameters and names stay."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
        elif type(layer) is nn.MultiheadAttention and _is_plain(layer):
            layer.__class__ = Attention


def _is_plain(layer: nn.MultiheadAttention) -> bool:
    joint = layer.in_proj_weight is not None and layer.bias_k is None
    return joint and layer.batch_first and not layer.add_zero_attn


def _convolves(x: Tensor, weight: Tensor) -> bool:
    """Whether this product is one that pays: float32 on such a CPU, run and not converted."""
    return (
        enabled
        # first of all, for a converter would take the comparisons below into its graph
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= MIN_TOKENS * x.shape[-1] > 0
        and cpu.has_slow_matmul()
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )
