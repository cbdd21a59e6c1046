"""Probes on cached embeddings: every tag at every C, scored out of fold.

``solver`` fits logistic regressions; ``heads`` offers them and their rivals behind one interface;
``sweep`` scores every candidate on images that it was not fitted on, and ``choice`` takes one.
"""
