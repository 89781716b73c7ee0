import torch
from torch import Tensor


def rings(points: Tensor) -> Tensor:
    return torch.zeros(len(points), dtype=torch.int64)
