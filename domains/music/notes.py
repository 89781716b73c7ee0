"""Notes by their names."""

from __future__ import annotations

import re

SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}  # above C
SHIFTS = {"": 0, "#": 1, "s": 1, "b": -1}


def note(number: int) -> str:
    """The name of a MIDI number: A4 of 69, Cs3 of 49."""
    octave, above = divmod(number, 12)
    name, semitones = max((pair for pair in SEMITONES.items() if pair[1] <= above), key=lambda pair: pair[1])
    return f"{name}{'s' * (above - semitones)}{octave - 1}"


def midi(name: str, octave: int | None = None) -> int | None:
    """The MIDI number of a note such as A4 (69), C#3 or Cs3 (49), Db3; None if it is none.

    Args:
        name: of the note.
        octave: of a note whose name has none; None refuses it.
    """
    match = re.fullmatch(r"([A-Ga-g])([#sb]?)(-?\d{1,2})?", name)
    if match is None or (match[3] is None and octave is None):
        return None
    return 12 * (int(match[3] or octave) + 1) + SEMITONES[match[1].upper()] + SHIFTS[match[2]]
