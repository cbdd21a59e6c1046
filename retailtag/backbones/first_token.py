"""The last transformer block, computed for its first output token alone.

A model that pools its first token reads no other token of its last block. The attention still
needs the keys and values of all tokens, but the query, the output projection and the MLP of one
token only. With the usual widths (dim -> 3 dim, dim -> dim, MLP dim -> 4 dim -> dim, that is 12
dim**2 multiply-adds per token) 2 dim**2 per token remain: a sixth of the block, in the backward
pass too. Sums run in another order, so results agree to rounding, not bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from retailtag.backbones.onednn import linear


class FirstToken(nn.Module):
    """A block for its first output token alone; its parameters are shared, not copied."""

    def __init__(self, block: nn.Module, compute: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.block = block
        self._compute = compute

    def forward(self, x: Tensor, attn_mask: None = None) -> Tensor:
        """Input (n, n_tokens, dim) of the block to its first output token (n, 1, dim)."""
        return self._compute(self.block, x)  # open_clip's mask is None in image towers


def for_first_token(block: Any) -> FirstToken | None:
    """Return what computes a block's first output token alone.

    None unless the block is timm's ``Block`` or open_clip's ``ResidualAttentionBlock`` with the
    usual attention.
    """
    kind = type(block)
    library_and_class = (kind.__module__.partition(".")[0], kind.__name__)
    if library_and_class == ("timm", "Block") and _is_plain(block.attn):
        return FirstToken(block, _timm_block)
    is_clip_block = library_and_class == ("open_clip", "ResidualAttentionBlock")
    if is_clip_block and not hasattr(block, "ln_1_kv"):  # the norm of cross attention's keys
        return FirstToken(block, _open_clip_block)
    return None


def _is_plain(attn: Any) -> bool:
    """Whether this is timm's ``Attention`` without gates, of a version that has ``attn_dim``."""
    named = type(attn).__name__ == "Attention" and type(attn).__module__.startswith("timm.")
    return named and hasattr(attn, "attn_dim") and getattr(attn, "gate", None) is None


def _timm_block(block: Any, x: Tensor) -> Tensor:
    attended = _timm_attention(block.attn, block.norm1(x))
    first = x[:, :1] + block.drop_path1(block.ls1(attended))
    out: Tensor = first + block.drop_path2(block.ls2(block.mlp(block.norm2(first))))
    return out


def _timm_attention(attn: Any, x: Tensor) -> Tensor:
    """Attention of the first token (n, 1, dim) to all tokens x (n, n_tokens, dim)."""
    n, n_tokens, _ = x.shape
    width, heads = attn.attn_dim, attn.num_heads
    # qkv.weight (3 width, dim) holds the rows of queries, then keys, then values
    weight, bias = attn.qkv.weight, attn.qkv.bias
    q_bias = None if bias is None else bias[:width]
    kv_bias = None if bias is None else bias[width:]
    q = linear(x[:, :1], weight[:width], q_bias).view(n, 1, heads, -1).transpose(1, 2)
    kv = linear(x, weight[width:], kv_bias).view(n, n_tokens, 2, heads, -1)
    k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # each (n, heads, n_tokens, width / heads)
    dropout = attn.attn_drop.p if attn.training else 0.0
    mixed = scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, dropout_p=dropout)
    mixed = mixed.transpose(1, 2).reshape(n, 1, width)
    out: Tensor = attn.proj_drop(attn.proj(attn.norm(mixed)))
    return out


def _open_clip_block(block: Any, x: Tensor) -> Tensor:
    y = block.ln_1(x)
    # nn.MultiheadAttention projects its query apart from key and value where they differ
    first = x[:, :1] + block.ls_1(block.attn(y[:, :1], y, y, need_weights=False)[0])
    out: Tensor = first + block.ls_2(block.mlp(block.ln_2(first)))
    return out
