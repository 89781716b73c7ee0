"""Losses as pure functions: tensors in, a scalar out. Every stop-gradient is visible."""
