"""The precision of frozen weights; what is trained has at least float32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

Dtype = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def cast(network: nn.Module, dtype: Dtype) -> nn.Module:
    """Casts a network's parameters in place, and returns it; those in float64 stay.

    Buffers stay as they are: they are tables of places and levels.
    """
    for parameter in network.parameters():
        if parameter.dtype in (torch.float16, *DTYPES.values()):
            parameter.data = parameter.data.to(DTYPES[dtype])
    return network
