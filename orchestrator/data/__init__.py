"""Rows from files, cut into five seeded parts and kept in a memory-mapped cache."""
