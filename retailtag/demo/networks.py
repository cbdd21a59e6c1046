"""Networks of the three demo backbones: tiny stand-ins, so that demo and tests run anywhere.

They are pretrained by ``benchmarks/pretrain_demo.py`` on the source catalogue of
`retailtag.demo.drawing.source`: a CNN supervised by a store's codes, a ViT by
self-distillation, and a ViT with a text tower by captions. None is a substitute for a
backbone trained on photographs.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from retailtag.demo.weights_file import unpack
from retailtag.errors import UsageError

N_BUCKETS = 4096
MAX_WORDS = 24
MAX_GRAMS = 12
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class DemoArchitecture:
    """What one of the demo backbones is.

    Parameters
    ----------
    name : str
        ``cnn``, ``dino`` or ``clip``.
    family : str
        How it was pretrained, in a few words.
    dim : int
        Length of its embedding.
    image_size : int
        Side of its square input, in pixels; the picture is squashed to it (bicubic,
        antialiased).
    mean, std : tuple of three floats
        Of the input's channels, after scaling to [0, 1].
    """

    name: str
    family: str
    dim: int
    image_size: int = 64
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


DEMO_ARCHITECTURES: dict[str, DemoArchitecture] = {
    "cnn": DemoArchitecture("cnn", "CNN, supervised", 192),
    "dino": DemoArchitecture("dino", "ViT, self-distilled (DINO)", 128),
    "clip": DemoArchitecture("clip", "ViT, contrastive with captions (CLIP)", 128),
}


class DemoCNN(nn.Module):
    """A ResNet of eight basic blocks; its embedding is the mean over the last feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = DEMO_ARCHITECTURES["cnn"].dim
        self.trunk = ResNet(
            BasicBlock,
            (2, 2, 2, 2),
            num_classes=0,
            channels=(24, 48, 96, 192),
            stem_type="deep",
            stem_width=12,
        )
        # At 64 pixels the usual stem, which divides by four, would lose the small marks.
        self.trunk.maxpool = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Embed normalised images, float (n, 3, 64, 64), as float (n, 192)."""
        embedding: Tensor = self.trunk(x)
        return embedding


def _vit() -> VisionTransformer:
    """A small ViT with early convolutions as patch embedding, which trains in far fewer steps.

    References
    ----------
    Xiao, Singh, Mintun, Darrell, Dollár and Girshick (2021), Early convolutions help
    transformers see better, NeurIPS.
    """
    vit = VisionTransformer(
        img_size=64,
        patch_size=8,
        embed_dim=128,
        depth=7,
        num_heads=4,
        num_classes=0,
        global_pool="token",
        dynamic_img_size=True,
    )
    vit.patch_embed.proj = _early_convolutions()
    return vit


def _early_convolutions() -> nn.Sequential:
    """Three strided convolutions instead of the single 8 x 8 one, with the same grid."""
    layers: list[nn.Module] = []
    for inside, outside in ((3, 32), (32, 64), (64, 128)):
        convolution = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outside), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(128, 128, 1))


class DemoDINO(nn.Module):
    """A ViT whose embedding is its class token, after the last norm."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = DEMO_ARCHITECTURES["dino"].dim
        self.trunk = _vit()

    def forward(self, x: Tensor) -> Tensor:
        """Embed normalised images, float (n, 3, 64, 64), as float (n, 128)."""
        embedding: Tensor = self.trunk(x)
        return embedding


