"""Retraining the last blocks of a backbone and a head that starts from the probe."""
