"""The comparison of new images with a reference: terminal tables, and a page."""