class TextTower(nn.Module):
    """A two-layer transformer over words, each read as the mean of its hashed pieces.

    Notes
    -----
    A word is the mean of the vectors of itself and of its three-letter pieces
    (``<sneaker>``: ``<sn``, ``sne``, ...), as in fastText, so that a word never seen in
    training is read by its stem: "sneakers" near "sneaker".

    References
    ----------
    Bojanowski, Grave, Joulin and Mikolov (2017), Enriching word vectors with subword
    information, TACL 5.
    """

    def __init__(self, dim: int = 128) -> None:
        super().__init__()
        self.pieces = nn.EmbeddingBag(N_BUCKETS + 1, dim, mode="mean", padding_idx=N_BUCKETS)
        self.positions = nn.Parameter(0.02 * torch.randn(MAX_WORDS, dim))
        layer = nn.TransformerEncoderLayer(
            dim, 4, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, pieces: Tensor) -> Tensor:
        """Embed tokenised texts, int64 (n, 24, 12), as float (n, 128) in the joint space."""
        n_texts = len(pieces)
        words = self.pieces(pieces.flatten(0, 1)).view(n_texts, MAX_WORDS, -1)
        blank = (pieces == N_BUCKETS).all(dim=2)
        hidden = self.layers(words + self.positions, src_key_padding_mask=blank)
        kept = (~blank).unsqueeze(2)
        mean = (hidden * kept).sum(dim=1) / kept.sum(dim=1)
        embedding: Tensor = self.proj(self.norm(mean))
        return embedding

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts of any words, tag names included.

        Parameters
        ----------
        texts : sequence of str
            Such as ``"article: Sneakers"``; words after the 24th are not read.

        Returns
        -------
        Tensor, float32, shape (n_texts, 128)
            Not normalised; compare by cosine.
        """
        embedding: Tensor = self(tokenise(texts).to(self.positions.device))
        return embedding


def tokenise(texts: Sequence[str]) -> Tensor:
    """Hash texts to the pieces of their words.

    Parameters
    ----------
    texts : sequence of str
        Case and punctuation are ignored.

    Returns
    -------
    Tensor, int64, shape (n_texts, 24, 12)
        Buckets in 0-4095; 4096 pads. A text without words is read as one blank word.
    """
    rows = []
    for text in texts:
        words = _WORD.findall(text.lower())[:MAX_WORDS] or [""]
        blank = (N_BUCKETS,) * MAX_GRAMS
        rows.append([_pieces(word) for word in words] + [blank] * (MAX_WORDS - len(words)))
    return torch.tensor(rows, dtype=torch.int64)


@lru_cache(maxsize=65536)
def _pieces(word: str) -> tuple[int, ...]:
    """Buckets of a word and of its three-letter pieces, padded to 12."""
    marked = f"<{word}>"
    grams = [marked] + [marked[i : i + 3] for i in range(len(marked) - 2)]
    buckets = [zlib.crc32(gram.encode()) % N_BUCKETS for gram in grams[:MAX_GRAMS]]
    return tuple(buckets + [N_BUCKETS] * (MAX_GRAMS - len(buckets)))


class DemoCLIP(nn.Module):
    """A ViT and a text tower with a joint embedding space of 128 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = DEMO_ARCHITECTURES["clip"].dim
        self.trunk = _vit()
        self.proj = nn.Linear(128, self.dim, bias=False)
        self.text = TextTower(self.dim)
        # Multiplies the cosines in training; the exponential keeps it positive.
        self.logit_scale = nn.Parameter(torch.tensor(2.66))

    def forward(self, x: Tensor) -> Tensor:
        """Embed normalised images, float (n, 3, 64, 64), as float (n, 128), projected."""
        embedding: Tensor = self.proj(self.trunk(x))
        return embedding

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts as float32 (n_texts, 128); see `TextTower.encode_text`."""
        return self.text.encode_text(texts)


_CLASSES: dict[str, type[DemoCNN] | type[DemoDINO] | type[DemoCLIP]] = {
    "cnn": DemoCNN,
    "dino": DemoDINO,
    "clip": DemoCLIP,
}


def packaged_weights(name: str) -> Path:
    """Path of the packaged weights of a demo backbone.

    Parameters
    ----------
    name : str
        ``cnn``, ``dino`` or ``clip``.

    Returns
    -------
    Path
        A safetensors file, see `retailtag.demo.weights_file`.

    Raises
    ------
    UsageError
        If there is no demo backbone of that name.
    """
    if name not in DEMO_ARCHITECTURES:
        known = ", ".join(DEMO_ARCHITECTURES)
        raise UsageError(f"there is no demo backbone called {name!r}; choose from {known}")
    folder = resources.files("retailtag.demo") / "weights"
    return Path(str(folder / f"{name}.safetensors"))


def build_demo_model(
    name: str, *, weights: Path | str | None = "packaged"
) -> DemoCNN | DemoDINO | DemoCLIP:
    """Build a demo backbone.

    Parameters
    ----------
    name : str
        ``cnn``, ``dino`` or ``clip``.
    weights : Path or str, optional
        ``"packaged"``, a safetensors file, or None for random weights from torch's global
        generator.

    Returns
    -------
    module
        In evaluation mode, float32. It has ``trunk`` (the timm ResNet or
        VisionTransformer), ``dim``, and for ``clip`` also ``proj`` and ``text``.

    Raises
    ------
    UsageError
        If there is no demo backbone of that name.
    """
    packaged = packaged_weights(name)
    model = _CLASSES[name]()
    if weights is not None:
        state = load_file(packaged if weights == "packaged" else Path(weights))
        model.load_state_dict(unpack(state, model.state_dict()))
    return model.eval()
