"""The last transformer block for the one token that is pooled.

A model that pools its first token reads nothing else of its last block. That block's keys and
values are needed of all tokens, its queries, its projection and its perceptron of one: with the
usual widths a sixth of the block's work remains, in the backward pass too. The sums are those of
the whole block, in another order: results agree to rounding, not bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from retailtag.backbones.onednn import linear

Run = Callable[[Tensor], Tensor]


def for_first_token(block: Any) -> Run | None:
    """Input (n, n_tokens, dim) of a block to its first output token (n, 1, dim).

    Parameters
    ----------
    block : Module
        timm's ``Block`` or open_clip's ``ResidualAttentionBlock``.

    Returns
    -------
    callable or None
        None for a block of another class or with another attention.
    """
    way = _way(block)
    return None if way is None else partial(way, block)


class FirstToken(nn.Module):
    """A block in whose place the first output token (n, 1, dim) alone is computed.

    Parameters
    ----------
    block : Module
        One for which `for_first_token` knows a way; its parameters are shared, not copied.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self._way = block, _way(block)

    def forward(self, x: Tensor, attn_mask: None = None) -> Tensor:
        """Input (n, n_tokens, dim) of the block to its first output token (n, 1, dim).

        open_clip names a mask, of which image towers have none.
        """
        assert self._way is not None
        return self._way(self.block, x)


def _way(block: Any) -> Callable[[Any, Tensor], Tensor] | None:
    kind = type(block)
    known = (kind.__module__.partition(".")[0], kind.__name__)
    if known == ("timm", "Block") and _is_plain(block.attn):
        return _timm_block
    if known == ("open_clip", "ResidualAttentionBlock") and not hasattr(block, "ln_1_kv"):
        return _open_clip_block
    return None


def _is_plain(attn: Any) -> bool:
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
    weight, bias = attn.qkv.weight, attn.qkv.bias
    of_q, of_kv = (None, None) if bias is None else (bias[:width], bias[width:])
    q = linear(x[:, :1], weight[:width], of_q).view(n, 1, heads, -1).transpose(1, 2)
    kv = linear(x, weight[width:], of_kv).view(n, n_tokens, 2, heads, -1)
    k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
    dropout = attn.attn_drop.p if attn.training else 0.0
    seen = scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, dropout_p=dropout)
    seen = seen.transpose(1, 2).reshape(n, 1, width)
    out: Tensor = attn.proj_drop(attn.proj(attn.norm(seen)))
    return out


def _open_clip_block(block: Any, x: Tensor) -> Tensor:
    y = block.ln_1(x)
    first = x[:, :1] + block.ls_1(block.attn(y[:, :1], y, y, need_weights=False)[0])
    out: Tensor = first + block.ls_2(block.mlp(block.ln_2(first)))
    return out
