"""An n-gram model of held-out text that judges samples; no diffusion model trained it."""

from __future__ import annotations

import torch
from torch import Tensor


class Judge:
    """An n-gram model with Witten and Bell's smoothing (IEEE Trans. Inf. Theory 37, 1991, C).

        p(w | h) = (count(h w) + types(h) p(w | h without its first symbol)) / (count(h) + types(h))

    where types(h) counts the different symbols seen after h; below the single symbol stands the
    uniform law. A symbol near the start of a sequence has only the history that is there.

    Args:
        tokens: text to count in, [N, d] int64 in 0 .. num_tokens - 1.
        num_tokens: S.
        order: n, symbols of the longest n-gram.
    """

    def __init__(self, tokens: Tensor, num_tokens: int, order: int = 5):
        if not 1 <= order <= tokens.shape[1]:
            raise ValueError(f"order must lie between 1 and the {tokens.shape[1]} symbols of a sequence, got {order}")
        self.num_tokens, self.order = num_tokens, order
        self._counts = []  # for n = 1, 2 ...: codes of the n-grams seen, their counts, and of their histories count and types
        for n in range(1, order + 1):
            grams, counts = codes(tokens, n, num_tokens).flatten().unique(return_counts=True)
            histories, where = (grams // num_tokens).unique(return_inverse=True)
            totals = torch.zeros_like(histories).index_add_(0, where, counts)
            self._counts.append(((grams, counts), (histories, totals), (histories, where.bincount())))

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log probability of each symbol given those before it, nats, [N, d] float64."""
        p = torch.full(tokens.shape, 1 / self.num_tokens, dtype=torch.float64, device=tokens.device)
        for n, tables in enumerate(self._counts, start=1):
            grams = codes(tokens, n, self.num_tokens)
            histories = grams // self.num_tokens
            seen, total, types = (
                _look_up(*table, keys).double()
                for table, keys in zip(tables, (grams, histories, histories), strict=True)
            )
            lower = p[:, n - 1 :]
            p[:, n - 1 :] = torch.where(total > 0, (seen + types * lower) / (total + types).clamp_min(1), lower)
        return p.log()


def codes(tokens: Tensor, n: int, num_tokens: int) -> Tensor:
    """Each n-gram as one number in base S, [N, d - n + 1]; `code // S` is its history."""
    if num_tokens**n >= 2**63:
        raise ValueError(f"{n}-grams of {num_tokens} symbols do not fit into 64 bits: use shorter ones")
    powers = num_tokens ** torch.arange(n - 1, -1, -1, device=tokens.device)
    return (tokens.unfold(1, n, 1) * powers).sum(-1)


def _look_up(keys: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """The value of each wanted key, 0 where it is not among the sorted keys."""
    place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return torch.where(keys[place] == wanted, values[place], 0)
