"""Releases of served names: followed, tried beside each other, learned from labels. No HTTP."""
