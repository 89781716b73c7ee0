"""Points thinned by voxels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def thinned(points: Tensor, side: float = 0.1) -> Tensor:
    """The first of the points [n, 3] in each voxel, in their order.

    Args:
        points: metres, within 100 km of the origin.
        side: of a voxel, in metres.
    """
    x, y, z = (points.double() / side).floor().long().unbind(1)
    keys = ((x << 21) + y << 21) + z  # a sum is as unique as a union of bits while each is below 2^20
    _, first = np.unique(keys.numpy(), return_index=True)
    return points[torch.from_numpy(np.sort(first))]
