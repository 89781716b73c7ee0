"""ResShift (arXiv 2307.12348) from its released files."""

from domains.super_resolution.resshift.autoencoder import VQModelTorch
from domains.super_resolution.resshift.files import read_config, read_state
from domains.super_resolution.resshift.network import UNetModelSwin
from domains.super_resolution.resshift.teacher import VQ, ResShiftTeacher

__all__ = ["VQ", "ResShiftTeacher", "UNetModelSwin", "VQModelTorch", "read_config", "read_state"]
