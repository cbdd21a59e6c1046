"""Preprocessing beside the graph as JSON, and inside it as nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from retailtag.backbones.preprocess import Preprocess
from retailtag.errors import UsageError
from retailtag.images.decode import DECODE_POLICY

if TYPE_CHECKING:
    import onnx

OPSET = 20  # the first with GELU, which ONNX Runtime reads from 1.17 on
IR_VERSION = 10
IMAGE = "image"  # input of a graph that resizes
# Of 255: what a pixel may differ from retailtag's. ONNX Runtime has weights of 22 bits where
# PyTorch has 16, as Pillow has; see `retailtag.backbones.resize.scale`.
PIXEL_TOLERANCE = 2
_MODES = {"bilinear": "linear", "bicubic": "cubic"}

# Keys' cubic with a = -1/2, and at the border the weights that are left, normalised: the filters
# of Pillow and of PyTorch.
_RESIZE = (
    'Resize<mode="{mode}", antialias=1, cubic_coeff_a=-0.5, exclude_outside=1, '
    'coordinate_transformation_mode="half_pixel">'
)


def preprocessing_json(inputs: Mapping[str, Preprocess], in_graph: bool) -> dict[str, Any]:
    """Every rule from the bytes of an image to the inputs of the graph."""
    return {
        "decode": {**DECODE_POLICY, "mode": "RGB"},
        "in_graph": in_graph,
        "inputs": {name: _rule(p) for name, p in inputs.items()},
        "antialias": True,
        "layout": "uint8, batch x height x width x 3" if in_graph else "uint8, batch x 3 x h x w",
        "normalisation": "in the graph: (pixel / 255 - mean) / std",
    }


def _rule(p: Preprocess) -> dict[str, Any]:
    return {
        "size": list(p.size),  # height and width
        "mode": p.mode,
        "scaled": list(p.target),  # height and width that the mode scales to
        "interpolation": p.interpolation,
        "fill": list(p.fill),
        "crop": "centre",
    }


def with_resizing(model: onnx.ModelProto, inputs: Mapping[str, Preprocess]) -> onnx.ModelProto:
    """The model with resizing before it: uint8 images (batch, height, width, 3) of any one size.

    Raises `UsageError` where ONNX cannot express the resize rule.
    """
    import onnx
    from onnx import compose

    opset = next(i.version for i in model.opset_import if not i.domain)
    before = resizing_graph(inputs, opset, model.ir_version)
    before = compose.add_prefix(before, "resizing/", rename_inputs=False, rename_outputs=False)
    # Not compose.merge_models, which cannot hold models above 2 GiB
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    del whole.graph.input[:]
    whole.graph.input.extend(before.graph.input)
    del whole.graph.node[:]
    whole.graph.node.extend([*before.graph.node, *model.graph.node])
    return whole


def resizing_graph(
    inputs: Mapping[str, Preprocess], opset: int = OPSET, ir_version: int = IR_VERSION
) -> onnx.ModelProto:
    """Model from ``image`` to the inputs of a tagger's graph, uint8 (batch, 3, h, w)."""
    from onnx import parser

    for name, p in inputs.items():
        if p.interpolation not in _MODES:
            raise UsageError(
                f"--with-preprocessing: ONNX has no antialiased {p.interpolation} filter, which "
                f"the model's {name} need; leave the option out, and resize as "
                "preprocessing.json says."
            )
    outputs = [f"uint8[batch, 3, {p.size[0]}, {p.size[1]}] {name}" for name, p in inputs.items()]
    lines = [_SOURCE]
    for i, (name, p) in enumerate(inputs.items()):
        # Names of the nodes' outputs end in the number of the input.
        lines.append(_steps(p).replace("@", f"_{i}").replace("RESULT", name))
    text = (
        f'<ir_version: {ir_version}, opset_import: ["": {opset}]>\n'
        f"resizing (uint8[batch, height, width, 3] {IMAGE}) => ({', '.join(outputs)}) {{\n"
        + "\n".join(lines)
        + "\n}"
    )
    return parser.parse_model(text)


