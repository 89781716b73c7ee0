"""Video: [B, C, T, H, W] float32 in [-1, 1]."""
