"""Small statistics that probes, thresholds, fine-tuning and scoring share."""
