"""LiDiff, a diffusion model of LiDAR scenes on sparse voxels, in plain PyTorch."""

from domains.lidar.lidiff.network import LiDiffNetwork
from domains.lidar.lidiff.teacher import LiDiff

__all__ = ["LiDiff", "LiDiffNetwork"]
