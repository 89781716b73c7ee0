"""What is measured at every validation, and what it means."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from distillkit.watch.causes import Facts, Finding
from distillkit.watch.reference import Reference

BANDS = ((0.0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.0))  # of the levels at which the fake score is trained


def measure(model: Any, reference: Reference) -> tuple[dict[str, float], Tensor]:
    """The facts of this moment and the product's samples.

    - `spread`: standard deviation of the samples over the target's; `within` the same within
      classes.
    - `shift`: distance of the means, in standard deviations of the target.
    - `beyond`: share of values outside the range of the target's by more than a twentieth of it.
    - `moved`: root mean square distance from the first samples, in the target's deviations.
    - `raw`: the same of the student without its average from the averaged one.
    - `fake_low`, `fake_middle`, `fake_high`: error of the fake score on noised samples of the
      student over the teacher's, in thirds of the levels that it is trained at.
    """
    samples, target = reference.samples(model), reference.target
    facts: dict[str, float] = {}
    if target is not None and target.is_floating_point():
        own, other = samples.double().flatten(1), target.double().flatten(1)
        scale = deviation(other)
        facts["spread"] = deviation(own) / scale
        facts["shift"] = float((own.mean(0) - other.mean(0)).square().mean().sqrt()) / scale
        low, high = float(other.min()), float(other.max())
        room = (high - low) / 20
        facts["beyond"] = float(((own < low - room) | (own > high + room)).double().mean())
        facts["moved"] = distance(samples, reference.first) / scale
        if model.ema is not None:
            facts["raw"] = distance(reference.raw(model), samples) / scale
    if hasattr(model, "fake_score") and hasattr(model, "rollout"):
        facts |= fake_errors(model, reference)
    return facts, samples


def deviation(samples: Tensor) -> float:
    """The standard deviation of samples [N, D] about their mean, over all D; at least 1e-12."""
    return max(float(samples.var(0, unbiased=False).mean().sqrt()), 1e-12)


def distance(a: Tensor, b: Tensor) -> float:
    """The root mean square distance of samples."""
    return float((a.double() - b.double()).square().mean().sqrt())


@torch.no_grad()
def fake_errors(model: Any, reference: Reference) -> dict[str, float]:
    """The fake score's error over the teacher's on the same noised samples of the student."""
    x_0, cond = model.rollout(reference.batch, "watch")
    found = {}
    for name, (low, high) in zip(("low", "middle", "high"), BANDS, strict=True):
        u = low + (high - low) * (torch.arange(len(x_0), device=x_0.device) + 0.5) / len(x_0)
        t = model.fake_times(u, model.teacher.process, model.done if model.fake_times.changes else None)
        x_t = model.teacher.process.add_noise(x_0, model.randn(x_0.shape, f"watch {name}"), t)
        errors = [
            float((denoiser(x_t, t, cond) - x_0).square().mean())
            for denoiser in (model.fake_score, model.teacher.denoiser)
        ]
        found[f"fake_{name}"] = errors[0] / max(errors[1], 1e-20)
    return found


def diagnose(history: list[Facts], model: Any) -> list[Finding]:
    """The causes that the facts of all validations so far show, the newest last."""
    now, found = history[-1], []
    fake = [now[name] for name in ("fake_low", "fake_middle", "fake_high") if name in now]
    if fake and max(fake) > 0.97 and not 0.9 < now.get("spread", 1) < 1.1:
        found.append(Finding("lagging_fake_score", f"{max(fake):.2f} of the teacher's error"))
    if any(not math.isfinite(value) for value in now.values()):
        found.append(Finding("diverged_role", "its samples are no numbers"))
    return found
