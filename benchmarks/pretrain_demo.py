"""Pretrain the three demo backbones on the source catalogue, on a CPU.

    python benchmarks/pretrain_demo.py cnn
    python benchmarks/pretrain_demo.py clip
    python benchmarks/pretrain_demo.py dino

Draws the source catalogue into memory (kept in a temporary file for the next run), trains,
writes float16 safetensors and appends a row to ``results/pretrain_demo.csv``. A checkpoint every
50 steps lets an interrupted run go on; the row says in how many sittings it was done.

Each takes under an hour on two cores. Where other work shares them, ``--threads 1`` is faster
than 2, whose barriers stall.
"""

from __future__ import annotations

import argparse
import copy
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import append, stamp
from safetensors.torch import save_file
from timm.layers import PatchDropout
from torch import Tensor, nn
from torch.nn import functional

from retailtag.allocator import keep_freed_memory
from retailtag.demo.drawing.source import CODE_SIZES, sample_source
from retailtag.demo.drawing.write import photographs
from retailtag.demo.networks import build_demo_model, packaged_weights, tokenise
from retailtag.demo.weights_file import pack

SIZE = 64
SHOTS = 2
CAPTIONS = 4
N_PRODUCTS = 20_000
SOURCE_SEED = 20_260
CHECKPOINT_EVERY = 50


@dataclass(frozen=True)
class Source:
    """The source catalogue in memory.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (n_products * SHOTS, 64, 64, 3)
        Photographs; those of a product lie together.
    codes : ndarray of int64, shape (n_products, n_codes)
        The store's codes.
    captions : list of str, n_products * CAPTIONS
        Sentences; those of a product lie together.
    """

    pixels: np.ndarray
    codes: np.ndarray
    captions: list[str]


@dataclass(frozen=True)
class Recipe:
    """How one backbone is trained.

    Parameters
    ----------
    steps, batch : int
        Optimiser steps, and images in one.
    lr, weight_decay : float
        Of AdamW; the rate rises over the first 8 % of the steps and falls as a cosine.
    """

    steps: int
    batch: int
    lr: float
    weight_decay: float


RECIPES = {
    "cnn": Recipe(steps=1100, batch=256, lr=3e-3, weight_decay=0.05),
    "clip": Recipe(steps=1600, batch=256, lr=1.2e-3, weight_decay=0.1),
    "dino": Recipe(steps=1300, batch=224, lr=1.5e-3, weight_decay=0.04),
}

Step = Callable[[int, np.random.Generator], Tensor]
Trained = tuple[nn.Module, Step, nn.Module, Callable[[int], None]]


