"""Weights of an ONNX file under the names that they had in the exported model.

Exporters keep the names of most weights, but store those of dense layers transposed and without a
name. Such a tensor is named after the bias that is added to its product, or after the module that
the name of its node begins with. What could be read in two ways is refused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from retailtag.backbones.onnx_file import REMEDY, Node, read_graph
from retailtag.errors import DataError, named

_ANONYMOUS = re.compile(r"val_\d+|.*::.*|/.*", re.DOTALL)  # names that exporters make up


def read_onnx(path: Path) -> dict[str, Tensor]:
    """Tensors that the graph of an ONNX file uses, by their names in the exported model.

    Others are left out: an optimiser that folds batch norms may leave theirs behind. So are
    constants without a name. Raises `DataError` if the file is damaged, or a weight could be read
    in two ways.
    """
    tensors, nodes = read_graph(path)
    for node in nodes:  # exporters store equal tensors once, and name the others by such nodes
        if node.kind == "Identity" and node.inputs[:1] and node.inputs[0] in tensors:
            tensors.update(dict.fromkeys(node.outputs, tensors[node.inputs[0]]))
    used = {name for node in nodes if node.kind != "Identity" for name in node.inputs}
    tensors = {name: tensor for name, tensor in tensors.items() if name in used}
    found = _Dense(path, tensors, nodes).renamed()
    return {name: tensor for name, tensor in found.items() if not _ANONYMOUS.fullmatch(name)}


@dataclass(frozen=True)
class _Weight:
    """How one tensor is read: under which name, and whether transposed."""

    source: str
    name: str
    is_transposed: bool


class _Dense:
    """The dense layers of a graph."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], nodes: Sequence[Node]) -> None:
        self.path = path
        self.tensors = tensors
        self.nodes = nodes
        self.consumers: dict[str, list[Node]] = defaultdict(list)
        for node in nodes:
            for name in node.inputs:
                self.consumers[name].append(node)

    def renamed(self) -> dict[str, Tensor]:
        """All tensors, those of dense layers as PyTorch stores them: (outputs, inputs)."""
        weights: dict[str, _Weight] = {}
        for node in self.nodes:
            weight = self._weight(node)
            if weight is None:
                continue
            other = weights.setdefault(weight.name, weight)
            taken = weight.name != weight.source and weight.name in self.tensors
            if other != weight or taken:
                raise DataError(
                    f"{self.path} can be read in two ways: more than one tensor could be "
                    f"{named([weight.name])}, or one in two orientations; {REMEDY}."
                )
            weights[weight.name] = weight
        renamed = {weight.source for weight in weights.values()}
        found = {name: tensor for name, tensor in self.tensors.items() if name not in renamed}
        for name, weight in weights.items():
            tensor = self.tensors[weight.source]
            found[name] = tensor.T.contiguous() if weight.is_transposed else tensor
        return found

    def _weight(self, node: Node) -> _Weight | None:
        """The weight of a dense layer, x @ A or Gemm(x, A, bias); None for other nodes."""
        if node.kind not in ("MatMul", "Gemm") or len(node.inputs) < 2:
            return None
        source = node.inputs[1]
        tensor = self.tensors.get(source)
        if tensor is None or tensor.ndim != 2:
            return None
        is_transposed = node.kind == "MatMul" or not node.attributes.get("transB", 0)
        # A weight that kept its name is a layer's, which PyTorch stores as (outputs, inputs); a
        # parameter of another name is a plain factor, which is multiplied as it is.
        if source.endswith("weight"):
            return _Weight(source, source, is_transposed)
        name = self._name(node, tensor.shape[1 if is_transposed else 0])
        return _Weight(source, name, is_transposed) if name else None

    def _name(self, node: Node, n_outputs: int) -> str:
        """The name of a layer's weight by its bias or its node; empty if neither tells."""
        bias = self._bias(node, n_outputs)
        scope = _scope(node.name)
        if not bias:
            return f"{scope}.weight" if scope else ""
        if scope and scope != bias.rpartition(".")[0]:
            raise DataError(
                f"{self.path} can be read in two ways: the node {named([node.name])} adds the "
                f"bias {named([bias])}, which is another layer's; {REMEDY}."
            )
        return bias.removesuffix("bias") + "weight"

    def _bias(self, node: Node, n_outputs: int) -> str:
        """The parameter called bias that a node or the only node behind it adds; else empty."""
        names = node.inputs[2:3]
        if not names and node.outputs:
            behind = self.consumers[node.outputs[0]]
            if len(behind) == 1 and behind[0].kind == "Add":
                names = behind[0].inputs
        biases = [name for name in names if name.endswith("bias") and name in self.tensors]
        biases = [name for name in biases if self.tensors[name].shape == (n_outputs,)]
        return biases[0] if len(biases) == 1 else ""


def _scope(name: str) -> str:
    """Dotted path of the module that a node is in, by a name such as ``/a/b/b.0/MatMul``.

    A member of a sequence repeats the sequence's name, one of a list stands for both.

    Examples
    --------
    >>> _scope("/layer1/layer1.0/fc/MatMul"), _scope("/encoder/layer.0/fc/MatMul_1"), _scope("n12")
    ('layer1.0.fc', 'encoder.layer.0.fc', '')
    """
    if not name.startswith("/"):
        return ""
    parts: list[str] = []
    for part in name.split("/")[1:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)
