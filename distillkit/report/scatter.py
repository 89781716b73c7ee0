"""Quality against cost as an SVG drawing in the colours of the page around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from distillkit.report.comparison import spread
from distillkit.report.curves import STYLE, axis, inline, ticks

COLOURS = {  # placeholders in the drawing, and the page's colours
    "#0a0b0c": "currentColor",
    "#0a0b0d": "var(--student)",
    "#0a0b0e": "var(--rule)",
    "#0a0b0f": "var(--teacher)",
    "#0a0b10": "var(--real)",
}
INK, STUDENT, RULE, TEACHER, REAL = COLOURS


class Dots(NamedTuple):
    """A group of runs: its name, its cost, and a value of each run [n]."""

    name: str
    cost: float
    values: np.ndarray


class Line(NamedTuple):
    """A teacher: its name, and its values [n] at costs [n]."""

    name: str
    costs: Sequence[float]
    values: Sequence[float]


class Level(NamedTuple):
    """A value without a cost, such as that of real data."""

    name: str
    value: float
    is_real: bool


def scatter(groups: Sequence[Dots], lines: Sequence[Line], levels: Sequence[Level], cost: str, value: str) -> str:
    """An inline SVG: a dot for each run, mean and standard deviation of each group, lines, levels.

    Axes are logarithmic where values are spread over more than a decade.

    Args:
        groups, lines, levels: what is drawn; values must be finite.
        cost, value: names of the axes.
    """
    x = [group.cost for group in groups] + [each for line in lines for each in line.costs]
    y = [each for part in (*groups, *lines) for each in part.values] + [level.value for level in levels]
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for values, of, name in ((x, "x", cost), (y, "y", value)):
            scale, limits = axis(np.array([min(values), max(values)]))
            axes.set(**{f"{of}scale": scale, f"{of}lim": limits})
            if len({*values}) > 1:
                ticks(getattr(axes, f"{of}axis"), scale, limits)
            else:
                axes.set(**{f"{of}ticks": values[:1]})
            getattr(axes, f"set_{of}label")(name, color=INK, parse_math=False)
        for level in levels:
            colour = REAL if level.is_real else TEACHER
            axes.axhline(level.value, color=colour, linewidth=1, linestyle=(0, (4, 3)))
            _say(axes, level.name, (1, level.value), (-2, 3), colour, xycoords=("axes fraction", "data"), ha="right")
        for line in lines:
            axes.plot(line.costs, line.values, color=TEACHER, linewidth=1.2, marker="o", markersize=4)
            _say(axes, line.name, (line.costs[0], line.values[0]), (7, 4), TEACHER)
        for group in groups:
            mean, std = spread(group.values)
            axes.plot([group.cost] * len(group.values), group.values, "o", color=STUDENT, markersize=5, alpha=0.5)
            if std is not None:
                axes.errorbar(group.cost, mean, std, color=STUDENT, marker="_", markersize=12, linewidth=1.4)
            _say(axes, group.name, (group.cost, mean), (9, -4), STUDENT, weight="bold")
        axes.grid(color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.tick_params(which="both", length=0, colors=INK)
        return inline(figure, COLOURS)


def _say(axes, text: str, at: tuple[float, float], beside: tuple[float, float], colour: str, **more: object) -> None:
    axes.annotate(text, at, beside, textcoords="offset points", color=colour, parse_math=False, **more)
