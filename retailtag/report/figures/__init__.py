"""Figures of the report, one module each; drawn by matplotlib for the width of a layout."""
