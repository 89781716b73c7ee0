"""What the teacher's own samples say of it, beside real ones."""

from __future__ import annotations

from typing import Any

from distillkit.watch.causes import Facts, Finding
from distillkit.watch.during import compare, lawful, varied
from distillkit.watch.reference import Reference, decoded

# Teachers of the domains, with 16 to 512 samples: spread 0.67 to 1.01, shift up to 0.26, beyond up
# to 0.003. Guided with kappa 8 to 30: beyond 0.034 to 0.38; with kappa 2 to 4 at most 0.001.
BEYOND = 0.02  # share of values outside the range of real ones
SPREADS = (0.5, 1.5)  # standard deviation over that of real samples
SHIFT = 0.5  # distance of the means, in standard deviations


def doubt(model: Any, reference: Reference) -> tuple[dict[str, float], list[Finding]]:
    """The facts of the teacher's samples against real ones, named `teacher_...`, and causes.

    Where guided samples are no good, those without guidance tell whether guidance or the teacher is
    to blame. A teacher whose data are not at hand is not judged.

    Args:
        model: the method.
        reference: samples; see `during.compare` for what is compared.
    """
    teacher, real = reference.teacher, reference.real
    if teacher is None or not varied(real) or not real.is_floating_point() or real.shape != teacher.shape:
        return {}, []
    facts, kappa = compare(teacher, real, reference.cond), getattr(model, "kappa", 1.0)
    found = [Finding("unconverged_teacher", evidence(facts))] if poor(facts) else []
    if found and kappa != 1 and not poor(unguided(model, reference)):
        # scenes are sought where guidance points, whose samples nobody draws
        found = [] if not lawful(model) else [Finding("over_guided", f"kappa {kappa:g}: {evidence(facts)}")]
    return {f"teacher_{name}": value for name, value in facts.items()}, found


def unguided(model: Any, reference: Reference) -> Facts:
    """The facts of the teacher's samples without guidance, which are fewer."""
    num = len(reference.unguided)
    cond = {name: value[:num] for name, value in reference.teacher_cond.items()}
    return compare(decoded(model.teacher, reference.unguided, cond), reference.real[:num], cond)


def poor(facts: Facts) -> bool:
    """Whether samples are far from real ones."""
    low, high = SPREADS
    return facts["beyond"] > BEYOND or not low < facts["spread"] < high or facts["shift"] > SHIFT


def evidence(facts: Facts) -> str:
    """What was measured, in words."""
    return (
        f"its samples have {facts['spread']:.3g} of real ones' spread, means {facts['shift']:.3g} standard deviations "
        f"away and {facts['beyond']:.0%} of values beyond their range"
    )
