"""What "the last four blocks" of a model are, per family.

A model is a stem, a sequence of blocks and a finish. A block is one transformer block (ViT, Swin,
CLIP) or one residual or inverted-residual block (ResNet, ConvNeXt, RegNet, EfficientNet,
MobileNet). Whatever runs between two blocks (a downsampling layer, a plain convolution) belongs
to the block before it, and everything behind the last block (final norm, head convolution,
attention pooling, projection) belongs to the last block. "The last k blocks" are therefore all
parameters used from the start of the k-th last block on, and no others, so that freezing the rest
cuts the backward pass in one place.

=============================  ============================  ====================================
model class                    a block                       the finish, part of the last block
=============================  ============================  ====================================
timm VisionTransformer, Eva,   ``blocks.i``                  norm, fc_norm, attn_pool
Beit
timm ResNet                    ``layer1-4.i``                pooling
timm ConvNeXt                  ``stages.i.blocks.j``         norm_pre, head norm
timm SwinTransformer (V2)      ``layers.i.blocks.j``         norm
timm RegNet                    ``s1-4.bj``                   final_conv
timm EfficientNet              ``blocks.i.j``                conv_head, bn2
timm MobileNetV3               ``blocks.i.j``                conv_head, norm_head
timm ResNetV2                  ``stages.i.blocks.j``         norm
timm ByobNet, NormFreeNet      ``stages.i.j``                final_conv
timm MlpMixer                  ``blocks.i``                  norm
open_clip VisionTransformer    ``transformer.resblocks.i``   ln_post, attn_pool, proj
open_clip ModifiedResNet       ``layer1-4.i``                attnpool
open_clip TimmModel            as the timm class             as the timm class, and head
=============================  ============================  ====================================

A subclass counts as its parent only if it inherits the parent's forward pass. The blocks of other
architectures are not guessed: a number of blocks is refused, ``all`` still trains the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import takewhile
from typing import Any

from torch import Tensor, nn

from retailtag.backbones.first_token import for_first_token

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Block:
    """One block and what runs behind it, up to the next block."""

    name: str  # path of the block in the model, such as blocks.11
    runs: tuple[str, ...]  # paths of the modules in the order in which they run, `name` first
    finish: tuple[str, ...] = ()  # modules and parameters behind the last block

    def covers(self, name: str) -> bool:
        """Whether the parameter or module `name` belongs to this block."""
        return any(name == p or name.startswith(f"{p}.") for p in self.runs + self.finish)


@dataclass(frozen=True)
class Layout:
    """A model as stem, blocks and finish.

    `stem` maps normalised images to the input of the first block, `finish` the output of the last
    block's modules to the embedding; both are None if blocks take more than one input, so that the
    model cannot be cut between them. `first_token_block` maps the input of the last block to its
    first output token, if `finish` reads no other.
    """

    family: str  # cnn, vit or clip
    blocks: tuple[Block, ...]  # in the order in which they run
    stem: Run | None = None
    finish: Run | None = None
    first_token_block: Run | None = None

    def under(self, prefix: str) -> Layout:
        """The same layout for a module that holds this one as its attribute `prefix`."""
        blocks = tuple(
            Block(f"{prefix}.{b.name}", _under(prefix, b.runs), _under(prefix, b.finish))
            for b in self.blocks
        )
        return replace(self, blocks=blocks)

    def extended(self, finish: Run, *names: str) -> Layout:
        """The same layout followed by `finish`, which uses the modules or parameters `names`."""
        inner = self.finish
        last = replace(self.blocks[-1], finish=self.blocks[-1].finish + names)
        whole = None if inner is None else _chain(inner, finish)
        return replace(self, blocks=(*self.blocks[:-1], last), finish=whole)


def layout_of(model: nn.Module, *, pre_logits: bool = True) -> Layout | None:
    """Find the layout of a timm or open_clip image model by its class; None if it is unknown.

    `pre_logits` says whether the embedding is taken before the classifier layer: so in timm's
    models, except inside open_clip, where that layer may be the projection.
    """
    for kind in type(model).__mro__:
        reader = _READERS.get((kind.__module__.partition(".")[0], kind.__name__))
        if reader is not None:
            return reader(model, pre_logits)
        if "forward_features" in vars(kind) or "forward" in vars(kind):
            return None  # a forward pass of its own: the parent's layout need not hold
    return None


def _timm(
    m: Any,
    pre_logits: bool,
    family: str,
    steps: Sequence[tuple[str, bool]],
    finish: tuple[str, ...],
    stem: Run,
    before_head: Run | None = None,
) -> Layout:
    """Layout of a timm model: stem, steps, `before_head`, and ``forward_head`` with the pooling."""

    def end(x: Tensor) -> Tensor:
        x = before_head(x) if before_head else x
        return m.forward_head(x, pre_logits=pre_logits)

    return Layout(family, _blocks(steps, *finish), _led(stem, m, steps), end)


def _vit(m: Any, pre_logits: bool) -> Layout:
    def stem(x: Tensor) -> Tensor:
        return m.norm_pre(m.patch_drop(m._pos_embed(m.patch_embed(x))))

    finish = ("norm", "fc_norm", "attn_pool", "head")
    layout = _timm(m, pre_logits, "vit", _row("blocks", m.blocks), finish, stem, m.norm)
    # Without a class token the first token is a patch, and attention pooling reads all tokens.
    pools_first = m.global_pool == "token" and m.cls_token is not None and m.attn_pool is None
    pools_first &= type(m).__name__ == "VisionTransformer"  # a distilled one pools two tokens
    return replace(layout, first_token_block=for_first_token(m.blocks[-1]) if pools_first else None)


def _vit_with_shared_input(m: Any, pre_logits: bool) -> Layout:
    # Eva and Beit hand rotary or relative positions to every block beside the tokens. A cut would
    # have to cache these too, so only the names are known and the model runs in one piece.
    return Layout("vit", _blocks(_row("blocks", m.blocks), "norm", "fc_norm", "attn_pool", "head"))


def _resnet(m: Any, pre_logits: bool) -> Layout:
    # A stage's downsampling is the shortcut of its first block, hence inside that block.
    steps = _rows((f"layer{i}", getattr(m, f"layer{i}")) for i in range(1, 5))
    stem = _chain(m.conv1, m.bn1, m.act1, m.maxpool)
    return _timm(m, pre_logits, "cnn", steps, ("fc",), stem)


def _convnext(m: Any, pre_logits: bool) -> Layout:
    # The norm of the head follows the pooling; norm_pre, before it, is the identity in most models.
    steps = _staged("stages", m.stages)
    return _timm(m, pre_logits, "cnn", steps, ("norm_pre", "head"), m.stem, m.norm_pre)


def _swin(m: Any, pre_logits: bool) -> Layout:
    # Patch merging opens a stage: it belongs to the last block of the stage before.
    steps = _staged("layers", m.layers)
    return _timm(m, pre_logits, "vit", steps, ("norm", "head"), m.patch_embed, m.norm)


def _regnet(m: Any, pre_logits: bool) -> Layout:
    # Blocks are named b1, b2, ... within a stage; their shortcuts downsample, as in a ResNet.
    stages = [(f"s{i}", getattr(m, f"s{i}")) for i in range(1, 5)]
    steps = [(f"{path}.{name}", True) for path, stage in stages for name in stage._modules]
    return _timm(m, pre_logits, "cnn", steps, ("final_conv", "head"), m.stem, m.final_conv)


def _efficientnet(m: Any, pre_logits: bool) -> Layout:
    # conv_head widens the features before the pooling: part of the finish.
    finish = ("conv_head", "bn2", "classifier")
    stem, before_head = _chain(m.conv_stem, m.bn1), _chain(m.conv_head, m.bn2)
    return _timm(m, pre_logits, "cnn", _mobile_rows(m), finish, stem, before_head)


def _mobilenetv3(m: Any, pre_logits: bool) -> Layout:
    # Here conv_head follows the pooling, inside forward_head.
    finish = ("conv_head", "norm_head", "classifier")
    return _timm(m, pre_logits, "cnn", _mobile_rows(m), finish, _chain(m.conv_stem, m.bn1))


def _resnetv2(m: Any, pre_logits: bool) -> Layout:
    # Pre-activation: the last block ends without a norm, which follows here.
    steps = _rows((f"stages.{i}.blocks", stage.blocks) for i, stage in enumerate(m.stages))
    return _timm(m, pre_logits, "cnn", steps, ("norm", "head"), m.stem, m.norm)


def _staged_rows(m: Any, pre_logits: bool) -> Layout:
    steps = _rows((f"stages.{i}", stage) for i, stage in enumerate(m.stages))
    # NormFreeNet ends in an activation, ByobNet's final convolution has its own
    before_head = _chain(m.final_conv, m.final_act) if hasattr(m, "final_act") else m.final_conv
    return _timm(m, pre_logits, "cnn", steps, ("final_conv", "head"), m.stem, before_head)


def _mixer(m: Any, pre_logits: bool) -> Layout:
    steps = _row("blocks", m.blocks)
    return _timm(m, pre_logits, "vit", steps, ("norm", "head"), m.stem, m.norm)


def _clip_vit(m: Any, pre_logits: bool) -> Layout:
    def finish(x: Tensor) -> Tensor:
        pooled, _ = m._pool(x)
        return pooled if m.proj is None else pooled @ m.proj

    steps = _row("transformer.resblocks", m.transformer.resblocks)
    blocks = _blocks(steps, "attn_pool", "attn_pool_contrastive", "ln_post", "proj")
    if not getattr(m.transformer, "batch_first", False):
        # the transformer transposes to (n_tokens, n, dim) around its blocks: no cut between them
        return Layout("clip", blocks)
    pools_first = m.attn_pool is None and m.pool_type == "tok"
    first = for_first_token(m.transformer.resblocks[-1]) if pools_first else None
    return Layout("clip", blocks, m._embeds, finish, first)


def _clip_resnet(m: Any, pre_logits: bool) -> Layout:
    steps = _rows((f"layer{i}", getattr(m, f"layer{i}")) for i in range(1, 5))
    return Layout("clip", _blocks(steps, "attnpool"), m.stem, m.attnpool)


def _clip_timm(m: Any, pre_logits: bool) -> Layout | None:
    trunk = layout_of(m.trunk, pre_logits=False)
    if trunk is None:
        return None
    # the head is the projection into the space shared with the text tower
    return replace(trunk.under("trunk").extended(m.head, "head"), family="clip")


_READERS: dict[tuple[str, str], Callable[[Any, bool], Layout | None]] = {
    ("timm", "VisionTransformer"): _vit,
    ("timm", "VisionTransformerDistilled"): _vit,
    ("timm", "Eva"): _vit_with_shared_input,
    ("timm", "Beit"): _vit_with_shared_input,
    ("timm", "ResNet"): _resnet,
    ("timm", "ConvNeXt"): _convnext,
    ("timm", "SwinTransformer"): _swin,
    ("timm", "SwinTransformerV2"): _swin,
    ("timm", "RegNet"): _regnet,
    ("timm", "EfficientNet"): _efficientnet,
    ("timm", "MobileNetV3"): _mobilenetv3,
    ("timm", "ResNetV2"): _resnetv2,
    ("timm", "ByobNet"): _staged_rows,
    ("timm", "NormFreeNet"): _staged_rows,
    ("timm", "MlpMixer"): _mixer,
    ("open_clip", "VisionTransformer"): _clip_vit,
    ("open_clip", "ModifiedResNet"): _clip_resnet,
    ("open_clip", "TimmModel"): _clip_timm,
}


def _row(prefix: str, modules: Sequence[nn.Module]) -> list[tuple[str, bool]]:
    return [(f"{prefix}.{i}", True) for i in range(len(modules))]


def _rows(stages: Iterable[tuple[str, Any]]) -> list[tuple[str, bool]]:
    return [step for prefix, modules in stages for step in _row(prefix, modules)]


def _staged(prefix: str, stages: Sequence[Any]) -> list[tuple[str, bool]]:
    """Steps of stages that begin with a downsampling layer, which is not a block."""
    steps: list[tuple[str, bool]] = []
    for i, stage in enumerate(stages):
        steps.append((f"{prefix}.{i}.downsample", False))
        steps += _row(f"{prefix}.{i}.blocks", stage.blocks)
    return steps


def _mobile_rows(m: Any) -> list[tuple[str, bool]]:
    """Stages of MobileNets, where some steps are plain convolutions and not residual blocks."""
    return [
        (f"blocks.{i}.{j}", type(block).__name__ != "ConvBnAct")
        for i, stage in enumerate(m.blocks)
        for j, block in enumerate(stage)
    ]


def _blocks(steps: Iterable[tuple[str, bool]], *finish: str) -> tuple[Block, ...]:
    """Group steps (path, whether it is a block) into blocks, each with the steps behind it."""
    groups: list[list[str]] = []
    for path, is_block in steps:
        if is_block:
            groups.append([path])
        elif groups:
            groups[-1].append(path)
    blocks = [Block(group[0], tuple(group)) for group in groups]
    blocks[-1] = replace(blocks[-1], finish=finish)
    return tuple(blocks)


def _led(stem: Run, m: nn.Module, steps: Sequence[tuple[str, bool]]) -> Run:
    """Extend the stem by the steps that run before the first block."""
    return _chain(
        stem, *(m.get_submodule(path) for path, _ in takewhile(lambda s: not s[1], steps))
    )


def _under(prefix: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names)


def _chain(*functions: Run) -> Run:
    """One function after the other."""
    return lambda x: reduce(lambda y, function: function(y), functions, x)
