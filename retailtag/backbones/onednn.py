"""Linear layers as 1 x 1 convolutions, which oneDNN computes up to twice as fast on some CPUs.

PyTorch's float32 matrix product is MKL's, which leaves half of an AMD processor with AVX-512
unused (`retailtag.backbones.cpu.has_slow_matmul`); its convolution is oneDNN's. The tokens become
the pixels of one image, a view without a copy. Sums run in another order: results agree to
rounding, not bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from retailtag.backbones import cpu

MIN_TOKENS = 128  # with fewer, reordering the weights costs more than the product saves (LOG.md)
enabled = True  # benchmarks switch it off to measure PyTorch's own layers


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Tokens x (..., dim) times weight (out, dim): (..., out), as `torch.nn.functional.linear`."""
    if not _is_faster(x, weight):
        return functional.linear(x, weight, bias)
    # (..., dim) -> (1, dim, n_tokens, 1), channels last in memory, which is how x lies already
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    y = functional.conv2d(image, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`torch.nn.Linear` that computes with `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., dim) to (..., out)."""
        return linear(x, self.weight, self.bias)


class Attention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose self-attention computes with `linear`."""

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (n, n_tokens, dim), three times the same, to (n, n_tokens, dim) and no weights."""
        # Masks are left to PyTorch, and so are attention weights, which are the default.
        others = (v for name, v in options.items() if name != "need_weights")
        bare = not options.get("need_weights", True) and all(v is None for v in others)
        is_self_attention = bare and query is key is value
        if not is_self_attention or not _is_faster(query, self.in_proj_weight):
            return super().forward(query, key, value, **options)
        n, n_tokens, dim = query.shape
        qkv = linear(query, self.in_proj_weight, self.in_proj_bias)
        # shape of each: (n, heads, n_tokens, dim / heads)
        q, k, v = qkv.view(n, n_tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        mixed = mixed.transpose(1, 2).reshape(n, n_tokens, dim)
        return linear(mixed, self.out_proj.weight, self.out_proj.bias), None


def use_onednn(module: nn.Module) -> None:
    """Make the linear layers inside `module` compute with `linear`; names and weights stay."""
    for layer in module.modules():
        # Changing the class keeps hooks, parameters and state_dict; subclasses are left alone.
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
        elif type(layer) is nn.MultiheadAttention and _is_plain(layer):
            layer.__class__ = Attention


def _is_plain(layer: nn.MultiheadAttention) -> bool:
    joint = layer.in_proj_weight is not None and layer.bias_k is None
    return joint and layer.batch_first and not layer.add_zero_attn


def _is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether the convolution is faster: float32 on such a CPU, outside of tracing."""
    return (
        enabled
        # first, because a tracer would record the comparisons below in its graph
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= MIN_TOKENS * x.shape[-1] > 0
        and cpu.has_slow_matmul()
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )
