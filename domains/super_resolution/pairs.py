"""Photographs and their observations in two folders, matched by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from distillkit.sources import Source, listed
from domains.super_resolution.photographs import SCALES, look, small

Size = Sequence[int]  # [W, H]


def matched(high: Source, low: Source, scale: int, crop: int) -> dict[tuple[Path, Path], tuple[Size, Size]]:
    """The sizes of each photograph and of its observation, by their two paths.

    Both have one name, or the observation has `x4` (the scale) behind it, as in DIV2K; suffixes
    such as .png do not count. Warnings name the files that are left out, with reasons.

    Raises:
        ValueError: no pair is left.
    """
    facts = high.facts(look) | low.facts(look)
    below, pairs, faults = by_name(low), {}, {}
    for name, paths in by_name(high).items():
        found = below.pop(name, []) + below.pop(f"{name}x{scale}", [])
        if len(paths) > 1 or len(found) != 1:
            said = listed([source.name(path) for source, files in ((high, paths), (low, found)) for path in files])
            faults |= dict.fromkeys(
                paths,
                f"its name is not that of one pair: {said}"
                if found
                else f"has no observation in {low.root}{hint(name, below)}",
            )
            continue
        (path,), (partner,) = paths, found
        sizes = facts[path]["size"], facts[partner]["size"]
        broken = facts[partner]["fault"] and f"its observation {low.name(partner)} {facts[partner]['fault']}"
        if (
            why := facts[path]["fault"]
            or broken
            or misfit(*sizes, scale)
            or small([scale * side for side in sizes[1]], crop)
        ):
            faults[path] = why
        else:
            pairs[path, partner] = sizes
    high.without(faults)
    low.without({path: f"belongs to no file in {high.root}" for paths in below.values() for path in paths})
    return pairs


def hint(name: str, observations: Mapping[str, Sequence[Path]]) -> str:
    """What helps a photograph whose observation has another scale behind its name."""
    other = next((scale for scale in SCALES if f"{name}x{scale}" in observations), None)
    return f" at this scale, but at {other}: say data.scale={other}" if other else ""


def by_name(source: Source) -> dict[str, list[Path]]:
    """The files of each name, without suffixes."""
    found: dict[str, list[Path]] = {}
    for path in source.files:
        found.setdefault(path.relative_to(source.root).with_suffix("").as_posix(), []).append(path)
    return found


def misfit(size: Size, low: Size, scale: int) -> str | None:
    """Why an observation cannot be of a photograph, or None.

    The photograph may have up to s - 1 pixels more than s times its observation.
    """
    if all(0 <= side - scale * short < scale for side, short in zip(size, low, strict=True)):
        return None
    (width, height), (w, h) = size, low
    return f"has {width} x {height} pixels, not {scale} times the {w} x {h} of its observation"
