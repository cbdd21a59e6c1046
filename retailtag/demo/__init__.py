"""The demo: a drawn catalogue and three small stand-in backbones."""
