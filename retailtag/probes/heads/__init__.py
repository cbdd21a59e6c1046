"""Heads of a probe: logistic regression, ridge, nearest neighbours, text prior."""
