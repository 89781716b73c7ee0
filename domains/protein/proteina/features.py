"""Features of Proteina's transformer: time, residues, pairs and fold classes.

B: chains, N: residues of the longest one, R: registers, D: `token_dim`, C: `dim_cond`,
P: `pair_repr_dim`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FOLDS = ("cath_c", "cath_a", "cath_t")  # conditions: class, architecture and topology of CATH


def time_embedding(tau: Tensor, width: int) -> Tensor:
    """Sines, then cosines of 2000 tau, at frequencies from 1 down to 1 / 2000.

    [B] to [B, width]; width is even.
    """
    steps = torch.arange(width // 2, device=tau.device, dtype=torch.float32)
    angles = 2000 * tau.float()[:, None] * torch.exp(-math.log(2000) / (width // 2 - 1) * steps)
    return torch.cat([angles.sin(), angles.cos()], -1)


def index_embedding(num: int, width: int, device: torch.device) -> Tensor:
    """Sines, then cosines of the residues' numbers 1 .. num, times pi / 2056^(2k / width).

    Returns [num, width].
    """
    steps = torch.arange(width // 2, device=device)
    angles = torch.arange(1, num + 1, device=device)[:, None] * math.pi / 2056 ** (2 * steps / width)
    return torch.cat([angles.sin(), angles.cos()], -1)


def distance_bins(x: Tensor, low: float, high: float, bins: int) -> Tensor:
    """The bin of each pair's distance, int64 [B, N, N].

    The first bin ends at `low`, the last begins at `high` (nm).
    """
    apart = (x[:, :, None] - x[:, None]).norm(dim=-1)
    return torch.bucketize(apart, torch.linspace(low, high, bins - 1, device=x.device, dtype=x.dtype))


def separation_bins(num: int, bins: int, device: torch.device) -> Tensor:
    """i - j, cut off at either side, as a bin, int64 [num, num]."""
    index = torch.arange(num, device=device)
    return (index[:, None] - index + bins // 2).clamp(0, bins - 1)


class FoldEmbedding(nn.Module):
    """Embeddings of class, architecture and topology side by side, [B, 1, 3 width].

    The last row of each table means none.
    """

    def __init__(self, sizes: Sequence[int], width: int):
        super().__init__()
        self.embedding_C, self.embedding_A, self.embedding_T = (nn.Embedding(num + 1, width) for num in sizes)

    def forward(self, cond: dict[str, Tensor], num: int, device: torch.device) -> Tensor:
        found = []
        for name, table in zip(FOLDS, (self.embedding_C, self.embedding_A, self.embedding_T), strict=True):
            none = torch.full((num,), table.num_embeddings - 1, device=device)
            found.append(table(cond.get(name, none)))
        return torch.cat(found, -1)[:, None]


class FeatureFactory(nn.Module):
    """A linear map of all features side by side; bins are one-hot, absent features are zero.

    Args:
        names: the features, in the order of the weight's columns.
        sizes: how many columns each has.
        out: channels of the result.
        norm: with a layer norm after it.
        folds: sizes of the three fold tables.
    """

    def __init__(self, names: Sequence[str], sizes: dict[str, int], out: int, norm: bool, folds: Sequence[int]):
        super().__init__()
        if unknown := sorted(set(names) - set(sizes)):
            raise ValueError(f"feature {unknown[0]!r} is not known here; known are {', '.join(sorted(sizes))}")
        self.names, self.sizes = tuple(names), [sizes[name] for name in names]
        self.feat_creators = nn.ModuleList(
            FoldEmbedding(folds, sizes[name] // 3) if name == "fold_emb" else nn.Identity() for name in names
        )
        self.linear_out = nn.Linear(sum(self.sizes), out, bias=False)
        self.ln_out = nn.LayerNorm(out) if norm else nn.Identity()

    def forward(self, known: dict[str, Tensor], cond: dict[str, Tensor]) -> Tensor:
        """known: numbers [B or 1, ..., size] or bins, int64 [B or 1, ...], by name."""
        out = known["x"].new_zeros((), dtype=self.linear_out.weight.dtype)
        for name, make, weight in zip(
            self.names, self.feat_creators, self.linear_out.weight.split(self.sizes, 1), strict=True
        ):
            value = known.get(name)
            if name == "fold_emb":
                value = make(cond, len(known["x"]), known["x"].device)
            if value is None:
                continue
            # a bin's column of the weight: the product with a one-hot vector that is never made
            out = out + (
                F.linear(value.to(weight.dtype), weight) if value.is_floating_point() else F.embedding(value, weight.T)
            )
        return self.ln_out(out)
