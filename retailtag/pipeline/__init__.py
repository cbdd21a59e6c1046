"""The stages that join the rooms on disk: extract, probe, finetune, score, bake-off."""
