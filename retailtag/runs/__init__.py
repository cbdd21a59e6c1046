"""Runs of a probe or a fine-tune: stages, artefacts and what they cost."""
