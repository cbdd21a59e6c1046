"""Catalogues: images, tags, splits, and how they are read, checked, split and drawn."""
