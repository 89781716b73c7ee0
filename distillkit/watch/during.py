"""What is measured at every validation, and what it means."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distillkit.watch.causes import Facts, Finding
from distillkit.watch.reference import Reference

BANDS = {"low": (0.0, 1 / 3), "middle": (1 / 3, 2 / 3), "high": (2 / 3, 1.0)}  # of the fake score's levels
MOST_NOISE = 1e6  # of a level without signal
ALIKE = 1e-6  # deviation of samples over their largest value: rounding


def measure(model: Any, reference: Reference) -> tuple[dict[str, float], Tensor]:
    """The facts of this moment and the product's samples.

    Those of `compare` with the target (the teacher's samples, or without one the data's), and

    - `moved`: distance from the first samples of the run, see `distance`.
    - `raw`: the same of the student without its average from the averaged one.
    - `fake_low`, `fake_middle`, `fake_high`: error of the fake score on noised samples of the
      student over the teacher's, in thirds of the levels that it is trained at.
    - `lag`: the largest of them.
    - `noise_from`, `noise_to`: the smallest and largest noise over signal of these levels.
    - `skipped_ROLE`: the share of the role's steps that were skipped.
    - `done`: the share of the run that has passed, 0 where its end is not known.
    """
    samples, target = reference.samples(model), reference.target
    facts: dict[str, float] = {}
    if varied(target):
        facts |= compare(samples, target, reference.cond)
        facts["moved"] = distance(samples, reference.first, target)
        if getattr(model, "ema", None) is not None:
            facts["raw"] = distance(reference.raw(model), samples, target)
    if hasattr(model, "fake_score") and hasattr(model, "rollout"):
        facts |= fake_errors(model, reference)
    for role, (_, total) in zip(model.roles, model.bad_steps.tolist(), strict=True):
        facts[f"skipped_{role}"] = total / max(1, model.updates_before(role, model.global_step))
    facts["done"] = model.done
    return facts, samples


def begin(reference: Reference) -> dict[str, float]:
    """The facts of the product's samples before the first step."""
    known = compare(reference.first, reference.target, reference.cond) if varied(reference.target) else {}
    return {**known, "done": 0.0}


def varied(target: Tensor | None) -> bool:
    """Whether there are samples [N, ...] to compare with; such that are all alike are no scale."""
    if target is None or not target.is_floating_point():
        return target is not None
    flat = target.double().flatten(1)
    return not deviation(flat) <= ALIKE * max(1e-6, float(flat.abs().max()))  # NaN is no reason not to look


def compare(samples: Tensor, target: Tensor, cond: dict[str, Tensor] | None = None) -> dict[str, float]:
    """How samples [N, ...] differ from those that they should be like.

    Of numbers:

    - `spread`: standard deviation about the mean sample over the target's.
    - `within`: the same about the mean of each class; left out without classes, and where most
      samples are alone in theirs.
    - `shift`: distance of the means in standard deviations of the target, less what chance makes.
    - `beyond`: share of values outside the target's range by more than a twentieth of it.

    Of tokens, `spread` is the effective number (exponential of the entropy) of pairs of neighbours
    over the target's, and `shift` the total variation between the frequencies of tokens.
    """
    if not target.is_floating_point():
        return compare_tokens(samples, target)
    own, other = samples.double().flatten(1), target.double().flatten(1)
    scale, num = deviation(other), len(own)
    chance = (float(own.var(0).mean()) + scale**2) / num
    apart = float((own.mean(0) - other.mean(0)).square().mean()) - chance
    low, high = float(other.min()), float(other.max())
    room = (high - low) / 20
    facts = {
        "spread": deviation(own) / scale,
        "shift": max(apart, 0.0) ** 0.5 / scale,
        "beyond": float(((own < low - room) | (own > high + room)).double().mean()),
    }
    groups = classes(cond or {})
    if groups is not None and 2 * len(inner := centred(other, groups)) >= num and deviation(inner) > scale / 1000:
        facts["within"] = deviation(centred(own, groups)) / deviation(inner)
    return facts


