"""The winning model, ready to run: load, predict, measure."""
