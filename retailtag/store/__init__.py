"""Frozen embeddings in HDF5: identity, append, resume, verify."""
