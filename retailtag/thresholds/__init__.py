"""Decision thresholds: rules, the objective they are tuned for, and the choice among them."""
