"""Music: sounds [B, channels, samples] float32 in [-1, 1]."""
