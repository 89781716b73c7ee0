"""What is measured before the first step, from a batch and a few network passes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from distillkit.data import TensorData, column
from distillkit.devices import in_chunks
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.evaluation.metrics import nearest_distance
from distillkit.watch.causes import Finding
from distillkit.watch.likeness import Judge, deviation
from distillkit.watch.reference import Reference

OWN = 3.0  # healthy up to 6.7, but then no worse than a guess; broken from 3.1 on
OWN_NATS = 1.5  # healthy up to 1.0; tokens in another order from 1.7 on
GUESS = 1.1  # healthy up to 0.98; broken from 1.2 on
LEARNT = 0.9  # embedded teachers at most 0.8 at one of the levels; a new one 1.03
SCALE = 3.0  # healthy between 0.6 and 1.1
UNSCALED = 30.0  # healthy between 0.1 and 2.9 of the noise's; bytes for images 75
SAID = 1.05  # embedded teachers from 1.66 on; one of shuffled classes 0.99
KEPT = 0.1  # default runs of DMD below 1e-11
NOISE = 1e3  # DDPM's linear table ends at 157, a zero-SNR end is clamped at 1e6
REPEATED = 0.5  # embedded teachers from 0.93 on; one of 16 digits 0.34
MOST_NUMBERS = 2**26  # of training data among which the nearest are sought


@torch.no_grad()
def look(model: Any, data: Any, reference: Reference) -> tuple[dict[str, float], list[Finding]]:
    """The facts of data and teacher, and the causes of failure that they show.

    - `mean`, `std`, `low`, `high`: of the data in the space of the diffusion.
    - `own`, `guess`: the teacher's error on the data, see `Likeness`, at the level that tells most.
    - `null`, `wrong`: its error without and with wrong classes over that with the right ones.
    - `nearest`: distance of its samples to the nearest training data over that of held-out data.
    - `updates`: steps of the student, for each of its sampling steps where these take turns.
    - `kept`: the share of the first student in the average when the run ends.
    """
    facts, found = {}, []
    teacher = getattr(model, "teacher", None)
    real = encoded(model, data, reference)
    parts = [in_training(model, data), classes(model, data)]
    if real is not None and real.is_floating_point():
        parts.append(scale(model, real, reference.cond.get("mask")))
    if reference.teacher is not None:
        parts.append(start(model))
        judge = Judge(teacher, reference.unguided, reference.teacher_cond, data.batch_size)
        if real is not None:
            parts.append(alike(judge, real))
        parts.append(guidance(model, judge, judge.own if real is None else real))
        if real is not None:
            parts.append(repeated(reference, data))
    for more, causes in parts:
        facts |= more
        found += causes
    if any(finding.name == "memorised" for finding in found):  # copies of these data, so it was trained on them
        found = [finding for finding in found if finding.name != "unlike_data"]
    return facts, found


Part = tuple[dict[str, float], list[Finding]]


def encoded(model: Any, data: Any, reference: Reference) -> Tensor | None:
    """The reference's real samples in the space of the diffusion, on the CPU; None without any."""
    codec = getattr(getattr(model, "teacher", model), "codec", None)
    if reference.real is None or codec is None:
        return None
    return in_chunks(
        lambda rows: codec.encode({name: value[rows] for name, value in reference.shown.items()}),
        reference.num,
        data.batch_size,
    )


# Data and teacher


def alike(judge: Judge, real: Tensor) -> Part:
    """Whether the teacher was trained on such data."""
    levels, limit = judge.likeness(real), OWN if judge.gaussian else OWN_NATS
    most = max(levels, key=lambda level: min(level.own / limit, level.guess / GUESS))
    facts = {"own": most.own, "guess": most.guess}
    if most.own < limit or most.guess < GUESS:
        return facts, []
    if min(level.itself for level in levels) > LEARNT:
        return facts, [Finding("unconverged_teacher", "it is no better than a guess, on its own samples too")]
    said = f"its error on them is {most.own:.3g} times that on its own samples, and {most.guess:.3g} times a guess's"
    return facts, [Finding("unlike_data", said)]


def guidance(model: Any, judge: Judge, x_0: Tensor) -> Part:
    """Whether the teacher knows its classes, and their absence where it is guided.

    The error without classes does not tell an untrained branch: it was 1.5 times that with them,
    2.1 times with wrong ones. What teacher.yaml says does.
    """
    teacher, facts, found = judge.teacher, {}, []
    guides = getattr(model, "guides", getattr(model, "kappa", 1) != 1)
    if teacher.classes:
        facts["wrong"] = judge.gain(x_0, wrong(judge.cond, teacher.classes))
        facts["null"] = judge.gain(x_0, teacher.null_condition(judge.cond))
        if facts["wrong"] < SAID and facts["null"] < SAID:
            said = f"with wrong ones its error is {facts['wrong']:.3g} times that with the right ones"
            found.append(Finding("ignored_class", said))
    dropped = getattr(teacher, "drop", None)
    if guides and dropped == 0:
        found.append(Finding("untrained_null", "its teacher.yaml says drop: 0"))
    return facts, found


