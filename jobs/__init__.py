"""Thin scripts for `ray job submit`; also `python -m jobs.<stage>`."""
