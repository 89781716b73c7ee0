"""Images: [B, C, H, W] float32 in [-1, 1]."""
