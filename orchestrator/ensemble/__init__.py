"""Ensembles as trees: one walk that every driver uses, and the fitting of weights and thresholds."""
