"""lightly-train's multi-label classification, with a frozen backbone or the whole network."""

import sys
from pathlib import Path

import lightly_train
import numpy as np
import pandas as pd
import timm

# lightly-train 0.18 would feed the 320 channels before MobileNetV2's last convolution to a head
# for the 1,280 after it. Without this method it takes the output of forward_features.
del timm.models.EfficientNet.forward_intermediates

EPOCHS = {"frozen": 10, "whole": 5}
RATES = {"frozen": 3e-3, "whole": 3e-4}  # the tool's default is for a whole network
BATCH = 16


def main():
    """Train on nine tenths, keep the best on the last tenth, score the test images."""
    catalogue, weights, part = sys.argv[1:]
    folder = Path(catalogue).parent
    table = pd.read_csv(catalogue, dtype=str, keep_default_na=False)
    table["path"] = [str(folder / path) for path in table["path"]]
    tags = sorted(set("|".join(table["tags"]).split("|")))
    test = table[table["split"] == "test"]
    train = table[table["split"] == "train"].sample(frac=1, random_state=0)
    held = len(train) // 10
    train[:held].to_csv("val.csv", index=False)
    train[held:].to_csv("train.csv", index=False)
    lightly_train.train_image_classification(
        out="out",
        model="timm/mobilenetv2_100",
        classification_task="multilabel",
        data={
            "train": "train.csv",
            "val": "val.csv",
            "classes": dict(enumerate(tags)),
            "csv_image_column": "path",
            "csv_label_column": "tags",
            "label_delimiter": "|",
        },
        steps=EPOCHS[part] * (len(train) - held) // BATCH,
        batch_size=BATCH,
        precision="32-true",
        model_args={
            "lr": RATES[part],
            "backbone_freeze": part == "frozen",
            "backbone_args": {
                "pretrained": True,
                "pretrained_cfg_overlay": {"file": weights},
                "pad_type": "same",
            },
        },
        transform_args={
            "image_size": (224, 224),
            "normalize": {"mean": (0.5,) * 3, "std": (0.5,) * 3},
        },
    )
    model = lightly_train.load_model("out/exported_models/exported_best.pt")
    scores = [model.predict(path, threshold=-1)["scores"].numpy() for path in test["path"]]
    np.savez(
        "scores.npz",
        image_ids=test["image_id"].to_numpy(str),
        tags=tags,
        scores=np.stack(scores),
        thresholds=np.full(len(tags), 0.5),
    )


if __name__ == "__main__":
    main()
