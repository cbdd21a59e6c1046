"""Presentation of a bake-off: the decision, terminal tables, figures and one page.

Figures need matplotlib, which is imported when the first one is drawn.
"""
