"""Signals that ask a run to stop: Ctrl-C, and those that queues send before they end a job."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# SLURM's --signal is USR1 by custom and USR2 for submitit; preemption is TERM, a lost terminal HUP
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
STOP = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
AGAIN = 1.0  # seconds; torchrun and terminals may each send the same signal to a process

Handler = Callable[[int, Any], Any]


def take(handler: Handler) -> dict[int, Any]:
    """Let the handler have the signals that are not ignored; returns their handlers before.

    Only the main thread can; elsewhere nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in STOP if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def give_back(before: dict[int, Any]) -> None:
    """Undo `take`."""
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """A context in which the handler has the signals."""
    before = take(handler)
    try:
        yield
    finally:
        give_back(before)
