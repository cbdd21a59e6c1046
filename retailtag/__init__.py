"""Find which pretrained backbone, and linear probe or fine-tune, for a long-tailed tag taxonomy."""

__version__ = "0.1.0"