def compare_tokens(samples: Tensor, target: Tensor) -> dict[str, float]:
    """See `compare`."""
    states = int(max(samples.max(), target.max())) + 1
    own, other = (torch.bincount(x.long().flatten(), minlength=states).double() / x.numel() for x in (samples, target))
    return {
        "spread": variety(samples, states) / variety(target, states),
        "shift": float((own - other).abs().sum()) / 2,
    }


def variety(tokens: Tensor, states: int) -> float:
    """The effective number of different pairs of neighbours in tokens [N, L]."""
    pairs = tokens[:, :-1].long() * states + tokens[:, 1:].long()
    share = pairs.flatten().unique(return_counts=True)[1].double() / pairs.numel()
    return float((-(share * share.log()).sum()).exp())


def classes(cond: dict[str, Tensor]) -> Tensor | None:
    """The class of each sample over all categorical conditions, [N]; None if there are none."""
    names = [value.cpu() for value in cond.values() if value.ndim == 1 and not value.is_floating_point()]
    return torch.stack(names, 1).unique(dim=0, return_inverse=True)[1] if names else None


def centred(x: Tensor, groups: Tensor) -> Tensor:
    """x [N, D] less the mean of its group; groups of one are left out."""
    num = int(groups.max()) + 1
    count = torch.bincount(groups, minlength=num)
    mean = x.new_zeros(num, x.shape[1]).index_add_(0, groups, x) / count.clamp_min(1)[:, None]
    return (x - mean[groups])[count[groups] > 1]


def deviation(samples: Tensor) -> float:
    """The standard deviation of samples [N, D] about their mean, over all D; at least 1e-12."""
    return max(float(samples.var(0, unbiased=False).mean().sqrt()), 1e-12) if len(samples) else 1e-12


def distance(a: Tensor, b: Tensor, target: Tensor) -> float:
    """The root mean square distance of samples in the target's deviations.

    Of tokens it is the share that differs.
    """
    if not target.is_floating_point():
        return float((a != b).double().mean())
    return float((a.double() - b.double()).square().mean().sqrt()) / deviation(target.double().flatten(1))


@torch.no_grad()
def fake_errors(model: Any, reference: Reference) -> dict[str, float]:
    """Errors of fake score and teacher on the same noised samples of the student, see `measure`."""
    x_0, cond = model.rollout(reference.batch, "watch", step=model.num_steps - 1)
    if not set(model.fake_score.told) <= set(cond):
        return {}  # it is told what samples alone do not say
    process, facts, ratios = model.teacher.process, {}, []
    for name, (low, high) in BANDS.items():
        u = low + (high - low) * (torch.arange(len(x_0), device=x_0.device) + 0.5) / len(x_0)
        t = model.fake_times(u, process, model.done if model.fake_times.changes else None)
        ratios += process.ratio(t).double().clamp_max(MOST_NOISE).flatten().tolist()
        x_t = process.add_noise(x_0, model.randn(x_0.shape, f"watch {name}"), t)
        fake, teacher = (
            float((denoiser(x_t, t, cond) - x_0).square().mean())
            for denoiser in (model.fake_score, model.teacher.denoiser)
        )
        facts[f"fake_{name}"] = fake / max(teacher, 1e-20)
    facts["lag"] = max(facts[f"fake_{name}"] for name in BANDS)
    facts["noise_from"], facts["noise_to"] = min(ratios), max(ratios)
    return facts


