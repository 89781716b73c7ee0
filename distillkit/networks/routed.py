"""Several networks as one: each sample goes to the network of its class or its noise level."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.networks.blocks import wanted
from distillkit.spec import Recorded


def dispatch(parts: Sequence[Callable], index: Tensor, *inputs: Any) -> Any:
    """Send every row through the part that `index` names; results keep the order of the rows.

    A part is called once, on all its rows in their order, and never without rows. The host reads
    one small tensor.

    Args:
        parts: functions of `inputs` that return a tensor with a row for each of theirs, or a
            list of such.
        index: int64 [B], in [0, number of parts).
        inputs: tensors [B, ...] and dicts of such.
    """
    counts = (index == torch.arange(len(parts), device=index.device)[:, None]).sum(1).tolist()
    if max(counts) == len(index):
        return parts[counts.index(max(counts))](*inputs)
    order = index.argsort(stable=True)
    own = zip(parts, order.split(counts), strict=True)
    outs = [part(*(_take(each, rows) for each in inputs)) for part, rows in own if len(rows)]
    back = order.argsort()
    if isinstance(outs[0], Tensor):
        return torch.cat(outs)[back]
    return [torch.cat(layer)[back] for layer in zip(*outs, strict=True)]


def _take(value: Any, rows: Tensor) -> Any:
    return {k: v[rows] for k, v in value.items()} if isinstance(value, dict) else value[rows]


class Routed(Recorded, nn.Module):
    """One network made of several, each for some classes or for some noise levels.

    Classes are those of multi-student distillation, noise levels those of phases. Every row belongs
    to exactly one part. By time, part 0 has the largest times; a time on an edge belongs to the
    part below it, whose segment begins there. By class, the null class belongs to part 0.

    Args:
        parts: the networks, `part(x, time, cond)`.
        by: `time`, or the name of a categorical condition.
        edges: by time, the `len(parts) - 1` decreasing network times between the parts.
        owner: by class, the index of the part of each class.
        only: the trained part; the others are frozen and stay in eval mode. None trains all.
    """

    def __init__(
        self,
        parts: list[nn.Module],
        by: str,
        edges: list[float] | None = None,
        owner: list[int] | None = None,
        only: int | None = None,
    ):
        super().__init__()
        if not parts:
            raise ValueError("a routed network needs at least one part, got none")
        given, other = ("edges", "owner") if by == "time" else ("owner", "edges")
        asked = {"edges": edges, "owner": owner}
        if asked[given] is None or asked[other] is not None:
            raise ValueError(f"a network routed by {by} needs {given} and no {other}, got {asked}")
        if edges is not None:
            checks.finite(edges=edges)
            if len(edges) != len(parts) - 1 or any(a <= b for a, b in pairwise(edges)):
                raise ValueError(f"{len(parts)} parts have {len(parts) - 1} falling edges between them, got {edges}")
        else:
            checks.whole(0, len(parts) - 1, "it is the number of a part", owner=owner)
        if only is not None:
            checks.whole(0, len(parts) - 1, "it is the number of a part", only=only)
        self.parts, self.by, self.edges, self.only = nn.ModuleList(parts), by, edges, only
        table = None if owner is None else torch.tensor([*owner, 0])  # the null class comes last
        self.register_buffer("owner", table, persistent=False)
        for name in ("centred", "feature_channels"):
            values = {getattr(part, name, None) for part in parts}
            if len(values) > 1:
                raise ValueError(f"the parts of a routed network must agree in {name}, got {values}")
            if None not in values:
                setattr(self, name, *values)
        self.train()

    def index(self, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The part of each row, int64 [B]."""
        if self.by != "time":
            return self.owner[wanted(cond, self.by)]
        return sum(((time <= edge).long() for edge in self.edges), torch.zeros_like(time, dtype=torch.int64))

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        out = dispatch(self.parts, self.index(time, cond), x, time, cond)
        if self.only is not None and self.training and torch.is_grad_enabled() and not out.requires_grad:
            # no row belongs to the trained part: the loss still has a gradient, zero
            out = out + 0 * next(self.parts[self.only].parameters()).sum()
        return out

    def merge(self) -> Routed:
        """Returns the same on plain networks, where parts are adapters."""
        parts = [part.merge() if hasattr(part, "merge") else part for part in self.parts]
        owner = None if self.owner is None else self.owner[:-1].tolist()
        return Routed(copy.deepcopy(parts), self.by, self.edges, owner, self.only)

    def check_context(self, cond: dict[str, Tensor]) -> None:
        """See `WithContext`: refuse classes without a part, and what a part refuses."""
        if self.owner is not None and bool((cond[self.by] >= len(self.owner)).any()):
            raise ValueError(f"cond[{self.by!r}] must hold classes up to {len(self.owner) - 1}, which belong to a part")
        for part in self.parts:
            if hasattr(part, "check_context"):
                part.check_context(cond)

    def features(self, x: Tensor, time: Tensor, cond: dict[str, Tensor], **options: Any) -> Any:
        """The features of each row's part."""
        calls = [partial(part.features, **options) for part in self.parts]
        return dispatch(calls, self.index(time, cond), x, time, cond)

    @property
    def embed(self) -> Embeds:
        """The embeddings of all parts, told together."""
        return Embeds([part.embed for part in self.parts])

    def train(self, mode: bool = True):
        """Set the mode; parts that are not trained are frozen again and stay in eval mode."""
        super().train(mode)
        for k, part in enumerate(self.parts):
            if self.only not in (None, k):
                part.requires_grad_(False).eval()
        return self


class Embeds:
    """The embeddings of several networks; all are told the same conditions."""

    def __init__(self, embeds: Sequence[nn.Module]):
        self.embeds = embeds

    def tell(self, name: str, **kind: Any) -> None:
        for embed in self.embeds:
            embed.tell(name, **kind)
