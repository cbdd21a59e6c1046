"""The bake-off: every backbone and strategy, one scorer, one recommendation."""
