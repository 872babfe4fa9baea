"""The stages of a run in order, each skipped when its result is in the store."""
