"""The photographs of a catalogue as a PyTorch data set, for the scripts that train by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import timm
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms

TO_INPUT = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
RESIZE = transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC)


class Photographs(Dataset):
    """Tensors of one split's photographs with their labels, by row."""

    def __init__(self, catalogue, split, augment=()):
        table = pd.read_csv(catalogue, dtype=str, keep_default_na=False)
        labels = table["tags"].str.get_dummies("|")
        self.tags = list(labels.columns)
        rows = table["split"] == split
        self.ids = table["image_id"][rows].to_numpy(str)
        self.paths = [Path(catalogue).parent / path for path in table["path"][rows]]
        self.labels = np.array(labels[rows], np.float32)
        self.transform = transforms.Compose([RESIZE, *augment, *TO_INPUT])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        with Image.open(self.paths[row]) as image:
            return self.transform(image.convert("RGB")), self.labels[row]


def mobilenet(weights, num_classes):
    """MobileNetV2 with local weights; without the last layer if `num_classes` is 0."""
    overlay = {"file": weights}
    return timm.create_model(
        "mobilenetv2_100",
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        num_classes=num_classes,
        pad_type="same",
    )
