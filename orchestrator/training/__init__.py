"""Training: one plain-torch loop, and Ray Train around it (`ray_train`, the only part that imports Ray)."""
