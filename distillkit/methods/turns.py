"""The turns of the roles: which role each optimiser step trains.

A role may join late. The answers are functions of the step, so nothing is stored to resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Rhythm(Protocol):
    """The settings of a role that say when it trains.

    Attributes:
        updates: the role's steps in one cycle, at least 1.
        start: the step of the run at which the role joins, at least 0.
    """

    updates: int
    start: int


class Turns:
    """A schedule in cycles: every role that has joined makes `updates` steps in a row.

    The roles follow each other in order of addition. The distinct starts cut the run into segments.
    A segment begins a new cycle, even where it cuts the previous one short.

    Args:
        roles: the rhythm of each role, in order of addition.
    """

    def __init__(self, roles: Mapping[str, Rhythm]):
        self.starts = {role: rhythm.start for role, rhythm in roles.items()}
        self.edges = sorted({0, *self.starts.values()})
        self.active = [{role: r.updates for role, r in roles.items() if r.start <= edge} for edge in self.edges]

    def role(self, step: int) -> str:
        """The role that trains in `step`, counted from 0.

        Raises:
            ValueError: every role starts after step 0.
        """
        active, made = self._segments(step + 1)[-1]
        position = (made - 1) % sum(active.values())
        for role, updates in active.items():
            position -= updates
            if position < 0:
                return role
        raise AssertionError

    def before(self, role: str, step: int) -> int:
        """The number of steps that `role` has made before `step`."""
        total = 0
        for active, made in self._segments(step):
            if role in active:
                cycle, own = sum(active.values()), active[role]
                ahead = sum(list(active.values())[: list(active).index(role)])
                total += made // cycle * own + min(max(made % cycle - ahead, 0), own)
        return total

    def cycle(self, step: int) -> int:
        """The index of the cycle of `step`, from 0; a cycle cut short by a start counts as one."""
        *past, (active, made) = self._segments(step + 1)
        return sum(-(-made // sum(active.values())) for active, made in past) + (made - 1) // sum(active.values())

    def _segments(self, step: int) -> list[tuple[dict[str, int], int]]:
        """The segments begun before `step`: their roles' updates, their steps before `step`."""
        if not self.active[0]:
            late = " and ".join(f"model.{role}.start={start}" for role, start in self.starts.items())
            raise ValueError(f"{late} would leave nobody to train at step 0: leave one of them at 0")
        ends = [*self.edges[1:], step]
        return [
            (active, min(end, step) - edge)
            for active, edge, end in zip(self.active, self.edges, ends, strict=True)
            if edge < step
        ]
