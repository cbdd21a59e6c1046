"""Whether new images differ from a reference, in what, and what to do about it."""