# What the diagnosis asks of the facts; docs/read_your_curves.md has what healthy and broken runs
# measured.
LAGS = 0.97  # error of the fake score over the teacher's, in every band
NARROW, WIDE = 0.6, 1.5  # spread over the target's
OFF = 0.5  # shift of the mean, in standard deviations
MOVED = 0.5  # distance from the first samples; a student that has hardly begun tells nothing
WORSE, RUINED = 1.5, 10.0  # the same, lasting and at once: it began as the teacher
APART = 1.0  # distance of the student from its average, in standard deviations of the target
AWAY = 1.0  # shift of the mean that was not there at the start, in standard deviations
SKIPPED = 0.02  # share of a role's steps
FROZEN = 3.0  # distance of the student from its average over that of the average from its start
FALLEN = 0.5  # spread over the target's, and over the largest one so far
STRAYED = 0.2  # shift that was not there at the start, where the spread is further off too


def diagnose(history: list[Facts], model: Any) -> list[Finding]:
    """The causes that the facts of all validations so far show.

    Args:
        history: those of `begin`, then those of every `measure`, the newest last.
        model: the method; its `roles`, its `proof`, its `student` and its `gan` are read.
    """
    rules = (lagging, too_fast, frozen) if lawful(model) else ()
    found = [finding for rule in rules for finding in rule(history, model)]
    if found or any(rule(history[:end], model) for rule in rules for end in range(1, len(history))):
        return found  # what follows from a cause is none
    return diverged(history, model) or (collapsed(history, model) or strayed(history, model) if lawful(model) else [])


def lawful(model: Any) -> bool:
    """Whether the student's samples should have the teacher's law.

    Where one likely sample is sought for each condition, or a finished student is tuned, their
    spread and their mean are others.
    """
    network = getattr(getattr(model, "student", None), "network", None)
    return bool(model.proof) and not getattr(network, "blind", False)


def lasting(history: list[Facts], holds: Callable[[Facts], bool]) -> bool:
    """Whether it holds now and held at the validation before, or half of the run is over."""
    now = history[-1]
    return holds(now) and (now["done"] >= 0.5 or len(history) > 1 and holds(history[-2]))


def bands(facts: Facts) -> list[float]:
    """The fake score's errors in all bands, if it was measured."""
    return [facts[f"fake_{band}"] for band in BANDS if f"fake_{band}" in facts]


def unaware(facts: Facts) -> bool:
    """Whether the student has moved to where the teacher is not, and the fake score is as wrong.

    Where student and teacher have one law, the fake score is no better either.
    """
    fake = bands(facts)
    return bool(fake) and min(fake) > LAGS and max(fake) < WORSE and off(facts)


def misled(facts: Facts) -> bool:
    """Whether the student has moved to where the teacher is not, and the fake score is worse."""
    return WORSE <= max(bands(facts), default=0.0) < math.inf and off(facts)


def off(facts: Facts) -> bool:
    """Whether the student has moved, to samples that are unlike the teacher's."""
    return (
        math.isfinite(facts.get("spread", math.nan))
        and facts["moved"] > MOVED
        and (not NARROW < facts["spread"] < WIDE or facts.get("within", 1.0) < NARROW or facts["shift"] > OFF)
    )


def lagging(history: list[Facts], model: Any) -> list[Finding]:
    """The fake score does not know where the student is."""
    if not lasting(history, unaware):
        return []
    now, fake = history[-1], bands(history[-1])
    error = f"{min(fake):.2f} to {max(fake):.2f} of the teacher's error at noise {noises(now)}"
    return [Finding("lagging_fake_score", f"{error}, {place(now)}")]


def noises(facts: Facts) -> str:
    """The range of noise over signal in which the fake score was measured."""
    return f"{facts['noise_from']:.2g} to {facts['noise_to']:.2g}"


def place(facts: Facts) -> str:
    """Where the samples are that the fake score was asked about."""
    within = f" ({facts['within']:.3g} within classes)" if "within" in facts else ""
    return f"on samples with {facts['spread']:.3g} of its spread{within}, {facts['shift']:.3g} standard deviations away"


