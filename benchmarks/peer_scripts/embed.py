"""Embed all photographs with timm, for the scripts that fit a head on embeddings."""

import sys

import numpy as np
import torch
from photographs import Photographs, mobilenet
from torch.utils.data import DataLoader

catalogue, weights = sys.argv[1:]
model = mobilenet(weights, num_classes=0).eval()
found = {}
for split in ("train", "test"):
    photographs = Photographs(catalogue, split)
    loader = DataLoader(photographs, batch_size=64, num_workers=2)
    with torch.inference_mode():
        embeddings = torch.cat([model(images) for images, _ in loader]).numpy()
    found.update({f"X_{split}": embeddings, f"Y_{split}": photographs.labels})
np.savez("embeddings.npz", ids=photographs.ids, tags=photographs.tags, **found)
