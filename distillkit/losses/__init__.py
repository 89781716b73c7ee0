"""Losses as pure functions: tensors in, a scalar out; every stop-gradient is explicit."""
