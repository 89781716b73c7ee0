"""Fits of learned samplers: score statistics matched to the teacher's, and LSD's regression.

States of the teacher's process at time t are its clean samples, noised to t, so no run of many
steps has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distillkit.diffusion.denoiser import Cond
from distillkit.discrete.denoiser import DiscreteDenoiser, Reading
from distillkit.discrete.learned import LearnedSampler, LearnedStep
from distillkit.discrete.noise import Draws, Noise, hitting
from distillkit.discrete.process import Absorbing
from distillkit.discrete.sampling import Step, plan

POWERS = (0.5, 3.0)


def sharpness(reading: Reading) -> Tensor:
    """The statistic that mean matching matches: how sure the model is of each state, [B].

    - Absorbing noise: the sum over masked positions of `log sum_y pi(y)^2`.
    - Uniform noise: the sum over positions of the log of the exit score `sum_y s(y)`, y not the
      current token; it is low for a likely sample.
    """
    process, total = reading.process, torch.zeros(len(reading), dtype=torch.float64, device=reading.x.device)
    for where in reading.movable():
        some = reading[where]
        log_score = some.log_score()
        moves = log_score.masked_fill(process.jumps(some.x, log_score.dtype) == 0, -torch.inf)
        exit_score = moves.logsumexp(-1)
        each = (2 * moves).logsumexp(-1) - 2 * exit_score if isinstance(process, Absorbing) else exit_score
        total.index_add_(0, where[0], each.double())
    return total


def matching_power(after: Callable[[float], Tensor], target: Tensor, rounds: int = 8) -> float:
    """The power within `POWERS` that gives `after(power)` [B] the mean of `target` [B].

    It is found by bisection of its logarithm; eight rounds leave an error of 0.4 %. It is 1 if the
    plain step's own mean is within a standard error of the target's, or if the statistic does not
    react to the power (two standard errors), and the nearer end if the target is out of reach.
    """

    def far(gap: Tensor, errors: float) -> bool:
        error = float(gap.std()) / len(gap) ** 0.5 if len(gap) > 1 else 0.0
        return abs(float(gap.mean())) > errors * error

    low, high = POWERS
    first, last = after(low), after(high)
    if not far(last - first, 2) or not far(after(1.0) - target, 1):
        return 1.0
    gap_low, gap_high = float((first - target).mean()), float((last - target).mean())
    if gap_low * gap_high > 0:
        return low if abs(gap_low) < abs(gap_high) else high
    for _ in range(rounds):
        middle = (low * high) ** 0.5
        if float((after(middle) - target).mean()) * gap_low > 0:
            low = middle
        else:
            high = middle
    return (low * high) ** 0.5


@torch.no_grad()
def match_powers(
    denoiser: DiscreteDenoiser, sampler: LearnedSampler, x_0: Tensor, noise: Draws, cond: Cond | None = None
) -> Tensor:
    """The powers [K - 1] that give the state after each step the teacher's mean sharpness.

    They are found step after step; the run goes on with each power found. All trials of a power
    share their noise, so the bisection sees a function.

    Args:
        x_0: clean samples of the teacher [B, d].
        noise: `noise(0)` is the start, `noise(1 + k)` that of step k, and `noise(K + k)` makes the
            teacher's state after it. Under absorbing noise this state has the student's masks,
            which have the same law and do not depend on the power.
    """
    process, times = denoiser.process, sampler.times().to(x_0.device)
    x, powers = process.start(noise(0)), []
    for k, step in enumerate(sampler.steps()):
        power, x = match_power(
            denoiser, step, x, x_0, times[k], times[k + 1], noise(1 + k), noise(len(times) + k), cond
        )
        powers.append(power)
    return torch.tensor(powers, device=x.device)


def match_power(
    denoiser: DiscreteDenoiser,
    step: LearnedStep,
    x: Tensor,
    x_0: Tensor,
    t: Tensor,
    s: Tensor,
    noise: Noise,
    teacher_noise: Noise,
    cond: Cond | None,
) -> tuple[float, Tensor]:
    """The power with which a step from x at t is as sharp as x_0 noised to s, and its result.

    All states are [B, d].
    """
    process, reading = denoiser.process, denoiser(x, t, cond)

    def reached(power: float) -> Tensor:
        return LearnedStep(step.rule, torch.tensor(power, device=x.device), step.scale).move(reading, s, noise)

    def sharp(x: Tensor) -> Tensor:
        return sharpness(denoiser(x, s, cond))

    if isinstance(process, Absorbing):
        x_s = torch.where((plain := reached(1.0)) == process.mask, plain, x_0)
    else:
        x_s = process.add_noise(x_0, s, teacher_noise)
    power = matching_power(lambda power: sharp(reached(power)), sharp(x_s))
    return power, reached(power)


def trajectory(
    denoiser: DiscreteDenoiser,
    x: Tensor,
    times: Tensor,
    steps: Step | Sequence[Step],
    noise: Draws,
    cond: Cond | None,
    every: int = 1,
) -> list[Reading]:
    """The readings along a run of one-call steps from x [B, d], one for every so many times."""
    found = []
    for call, (rule, t, s) in enumerate([*plan(steps, times), (None, times[-1], None)]):
        reading = denoiser(x, t, cond)
        if call % every == 0:
            found.append(reading)  # of a large vocabulary a few of them fill the memory
        if rule is not None:
            x = rule.move(reading, s, noise(call))
    return found


def legal_scores(reading: Reading) -> Tensor:
    """Scores at legal moves, else zero, [n, C]."""
    log_score = reading.log_score()
    return log_score.exp() * (reading.process.jumps(reading.x, log_score.dtype) > 0)


@torch.no_grad()
def regress_scales(
    denoiser: DiscreteDenoiser,
    sampler: LearnedSampler,
    ratio: int,
    noise: Draws,
    teacher_noise: Draws,
    couple: bool,
    cond: Cond | None = None,
) -> Tensor:
    """LSD's own objective (eq. 6) in closed form: `Phi_k = E <s*_k, s_k> / E |s_k|^2`, [K - 1].

    s*_k are the scores at legal moves along a run of the teacher, of `ratio` steps for each of the
    student's; s_k are those along the student's own run.

    Args:
        noise: `noise(0)` is the start of both runs, `noise(1 + i)` that of call i of the student.
        teacher_noise: `teacher_noise(i)` is that of call i of the teacher.
        couple: whether, under absorbing noise, both runs unmask at the same hitting times (the
            paper does not say).
    """
    process, times, steps = denoiser.process, sampler.times(), sampler.steps()
    x = process.start(noise(0))
    times = times.to(x.device)
    ends = torch.cat([times, torch.zeros_like(times[:1])])
    fine = torch.cat(
        [a + (b - a) * torch.arange(ratio, device=x.device) / ratio for a, b in zip(ends, ends[1:], strict=False)]
    )
    own, others = (lambda i: noise(1 + i)), teacher_noise
    if couple and isinstance(process, Absorbing):
        masked = (1 - process.alpha(fine)) / (1 - process.alpha(fine[0]))
        unmask = (process.alpha(times[1:]) - process.alpha(times[:-1])) / (1 - process.alpha(times[:-1]))
        stay = (1 - unmask * torch.stack([step.scale.double() for step in steps])).clamp(1e-12, 1)
        own = hitting(own, torch.cat([torch.ones_like(stay[:1]), stay.cumprod(0)]))
        others = hitting(lambda i: noise(1), masked)
    fine = fine[: (len(times) - 2) * ratio + 1]  # up to the last learned step
    teacher = trajectory(denoiser, x, fine, sampler.rule, others, cond, ratio)
    student = trajectory(denoiser, x, times[:-1], steps[:-1], own, cond)
    scales = []
    for their, reading in zip(teacher, student, strict=True):
        product, norm = times.new_zeros(2)
        for where in reading.movable():
            a, b = legal_scores(their[where]), legal_scores(reading[where])
            product, norm = product + (a * b).sum(), norm + (b * b).sum()
        scales.append(product / norm)
    return torch.stack(scales)
