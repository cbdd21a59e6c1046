"""retailtag: a fine-tune of the last blocks from its probe, with default settings."""

import shutil
import sys

import retailtag as rt

MODEL = "timm:mobilenetv2_100?crop_mode=squash&crop_pct=1&mean=0.5&pad_type=same&size=224&std=0.5"

catalogue, weights = sys.argv[1:]
rt.extract(catalogue, MODEL, weights=[weights])
probe = rt.probe(catalogue, MODEL, weights=[weights])
tuned = rt.finetune(catalogue, MODEL, weights=[weights], probe=probe)
shutil.copyfile(tuned.folder / "predictions.npz", "scores.npz")
