"""Linear probes: every tag and every C over cached embeddings, and their thresholds."""
