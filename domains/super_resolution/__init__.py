"""Super-resolution: photographs of which a small version is known.

Batch keys: `data` [B, 3, sH, sW] float32 in [-1, 1], the photograph; `low` [B, 3, H, W] float32 in
[-1, 1], its observation, s times smaller and rounded to 8 bits.
"""
