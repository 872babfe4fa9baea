"""What a run tells, kept for tools that follow experiments: consumers of its events."""
