"""Logistic regression for many tags and strengths at once: objective, solvers, fits."""
