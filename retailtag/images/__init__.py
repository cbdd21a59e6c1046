"""Image bytes: where they are stored, and how they become RGB pixels."""
