"""A training script of the usual kind: timm, binary cross-entropy, Adam, threshold 0.5."""

import sys

import numpy as np
import torch
from photographs import Photographs, mobilenet
from torch.utils.data import DataLoader
from torchvision import transforms

EPOCHS = 5

catalogue, weights = sys.argv[1:]
torch.manual_seed(0)
train = Photographs(catalogue, "train", augment=[transforms.RandomHorizontalFlip()])
test = Photographs(catalogue, "test")
model = mobilenet(weights, num_classes=len(train.tags))
optimizer = torch.optim.Adam(model.parameters())
criterion = torch.nn.BCEWithLogitsLoss()
for epoch in range(EPOCHS):
    model.train()
    total = 0.0
    for images, labels in DataLoader(
        train, batch_size=32, shuffle=True, drop_last=True, num_workers=2
    ):
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    print(f"epoch {epoch + 1} of {EPOCHS}: loss {total / (len(train) // 32):.4f}", flush=True)

model.eval()
with torch.inference_mode():
    loader = DataLoader(test, batch_size=64, num_workers=2)
    scores = torch.cat([model(images).sigmoid() for images, _ in loader]).numpy()
halves = np.full(len(test.tags), 0.5)
np.savez("scores.npz", image_ids=test.ids, tags=test.tags, scores=scores, thresholds=halves)
