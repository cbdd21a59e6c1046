"""A fitted model, ready to run: load it, tag images, measure its latency."""
