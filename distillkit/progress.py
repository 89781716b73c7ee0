"""Progress of activities beside training steps: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich import progress as bars
from rich.console import Console

from distillkit.runs import rank

# seconds until an activity's first plain line, and between two lines; short activities print none
FIRST, AGAIN = 3.0, 15.0
PAUSE = 0.25  # seconds between two updates of a terminal

plain = False  # whether terminals get lines too
_screen: bars.Progress | None = None  # the one display of a terminal, shared by all activities
_doing: list[Activity] = []  # outermost first
_next_line = 0.0
_many = 1  # processes that do what this one does


class Activity:
    """An activity that takes time, and how much of it is done.

    Args:
        what: its description for users.
        total: units of work; None if unknown.
    """

    def __init__(self, what: str, total: int | None):
        self.what, self.total, self.done = what, total, 0
        self.begun = self.shown = time.monotonic()
        self.spoken = False
        self.task: bars.TaskID | None = None

    def advance(self, units: int = 1) -> None:
        """Count `units` more as done, and show it if it is time to."""
        self.done += units
        now = time.monotonic()
        if rank() > 0 or now - self.shown < PAUSE:
            return
        self.shown = now
        if open_screen(transient=True):
            for each in _doing:
                each.draw(now)
        elif now >= _next_line and self.left(now) > FIRST:
            self.speak(now)

    def draw(self, now: float) -> None:
        """Update the bar, which is made when it is first drawn: short activities cost nothing."""
        if self.task is None:
            self.task = _screen.add_task(self.what, total=self.total, what="", speed="")
        _screen.update(self.task, completed=self.done, speed="  ".join(self.figures(now)), refresh=self is _doing[-1])

    def speak(self, now: float) -> None:
        """Print the activity's line."""
        global _next_line
        _next_line, _doing[0].spoken = now + AGAIN, True
        outer = _doing[: _doing.index(self)]
        around = [each.what + (f" ({each.done + 1} of {each.total})" if each.total else "") for each in outer]
        print(": ".join([*around, "  ".join([self.what, *self.figures(now)])]), flush=True)

    def figures(self, now: float) -> list[str]:
        """The share that is done, the time gone and the time left."""
        share = [f"{self.done / self.total:.0%}"] if self.total else []
        left = [f"{clock(self.left(now))} left"] if self.total and self.done else []
        return [*share, clock(now - self.begun), *left]

    def left(self, now: float) -> float:
        """Estimated seconds that are left; infinite if unknown."""
        if not self.total or not self.done:
            return float("inf")
        return (now - self.begun) * max(0.0, self.total / self.done - 1)


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Activity]:
    """The context of an activity: `with progress("evaluating", 5) as activity`.

    Call `activity.advance()` after each unit. Nested activities are shown together. In a terminal
    they are bars that go away when all is done; elsewhere lines, the first after 3 seconds, the
    next every 15, and the duration at the end.
    """
    with _going(what, total) as activity:
        if len(_doing) == 1 and open_screen(transient=True):
            activity.draw(activity.begun)
        yield activity


@contextmanager
def _going(what: str, total: int | None) -> Iterator[Activity]:
    global _next_line
    activity = Activity(what, total)
    if not _doing:
        _next_line = activity.begun + FIRST
    _doing.append(activity)
    try:
        yield activity
        if activity.spoken:
            print(f"{what}: done in {clock(time.monotonic() - activity.begun)}", flush=True)
    finally:
        _doing.remove(activity)
        if _screen is not None and activity.task is not None:
            _screen.remove_task(activity.task)
        if not _doing and _screen is not None and _screen.live.transient:
            close_screen()


def counted(what: str, total: int) -> Iterator[int]:
    """`range(total)` under `progress`."""
    with progress(what, total) as activity:
        for i in range(total):
            yield i
            activity.advance()


@contextmanager
def calls(what: str, network: Any, total: int) -> Iterator[Activity]:
    """`progress` that counts the samples through a network (a module) by itself, `total` in all."""
    with _going(what, total) as activity:
        counter = network.register_forward_hook(lambda module, inputs, output: activity.advance(len(output) * _many))
        try:
            yield activity
        finally:
            counter.remove()


@contextmanager
def counting_for(processes: int) -> Iterator[None]:
    """A context in which what `calls` counts is what each of so many processes does."""
    global _many
    before, _many = _many, processes
    try:
        yield
    finally:
        _many = before


def open_screen(transient: bool = False) -> bars.Progress | None:
    """The display of a terminal, which its opener closes; None if output goes elsewhere."""
    global _screen
    if _screen is None and not plain and rank() == 0 and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        _screen = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=None),
            bars.TextColumn("{task.fields[what]}", markup=False, style="cyan"),
            bars.TextColumn("{task.fields[speed]}", markup=False, style="dim"),
            console=Console(),
            auto_refresh=False,
            expand=True,
            transient=transient,
        )
        _screen.start()
    return _screen


def close_screen() -> None:
    global _screen
    if _screen is not None:
        _screen.stop()
        _screen = None


def clock(seconds: float) -> str:
    """A time that ticks: 0:07, 12:30, 1:02:03."""
    hour, minute, second = _parts(seconds)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def duration(seconds: float) -> str:
    """A duration in a text: 7 s, 12 min 30 s, 1 h 2 min 3 s."""
    parts = list(zip(_parts(seconds), ("h", "min", "s"), strict=True))
    first = next((i for i, (value, _) in enumerate(parts) if value), 2)
    return " ".join(f"{value} {unit}" for value, unit in parts[first:])


def _parts(seconds: float) -> tuple[int, int, int]:
    """Hours, minutes and seconds, rounded once."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    return *divmod(minutes, 60), second
