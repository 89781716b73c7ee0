"""Callbacks of a run: progress, checkpoints, and the products at its end."""
