"""Servers that benchmarks/serving.py compares with: each as one would write it by hand."""
