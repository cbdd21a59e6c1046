"""Augmentation on batches of uint8 pixels."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad


def flip_and_shift(pixels: Tensor, generator: Generator, share: float = 1 / 16) -> Tensor:
    """Mirror half of the images and move all by up to `share` of their size.

    Parameters
    ----------
    pixels : Tensor of uint8, shape (n, 3, h, w)
    generator : torch.Generator
        On the CPU; the result is a function of its state alone.
    share : float
        Largest shift as a fraction of height and width; edges are repeated.

    Returns
    -------
    Tensor of uint8, shape (n, 3, h, w)
    """
    n, _, h, w = pixels.shape
    mirrored = torch.rand(n, generator=generator) < 0.5
    pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
    dy, dx = int(h * share), int(w * share)
    if dy == 0 and dx == 0:
        return pixels
    # Replication padding is not defined for integers; bytes are exact in float32.
    padded = pad(pixels.float(), (dx, dx, dy, dy), mode="replicate").to(torch.uint8)
    top = torch.randint(0, 2 * dy + 1, (n,), generator=generator)
    left = torch.randint(0, 2 * dx + 1, (n,), generator=generator)
    y = top[:, None] + torch.arange(h)
    x = left[:, None] + torch.arange(w)
    image = torch.arange(n)[:, None, None, None]
    channel = torch.arange(3)[None, :, None, None]
    return padded[image, channel, y[:, None, :, None], x[:, None, None, :]]
