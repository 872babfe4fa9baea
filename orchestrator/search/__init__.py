"""The search: which plan gives the fastest variant that keeps the promise."""
