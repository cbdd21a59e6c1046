"""The demo: a procedurally drawn catalogue and three small stand-in backbones."""