def too_fast(history: list[Facts], model: Any) -> list[Finding]:
    """The student strays from its average or its target, or the fake score from what it learns."""
    now = history[-1]
    worse = min(bands(now), default=0.0)
    if worse > RUINED or lasting(history, lambda facts: min(bands(facts), default=0.0) > WORSE):
        return [
            Finding(
                "high_rate", f"the fake score has {worse:.3g} times the teacher's error", "lower model.fake_score.lr"
            )
        ]
    if unaware(now):
        return []  # a student whose judge is blind strays at any rate
    if now.get("raw", 0.0) > APART:
        said = f"the student is {now['raw']:.3g} standard deviations from its own average"
        return [Finding("high_rate", said, slower(model))]
    began = max(AWAY, history[0].get("shift", 0.0))
    if lasting(history, lambda facts: facts.get("shift", 0.0) > began):
        return [Finding("high_rate", f"the mean has moved {now['shift']:.3g} standard deviations away", slower(model))]
    if lasting(history, misled):
        said = f"the fake score has up to {max(bands(now)):.3g} times the teacher's error, {place(now)}"
        return [Finding("high_rate", said, "lower model.student.lr or model.fake_score.lr")]
    return []


def slower(model: Any) -> str:
    """The mend for a student that strays; an adversarial loss may drive it at any rate."""
    return "lower model.student.lr, or model.gan" if getattr(model, "gan", 0.0) else ""


def frozen(history: list[Facts], model: Any) -> list[Finding]:
    """The average has hardly left its beginning, the student has."""
    now = history[-1]
    if now["done"] < 0.5 or not FROZEN * now.get("moved", math.inf) < now.get("raw", 0.0) < APART:
        return []
    return [Finding("long_ema", f"the student moved {now['raw'] / max(now['moved'], 1e-12):.3g} times as far")]


def diverged(history: list[Facts], model: Any) -> list[Finding]:
    """Samples are no numbers, steps are skipped, or the fake score's errors are no numbers."""
    now = history[-1]
    lost = {name for name, value in now.items() if not math.isfinite(value)}
    fake = lost & {"lag", *(f"fake_{band}" for band in BANDS)}
    if lost - fake:  # steps of other roles are skipped because of them
        return [Finding("diverged_role", "samples are no numbers", "lower model.student.lr")]
    role = max(model.roles, key=lambda role: now.get(f"skipped_{role}", 0.0))
    share, mend = now.get(f"skipped_{role}", 0.0), f"lower model.{role}.lr"
    if share > SKIPPED:
        return [Finding("diverged_role", f"{share:.0%} of the steps of {role} were skipped", mend)]
    return [Finding("diverged_role", "the fake score's error is infinite", "lower model.fake_score.lr")] if fake else []


def collapsed(history: list[Facts], model: Any) -> list[Finding]:
    """Samples that were apart are alike, for no cause that was known before."""
    for name, what in (("spread", "spread"), ("within", "spread within classes")):
        *before, now = [facts[name] for facts in history if name in facts] or [1.0]
        if now < FALLEN and now < FALLEN * (most := max(before, default=0.0)):
            said = f"the {what} has fallen to {now:.2f} of the target's, from {most:.2f}"
            return [Finding("high_rate", said, slower(model))]
    return []


def strayed(history: list[Facts], model: Any) -> list[Finding]:
    """Samples that are further from the target's than at the start, in mean and spread.

    With a fake score they are for a while on the way to it.
    """
    began, now = history[0], history[-1]
    if bands(now) or now["done"] < 0.5 or not {"spread", "shift"} <= began.keys() & now.keys():
        return []
    then, here = (abs(math.log(max(facts["spread"], 1e-12))) for facts in (began, now))
    if now["shift"] <= began["shift"] + STRAYED or here <= then:
        return []
    means = f"means {now['shift']:.3g} standard deviations away, at the start {began['shift']:.3g}"
    said = f"{means}; {now['spread']:.3g} of the target's spread, at the start {began['spread']:.3g}"
    return [Finding("high_rate", said, slower(model))]
