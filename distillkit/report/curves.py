"""Training curves as small SVG drawings in the colours of the page around them."""

import math
import re
from io import StringIO

import numpy as np
from matplotlib import rc_context
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

STYLE = {"svg.fonttype": "none", "svg.hashsalt": "distillkit", "font.size": 11}


def smooth(values: np.ndarray) -> np.ndarray:
    """A centred Gaussian mean over about a twentieth of the curve, without lag."""
    width = len(values) / 40
    reach = math.ceil(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    total = np.convolve(np.ones(len(values)), kernel)[reach:-reach]
    return np.convolve(values, kernel)[reach:-reach] / total


def axis(values: np.ndarray) -> tuple[str, tuple[float, float]]:
    """("log" or "linear", limits) of an axis: log for positive values over more than a decade.

    A few spikes do not set the limits.
    """
    low, high = np.quantile(values, (0.01, 0.99)) if len(values) > 50 else (values.min(), values.max())
    if values.min() > 0 and high > 10 * low:
        return "log", (low / 1.3, high * 1.3)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return "linear", (low - room, high + room)


def curve(steps: np.ndarray, values: np.ndarray, last_step: float) -> str:
    """An inline SVG in the page's colours: few points are marked, many are smoothed over raw ones.

    `last_step` is the end of the axis, so that all curves of a run can be read across.
    """
    ink, line, rule = "#0a0b0c", "#0a0b0d", "#0a0b0e"  # placeholders for the page's colours below
    with rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.1), layout="constrained")
        axes = figure.add_subplot()
        scale, limits = axis(values)
        axes.set_yscale(scale)
        axes.set_ylim(limits)
        axes.set_xlim(0, last_step * 1.03 or 1)
        if len(values) > 50:
            axes.plot(*thin(steps, values), color=line, linewidth=0.6, alpha=0.35)
            axes.plot(steps, smooth(values), color=line, linewidth=1.6)
        else:
            axes.plot(steps, values, color=line, linewidth=1.6, marker="o", markersize=3)
        axes.grid(axis="y", color=rule, linewidth=0.6)
        axes.spines[:].set_visible(False)
        axes.tick_params(which="both", length=0, colors=ink)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ticks(axes.yaxis, scale, limits)
        return inline(figure, {ink: "currentColor", line: "var(--line)", rule: "var(--rule)"})


def ticks(of: Axis, scale: str, limits: tuple[float, float]) -> None:
    """Set few ticks, of plain numbers."""
    if scale == "log":
        decades = math.log10(limits[1] / limits[0])
        of.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=6))
        of.set_major_formatter(FormatStrFormatter("%g"))
        of.set_minor_locator(NullLocator())
    else:
        of.set_major_locator(MaxNLocator(4))


def inline(figure: Figure, colours: dict[str, str]) -> str:
    """The figure as an SVG element for a page; `colours` are placeholders and the page's own."""
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text.getvalue(), flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:xlink)?|version|width|height)="[^"]*"', "", svg[svg.index("<svg") :], count=5)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for stand_in, colour in colours.items():
        svg = svg.replace(stand_in, colour)
    return svg


def thin(steps: np.ndarray, values: np.ndarray, bins: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """At most two points for each bin, its lowest and its highest, so that no spike is lost."""
    if len(values) <= 2 * bins:
        return steps, values
    keep = []
    for part in np.array_split(np.arange(len(values)), bins):
        keep += sorted({part[values[part].argmin()], part[values[part].argmax()]})
    return steps[keep], values[keep]