def wrong(cond: Cond, num_classes: dict[str, int]) -> Cond:
    """Conditions with other classes than theirs, where there are others."""
    generator, changed = torch.Generator().manual_seed(0), {}
    for name, num in num_classes.items():
        by = torch.randint(1, max(num, 2), cond[name].shape, generator=generator)
        changed[name] = (cond[name] + by.to(cond[name])) % num
    return {**cond, **changed}


def repeated(reference: Reference, data: Any) -> Part:
    """Whether the teacher's samples are copies of training data that are in memory."""
    real, made, train = reference.real, reference.teacher, data.train
    if not isinstance(train, TensorData) or reference.cond.keys() - data.classes:
        return {}, []
    known = train.tensors.get("data")
    if known is None or not known.is_floating_point() or known.numel() > MOST_NUMBERS or made.shape != real.shape:
        return {}, []
    known = known.flatten(1)
    there, _ = nearest_distance(real.cpu().flatten(1), known)
    near, _ = nearest_distance(made.flatten(1), known)
    if there <= 0:
        return {}, []
    facts, found = {"nearest": near / there}, []
    if facts["nearest"] < REPEATED:
        said = f"its samples are {facts['nearest']:.2g} times as far from training data as held-out data are"
        found.append(Finding("memorised", said))
    return facts, found


def start(model: Any) -> Part:
    """Whether the student's first step says anything at all."""
    times, denoiser = getattr(model, "step_times", None), model.teacher.denoiser
    if times is None or getattr(denoiser, "prediction", None) != "eps":
        return {}, []
    noise = float(denoiser.process.ratio(times[0]))
    if noise < NOISE:
        return {}, []
    lower = float(denoiser.process.from_ratio(torch.tensor(NOISE / 10, dtype=torch.float64)))
    return {}, [
        Finding("no_start", f"sigma / alpha = {noise:.2g} at {float(times[0]):.4g}", f"say model.t_init={lower:.3g}")
    ]


# Data alone


def scale(model: Any, real: Tensor, mask: Tensor | None) -> Part:
    """Whether the data have the scale that a new network, or new coordinates, count on."""
    mean = float(real.double().mean() if mask is None else real[mask.cpu()].double().mean())
    std = float(deviation(real - mean, mask)) if mask is not None else float(real.double().std())
    facts = {"mean": mean, "std": std, "low": float(real.min()), "high": float(real.max())}
    denoiser = getattr(model, "student", None) if not hasattr(model, "teacher") else None
    counted = getattr(model, "sd", getattr(denoiser, "sigma_data", None))
    if counted is None or std <= 0:
        return facts, []
    unit = isinstance(denoiser, Denoiser) and denoiser.prediction != "edm"
    off = abs(math.log(std / (1.0 if unit else counted)))
    if off < math.log(UNSCALED if unit else SCALE):
        return facts, []
    said = f"their deviation is {std:.3g}, " + ("the noise's is 1" if unit else f"sigma_data is {counted:.3g}")
    return facts, [Finding("wrong_scale", said, "scale the data" if unit else f"set model.sigma_data={std:.2g}")]


def classes(model: Any, data: Any) -> Part:
    """Whether a new network sees data of each of its classes; a student may be meant for some."""
    for name, num in () if hasattr(model, "teacher") else getattr(model, "classes", {}).items():
        known = column(data.train, name)
        if known is not None and (missing := sorted(set(range(num)) - set(known.flatten().tolist()))):
            shown = ", ".join(map(str, missing[:5])) + " ..." * (len(missing) > 5)
            return {}, [Finding("unseen_class", f"{name} {shown}")]
    return {}, []


# The run alone


def in_training(model: Any, data: Any) -> Part:
    """Whether the run is long enough for its student and for the average of it."""
    if "student" not in model.roles or model.total == math.inf:
        return {}, []
    trainer, total = model.trainer, model.updates_before("student", int(model.total))
    each = total // model.num_steps if getattr(model, "tells_steps", False) else total
    facts, found = {"updates": float(each)}, []
    if each < model.enough:
        found.append(Finding("few_updates", f"it makes {each}"))
    if model.ema is not None:
        batch = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        facts["kept"] = kept(total, batch, model.ema_halflife, model.ema_rampup)
        if each >= model.enough and facts["kept"] > KEPT:
            said = f"{100 * facts['kept']:.0f} % of it is the first student when the run ends"
            found.append(Finding("long_ema", said))
    return facts, found


def kept(updates: int, batch: int, halflife: float, rampup: float) -> float:
    """The share of the first student in its average after so many updates.

    It is `prod_n 2^(-B / min(halflife, rampup n B))`, see `Distiller.update_ema`.
    """
    seen = batch * torch.arange(1, updates + 1, dtype=torch.float64)
    halflives = (rampup * seen).clamp(1e-8, halflife)
    return float(torch.exp2(-(batch / halflives).sum()))
