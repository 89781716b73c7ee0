"""LiDAR: sparse scans of a scene, and the dense scene.

Batch keys: `data` [B, N, 3] float32, the scene's points in metres; `part` [B, n, 3] float32, those
of a partial scan. With `stage=range` images of ranges, see `range_data.py`.
"""