# Sides are pairs of height and width throughout.
_SOURCE = f"""
source = Transpose<perm=[0, 3, 1, 2]>({IMAGE})
images = Shape<start=0, end=2>(source)
sides = Shape<start=2, end=4>(source)
zero = Constant<value_ints=[0]>()
one = Constant<value_ints=[1]>()
two = Constant<value_ints=[2]>()
half = Constant<value=double[1] {{0.5}}>()
axes = Constant<value_ints=[2, 3]>()
of_height = Constant<value=bool[2] {{1, 0}}>()
"""
_SQUASH = """
wanted@ = Identity(target@)
"""
# `Preprocess._scaled`: the shorter side becomes the target, the longer one is truncated.
_SHORTEST_SQUARE = """
shorter@ = ReduceMin<keepdims=1>(sides)
times@ = Mul(sides, target@)
wanted@ = Div(times@, shorter@)
"""
# Otherwise both sides are divided by one ratio and rounded, halves to even.
_BY_RATIO = """
real@ = Cast<to=11>(sides)
real_target@ = Cast<to=11>(target@)
ratios@ = Div(real@, real_target@)
ratio@ = PICK<keepdims=1>(ratios@)
exact@ = Div(real@, ratio@)
rounded@ = Round(exact@)
wanted@ = Cast<to=7>(rounded@)
"""
# One side after the other: the height first where it loses over twice as much as the width.
_SCALE = """
new@ = Max(wanted@, one)
lost@ = Sub(sides, new@)
lost_h@, lost_w@ = Split<num_outputs=2>(lost@)
lost_w_at_least@ = Max(lost_w@, zero)
twice@ = Mul(lost_w_at_least@, two)
height_first@ = Greater(lost_h@, twice@)
comes_first@ = Equal(of_height, height_first@)
between@ = Where(comes_first@, new@, sides)
shape_between@ = Concat<axis=0>(images, between@)
shape@ = Concat<axis=0>(images, new@)
halfway@ = RESIZE(source, , , shape_between@)
scaled@ = RESIZE(halfway@, , , shape@)
"""
# `retailtag.backbones.resize.centre`: a border where the pixels are fewer, then the crop.
_PAD = """
lacking@ = Sub(size@, new@)
border@ = Max(lacking@, zero)
before@ = Div(border@, two)
after@ = Sub(border@, before@)
borders@ = Concat<axis=0>(zero, zero, before@, zero, zero, after@)
fill@ = Constant<value=uint8 {FILL}>()
bordered@ = Pad(scaled@, borders@, fill@)
"""
_NO_PAD = """
bordered@ = Identity(scaled@)
"""
_CROP = """
whole@ = Max(new@, size@)
over@ = Sub(whole@, size@)
real_over@ = Cast<to=11>(over@)
half_over@ = Mul(real_over@, half)
real_first@ = Round(half_over@)
first@ = Cast<to=7>(real_first@)
last@ = Add(first@, size@)
RESULT = Slice(bordered@, first@, last@, axes)
"""


def _steps(p: Preprocess) -> str:
    """Nodes of one rule, from ``source``, ``h`` and ``w`` to the pixels of an input."""
    if p.mode == "squash":
        scaled = _SQUASH
    elif p.mode == "shortest" and p.target[0] == p.target[1]:
        scaled = _SHORTEST_SQUARE
    else:
        scaled = _BY_RATIO.replace("PICK", "ReduceMin" if p.mode == "shortest" else "ReduceMax")
    sizes = "".join(
        f"\n{name}@ = Constant<value_ints={list(pair)}>()"
        for name, pair in (("size", p.size), ("target", p.target))
    )
    border = _PAD if p.mode == "longest" else _NO_PAD
    steps = sizes + scaled + _SCALE + border + _CROP
    resize = _RESIZE.format(mode=_MODES[p.interpolation])
    return steps.replace("RESIZE", resize).replace("FILL", str(p.fill[0]))
