"""Heads of a probe behind one interface (``head``): logistic, ridge, knn and text prior."""