def _draw_rows(seed: int, indices: Iterable[int]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw some source products: pixels, codes, captions."""
    pixels, codes, captions = [], [], []
    for index in indices:
        product = sample_source(seed, index, CAPTIONS)
        for picture in photographs(product.look, seed, index, SHOTS):
            small = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            pixels.append(np.asarray(small))
        codes.append(product.codes)
        captions.extend(product.captions)
    return np.stack(pixels), np.array(codes), captions


def draw_source(n_products: int, seed: int, workers: int) -> Source:
    """Draw the source catalogue, or read it back from the temporary folder."""
    cache = Path(tempfile.gettempdir()) / f"retailtag-source-{seed}-{n_products}.npz"
    if not cache.exists():
        chunks = [range(i, min(i + 100, n_products)) for i in range(0, n_products, 100)]
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            parts = list(pool.map(partial(_draw_rows, seed), chunks))
        pixels, codes, captions = zip(*parts, strict=True)
        whole = cache.with_suffix(".partial.npz")
        words = np.array([sentence for part in captions for sentence in part])
        np.savez(whole, pixels=np.concatenate(pixels), codes=np.concatenate(codes), words=words)
        whole.rename(cache)
    with np.load(cache) as found:
        return Source(found["pixels"], found["codes"], found["words"].tolist())


def views(
    pixels: np.ndarray,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float],
    jitter: float,
) -> Tensor:
    """Random crops of a batch, flipped and recoloured, all at once.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (n, 64, 64, 3)
        Pictures.
    size : int
        Side of the views.
    scale : tuple of two floats
        Smallest and largest share of the picture's area.
    jitter : float
        Standard deviation of brightness, contrast and saturation, as fractions.

    Returns
    -------
    Tensor, float32, shape (n, 3, size, size)
        Normalised with mean and standard deviation 0.5.
    """
    n = len(pixels)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    side = np.sqrt(rng.uniform(*scale, n))
    stretch = np.exp(rng.normal(0, 0.1, n))
    theta = np.zeros((n, 2, 3), dtype=np.float32)
    for axis, wanted in enumerate((side * stretch, side / stretch)):
        extent = np.minimum(wanted, 1)
        theta[:, axis, axis] = extent
        theta[:, axis, 2] = rng.uniform(-1, 1, n) * (1 - extent)
    theta[:, 0, 0] *= rng.choice([-1, 1], n)
    grid = functional.affine_grid(torch.from_numpy(theta), [n, 3, size, size], align_corners=False)
    x = functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    gain, offset, saturation = torch.from_numpy(rng.normal(0, jitter, (3, n, 1, 1, 1))).float()
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * (1 + saturation).clamp(min=0)
    return x * (1 + gain).clamp(min=0.2) + offset


def other_colours(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Turn the hue of four pictures in five at random, make one in five grey, change the contrast.

    Without it colour alone tells one product from another, and no shape is ever learned.

    Parameters
    ----------
    x : Tensor, float32, shape (n, 3, height, width)
        Normalised pictures.

    Returns
    -------
    Tensor, float32, same shape
    """
    n = len(x)
    angle = torch.from_numpy(rng.uniform(-math.pi, math.pi, n) * (rng.random(n) < 0.8)).float()
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    # Rodrigues' rotation about the grey axis (1, 1, 1).
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    turn = cos * torch.eye(3) + sin * across + (1 - cos) / 3
    grey = torch.from_numpy(rng.random(n) < 0.2)[:, None, None]
    turn = torch.where(grey, torch.full((3, 3), 1 / 3), turn)
    turned = torch.bmm(turn, x.flatten(2)).view_as(x)
    gain, offset = torch.from_numpy(rng.normal(0, 0.3, (2, n, 1, 1, 1))).float()
    mean = turned.mean(dim=(1, 2, 3), keepdim=True)
    return (turned - mean) * gain.exp() + mean + offset


def cnn_trainer(model: nn.Module, source: Source, recipe: Recipe) -> Trained:
    """Supervision by the store's codes: a softmax to each, their losses averaged."""
    model.to(memory_format=torch.channels_last)
    heads = nn.ModuleList(nn.Linear(model.dim, size) for size in CODE_SIZES.values())
    codes = torch.from_numpy(source.codes)

    def step(number: int, rng: np.random.Generator) -> Tensor:
        rows = rng.choice(len(source.pixels), recipe.batch, replace=False)
        x = views(source.pixels[rows], rng, SIZE, (0.5, 1.0), 0.12)
        features = model(x.to(memory_format=torch.channels_last))
        target = codes[rows // SHOTS]
        losses = [functional.cross_entropy(h(features), target[:, i]) for i, h in enumerate(heads)]
        return torch.stack(losses).mean()

    return nn.ModuleList([model, heads]), step, model, _nothing


def clip_trainer(model: nn.Module, source: Source, recipe: Recipe) -> Trained:
    """Contrast with captions (InfoNCE both ways), one photograph of each product a batch.

    Half of the patches are dropped until the last tenth of the steps, which halves the cost.

    References
    ----------
    Li, Fan, Hu, Feichtenhofer and He (2023), Scaling language-image pre-training via masking,
    CVPR.
    """
    pieces = tokenise(source.captions)

    def step(number: int, rng: np.random.Generator) -> Tensor:
        _drop_patches(model, 0.5 if number < 0.9 * recipe.steps else 0.0)
        products = rng.choice(len(source.codes), recipe.batch, replace=False)
        rows = products * SHOTS + rng.integers(0, SHOTS, recipe.batch)
        said = products * CAPTIONS + rng.integers(0, CAPTIONS, recipe.batch)
        image = functional.normalize(
            model(views(source.pixels[rows], rng, SIZE, (0.6, 1.0), 0.08)), dim=1
        )
        text = functional.normalize(model.text(pieces[said]), dim=1)
        logits = model.logit_scale.exp().clamp(max=100) * image.float() @ text.float().T
        target = torch.arange(recipe.batch)
        return (
            functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
        ) / 2

    return model, step, model, _nothing


def _drop_patches(model: nn.Module, share: float) -> None:
    model.trunk.patch_drop = PatchDropout(share) if share else nn.Identity()


class _DINOHead(nn.Module):
    """Projection to prototypes, dropped after pretraining."""

    def __init__(self, dim: int = 128, hidden: int = 512, n_prototypes: int = 1024) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, 128),
        )  # fmt: skip
        self.prototypes = nn.Parameter(torch.randn(n_prototypes, 128))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Unit projections (n, 128), and their cosines to the prototypes (n, n_prototypes)."""
        projected = functional.normalize(self.mlp(x), dim=1)
        return projected, projected @ functional.normalize(self.prototypes, dim=1).T


class _Branch(nn.Module):
    """A backbone with its head: class tokens, their projections and cosines to the prototypes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, _DINOHead()

    def forward(self, x: Tensor, drop: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        _drop_patches(self.model, drop)
        token = self.model.trunk(x)
        return token, *self.head(token)


@torch.no_grad()
def _assigned(cosines: Tensor, temperature: float = 0.05) -> Tensor:
    """Share the batch out evenly over the prototypes: three rounds of Sinkhorn and Knopp.

    Parameters
    ----------
    cosines : Tensor, float32, shape (n, n_prototypes)
        The teacher's.

    Returns
    -------
    Tensor, float32, shape (n, n_prototypes)
        Rows sum to 1; every prototype has about the same weight, so that none takes all.
    """
    shares = torch.exp((cosines - cosines.max()) / temperature)
    for _ in range(3):
        shares = shares / shares.sum(dim=0, keepdim=True)
        shares = shares / shares.sum(dim=1, keepdim=True)
    return shares


def _spread(embedding: Tensor) -> Tensor:
    """KoLeo: minus the mean log distance to the nearest neighbour, on the unit sphere."""
    unit = functional.normalize(embedding.float(), dim=1)
    nearest = (unit @ unit.T - 2 * torch.eye(len(unit))).argmax(dim=1)
    return -torch.log((unit - unit[nearest]).norm(dim=1) + 1e-4).mean()


def _contrast(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE both ways between the unit rows of two batches, (n, m) each."""
    logits, target = first.float() @ second.float().T / temperature, torch.arange(len(first))
    one, other = (
        functional.cross_entropy(logits, target),
        functional.cross_entropy(logits.T, target),
    )
    return (one + other) / 2


def dino_trainer(model: nn.Module, source: Source, recipe: Recipe) -> Trained:
    """Self-distillation: each view of a product agrees with the moving teacher's other view.

    As in DINO, with DINOv2's Sinkhorn centring and KoLeo. The two views are of the product's two
    photographs, so that scene and light are no clue, and `other_colours` takes away the colour.
    The prototypes alone are slow to leave what random weights give; the contrast of the batch
    (InfoNCE between the two views, as in MoCo v3) is added, with which features of shape come
    within a few hundred steps. Two savings make it affordable on a CPU: until the last tenth of
    the steps the student sees half of the patches, and the first three quarters use views of
    three quarters the side.

    References
    ----------
    Caron et al. (2021), Emerging properties in self-supervised vision transformers, ICCV.
    Oquab et al. (2024), DINOv2, TMLR. Chen, Xie and He (2021), An empirical study of training
    self-supervised vision transformers, ICCV.
    """
    student = _Branch(model)
    teacher = copy.deepcopy(student).requires_grad_(False)
    both = nn.ModuleList([student, teacher])

    def step(number: int, rng: np.random.Generator) -> Tensor:
        size = SIZE if number >= 0.75 * recipe.steps else 48
        first = SHOTS * rng.choice(len(source.codes), recipe.batch, replace=False)
        shots = [views(source.pixels[first + k], rng, size, (0.5, 1.0), 0.1) for k in (0, 1)]
        seen = torch.cat([other_colours(shot, rng) for shot in shots])
        with torch.no_grad():
            wanted = _assigned(teacher(seen)[2].float()).chunk(2)
        token, projected, cosines = student(seen, drop=0.5 if number < 0.9 * recipe.steps else 0.0)
        logs = [functional.log_softmax(view.float() / 0.1, dim=1) for view in cosines.chunk(2)]
        agreed = -sum((wanted[k] * logs[1 - k]).sum(1).mean() for k in (0, 1)) / 2
        spread = sum(_spread(half) for half in token.chunk(2))
        return agreed + 0.05 * spread + _contrast(*projected.chunk(2))

    @torch.no_grad()
    def follow(number: int) -> None:
        # The teacher moves ever more slowly: 0.98 at the start, 0.998 at the end.
        keep = 0.998 - 0.018 * (1 + math.cos(math.pi * number / recipe.steps)) / 2
        for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
            slow.lerp_(fast, 1 - keep)

    return both, step, teacher.model, follow


def _nothing(number: int) -> None:
    """What follows a step of a trainer without a teacher."""


TRAINERS = {"cnn": cnn_trainer, "clip": clip_trainer, "dino": dino_trainer}


def train(trained: Trained, recipe: Recipe, seed: int, checkpoint: Path) -> tuple[float, int]:
    """Run the steps, from the checkpoint if there is one.

    Returns
    -------
    seconds : float
        Of all steps, those before an interruption included.
    sittings : int
        1 if there was no interruption.
    """
    learner, step, _, follow = trained
    decayed = [p for p in learner.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in learner.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)
    done = {"number": 0, "seconds": 0.0, "sittings": 0}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        learner.load_state_dict(state["learner"])
        optimiser.load_state_dict(state["optimiser"])
        done = {key: state[key] for key in done}
    done["sittings"] += 1
    first, begun, before = done["number"], time.monotonic(), done["seconds"]
    learner.train()
    running = 0.0
    for number in range(first, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * _schedule(number / recipe.steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = step(number, np.random.default_rng([seed, number]))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(decayed + plain, 3.0)
        optimiser.step()
        follow(number)
        running = loss.item() if number == first else 0.95 * running + 0.05 * loss.item()
        done |= {"number": number + 1, "seconds": before + time.monotonic() - begun}
        if (number + 1) % CHECKPOINT_EVERY == 0:
            state = {"learner": learner.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save(state | done, checkpoint)
            seconds = done["seconds"]
            print(
                f"step {number + 1}/{recipe.steps} loss {running:.3f} {seconds:.0f} s", flush=True
            )
    return done["seconds"], done["sittings"]


def _schedule(progress: float) -> float:
    """Share of the peak rate: linear over the first 8 %, then a cosine down to 1 %."""
    if progress < 0.08:
        return (progress + 0.002) / 0.082
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (progress - 0.08) / 0.92)) / 2


def save(model: nn.Module, path: Path, captions: list[str]) -> None:
    """Write the weights; word pieces that no caption holds were never learned and become zero."""
    state = model.state_dict()
    if "text.pieces.weight" in state:
        pieces = state["text.pieces.weight"]
        seen = torch.zeros(len(pieces), dtype=torch.bool)
        seen[torch.unique(tokenise(captions))] = True
        pieces[~seen] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(pack(state), path)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")


def main() -> None:
    """Train one backbone, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(TRAINERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the recipe's)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--products", type=int, default=N_PRODUCTS)
    parser.add_argument("--out", type=Path, help="weights file (default: the packaged one)")
    given = parser.parse_args()
    begun = time.monotonic()
    source = draw_source(given.products, SOURCE_SEED, given.threads)
    print(f"source catalogue: {len(source.pixels)} images, {time.monotonic() - begun:.0f} s")
    keep_freed_memory()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    recipe = RECIPES[given.name]
    recipe = replace(recipe, steps=given.steps or recipe.steps)
    out = given.out or packaged_weights(given.name)
    model = build_demo_model(given.name, weights=None)
    for block in getattr(model.trunk, "blocks", []):
        block.attn.fused_attn = False  # on a CPU the plain product of matrices is twice as fast
    trained = TRAINERS[given.name](model, source, recipe)
    checkpoint = Path(tempfile.gettempdir()) / f"{out.stem}-{given.seed}-{recipe.steps}.pt"
    seconds, sittings = train(trained, recipe, given.seed, checkpoint)
    save(trained[2], out, source.captions)
    checkpoint.unlink(missing_ok=True)
    settings = {"backbone": given.name, "seed": given.seed, "products": given.products}
    cost = {"threads": given.threads, "training_s": round(seconds), "sittings": sittings}
    append("pretrain_demo.csv", [stamp() | settings | asdict(recipe) | cost])


if __name__ == "__main__":
    main()
