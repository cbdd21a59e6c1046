"""Extraction: images in, frozen embeddings of each backbone in a feature store out."""
