"""fastai's multi-label learner by its own recipe: one epoch of the head, four of the network."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, vision_learner

catalogue, weights = sys.argv[1:]
table = pd.read_csv(catalogue, dtype=str, keep_default_na=False)
train, test = table[table["split"] == "train"], table[table["split"] == "test"]
loaders = ImageDataLoaders.from_df(
    train,
    path=Path(catalogue).parent,
    fn_col="path",
    label_col="tags",
    label_delim="|",
    valid_pct=0.1,
    seed=0,
    item_tfms=Resize(224, method="squish"),
    batch_tfms=aug_transforms(),
    num_workers=2,
)
overlay = {"file": weights, "mean": (0.5,) * 3, "std": (0.5,) * 3}
learner = vision_learner(
    loaders, "mobilenetv2_100", pretrained_cfg_overlay=overlay, pad_type="same", path="."
)
learner.fine_tune(4)
scores, _ = learner.get_preds(dl=loaders.test_dl(test))
tags = list(loaders.vocab)
np.savez(
    "scores.npz",
    image_ids=test["image_id"].to_numpy(str),
    tags=tags,
    scores=scores.numpy(),
    thresholds=np.full(len(tags), 0.5),
)
