"""Many-step solvers (the slow reference) and the few-step sampler of students.

Every solver starts from `x` at times[0], visits the decreasing `times` and returns the denoised
sample at the last one. With one time each of them is a single call of the denoiser.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from distillkit.diffusion.process import CLEAN, Process

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]


def _scales(process: Process, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of a scalar time, in the time's precision, then cast to the sample's."""
    return process.alpha(t).to(like.dtype), process.sigma(t).to(like.dtype)


def _velocity(process: Process, x: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = _scales(process, t, x)
    d_alpha, d_sigma = (d.to(x.dtype) for d in process.derivatives(t))
    return d_alpha * x_0 + d_sigma * (x - alpha * x_0) / sigma


def euler(denoise: Denoise, process: Process, x: Tensor, times: Tensor, noise: Noise | None = None) -> Tensor:
    """Euler's method on the probability-flow ODE in the process's own time; first order."""
    for t, s in zip(times[:-1], times[1:], strict=True):
        x = x + (s - t).to(x.dtype) * _velocity(process, x, denoise(x, t), t)
    return denoise(x, times[-1])


def heun(denoise: Denoise, process: Process, x: Tensor, times: Tensor, noise: Noise | None = None) -> Tensor:
    """Heun's method of EDM (arXiv 2206.00364, algorithm 1): second order, two calls a step."""
    for t, s in zip(times[:-1], times[1:], strict=True):
        h = (s - t).to(x.dtype)
        slope = _velocity(process, x, denoise(x, t), t)
        x_next = x + h * slope
        x = x + h * (slope + _velocity(process, x_next, denoise(x_next, s), s)) / 2
    return denoise(x, times[-1])


def ddim(denoise: Denoise, process: Process, x: Tensor, times: Tensor, noise: Noise | None = None) -> Tensor:
    """DDIM (arXiv 2010.02502): `x_s = alpha_s x_0 + sigma_s eps`; first order in sigma / alpha."""
    for t, s in zip(times[:-1], times[1:], strict=True):
        x_0 = denoise(x, t)
        (alpha, sigma), (alpha_s, sigma_s) = _scales(process, t, x), _scales(process, s, x)
        x = alpha_s * x_0 + sigma_s * (x - alpha * x_0) / sigma
    return denoise(x, times[-1])


def dpm_solver(denoise: Denoise, process: Process, x: Tensor, times: Tensor, noise: Noise | None = None) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, alg. 2): multistep, second order, one call a step."""
    log_snr = -process.ratio(times).log()  # lambda = log(alpha / sigma)
    x_0_before = h_before = None
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        x_0, h = denoise(x, t), log_snr[i + 1] - log_snr[i]
        (_, sigma), (alpha_s, sigma_s) = _scales(process, t, x), _scales(process, s, x)
        d = x_0 if i == 0 else x_0 + (h / (2 * h_before)).to(x.dtype) * (x_0 - x_0_before)
        x = (sigma_s / sigma) * x - alpha_s * torch.expm1(-h).to(x.dtype) * d
        x_0_before, h_before = x_0, h
    return denoise(x, times[-1])


def dpm_solver_sde(denoise: Denoise, process: Process, x: Tensor, times: Tensor, noise: Noise | None = None) -> Tensor:
    """SDE-DPM-Solver++(2M) (arXiv 2211.01095): multistep, one call and one draw a step.

    Its first step is that of `ancestral`. On a Gaussian its law is of second order, that of
    `ancestral` of first. `noise(i)` is the draw of step i.
    """
    log_snr = -process.ratio(times).log()  # lambda = log(alpha / sigma)
    x_0_before = h_before = None
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        x_0, h = denoise(x, t), log_snr[i + 1] - log_snr[i]
        (_, sigma), (alpha_s, sigma_s) = _scales(process, t, x), _scales(process, s, x)
        keep, share = torch.exp(-h).to(x.dtype), -torch.expm1(-2 * h).to(x.dtype)
        d = x_0 if i == 0 else x_0 + (h / (2 * h_before)).to(x.dtype) * (x_0 - x_0_before)
        x = (sigma_s / sigma) * keep * x + alpha_s * share * d + sigma_s * share.sqrt() * noise(i + 1)
        x_0_before, h_before = x_0, h
    return denoise(x, times[-1])


def unipc(denoise: Denoise, process: Process, x: Tensor, times: Tensor, noise: Noise | None = None) -> Tensor:
    """UniPC (arXiv 2302.04867, algorithms 1 and 2), p = 2, B(h) = e^h - 1: third order, multistep.

    A step of DPM-Solver++(2M) predicts the next sample. Once the denoiser has been called there,
    the step is repeated with that call. The denoiser is not called at the corrected sample, so a
    step costs one call.
    """
    log_snr = -process.ratio(times).log()
    h = log_snr[1:] - log_snr[:-1]
    x_0, before = {}, x  # denoised samples by step, of which three are kept; the sample before the last step

    def step(x: Tensor, i: int, change: Tensor | float) -> Tensor:
        """The step from times[i] to the next."""
        (_, sigma), (alpha_s, sigma_s) = _scales(process, times[i], x), _scales(process, times[i + 1], x)
        return (sigma_s / sigma) * x - alpha_s * torch.expm1(-h[i]).to(x.dtype) * (x_0[i] + change)

    def corrected(i: int) -> Tensor:
        """Mean change of the denoised sample within step i, now that its end is known."""
        ahead = x_0[i + 1] - x_0[i]
        if i == 0:
            return ahead / 2
        ratio, phi_1 = h[i - 1] / h[i], torch.expm1(-h[i])
        phi_2 = -phi_1 / h[i] - 1
        phi_3 = -phi_2 / h[i] - 0.5
        b_1, b_2 = phi_2 / phi_1, 2 * phi_3 / phi_1
        past = (b_1 - b_2) / (1 + ratio)  # the weights solve R rho = b (eq. 5) for the differences at -ratio and at 1
        return (past / ratio).to(x.dtype) * (x_0[i] - x_0[i - 1]) + (b_1 - past).to(x.dtype) * ahead

    for i, t in enumerate(times):
        x_0[i] = denoise(x, t)
        if i:
            x = step(before, i - 1, corrected(i - 1))
            x_0.pop(i - 2, None)
        if i < len(times) - 1:
            slope = (h[i] / h[i - 1]).to(x.dtype) * (x_0[i] - x_0[i - 1]) if i else 0.0
            before, x = x, step(x, i, slope / 2)
    return x_0[len(times) - 1]


def ancestral(
    denoise: Denoise, process: Process, x: Tensor, times: Tensor, noise: Noise | None = None, large: bool = False
) -> Tensor:
    """DDPM's posterior q(x_s | x_t, x_0) on any process (arXiv 2006.11239 eq. 6).

    `noise(i)` is the draw of step i. With `large` its variance is that of a step forwards,
    q(x_t | x_s): DDPM's beta_t, right for data of unit variance (section 3.2).
    """
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        x_0 = denoise(x, t)
        (alpha, sigma), (alpha_s, sigma_s) = _scales(process, t, x), _scales(process, s, x)
        # mean = alpha_s x_0 + b (x_t - alpha x_0), variance = sigma_s^2 - b^2 sigma^2
        b = sigma_s**2 * alpha / (alpha_s * sigma**2)
        std = (sigma_s**2 - (b * sigma) ** 2).clamp_min(0).sqrt() * (sigma / sigma_s if large else 1)
        x = alpha_s * x_0 + b * (x - alpha * x_0) + std * noise(i + 1)
    return denoise(x, times[-1])


def resshift(denoise: Denoise, process: Process, x: Tensor, times: Tensor, noise: Noise | None = None) -> Tensor:
    """ResShift's sampler (arXiv 2307.12348 eq. 7) on any process; `noise(i)` is the draw of step i.

    With `c = (sigma_s / sigma_t)^2` and the implied noise eps its step is
    `alpha_s x_0 + c sigma_t eps + sqrt(c (sigma_t^2 - sigma_s^2)) z`. Where alpha is constant this
    is `ancestral`.
    """
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        x_0 = denoise(x, t)
        (alpha, sigma), (alpha_s, sigma_s) = _scales(process, t, x), _scales(process, s, x)
        c = (sigma_s / sigma) ** 2
        x = alpha_s * x_0 + c * (x - alpha * x_0) + (c * (sigma**2 - sigma_s**2)).clamp_min(0).sqrt() * noise(i + 1)
    return denoise(x, times[-1])


def renoise(denoise: Denoise, process: Process, x: Tensor, times: Tensor, noise: Noise | None = None) -> Tensor:
    """Denoise and noise anew, `x_s = alpha_s x_0 + sigma_s z` (arXiv 2303.01469, algorithm 1).

    It is for models whose denoised samples are samples, such as distilled ones: with posterior
    means the law narrows. `noise(i)` is the draw of step i.
    """
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        alpha_s, sigma_s = _scales(process, s, x)
        x = alpha_s * denoise(x, t) + sigma_s * noise(i + 1)
    return denoise(x, times[-1])


SOLVERS = {
    "euler": euler,
    "heun": heun,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "dpm_solver_sde": dpm_solver_sde,
    "unipc": unipc,
    "ancestral": ancestral,
    "ancestral_large": partial(ancestral, large=True),
    "resshift": resshift,
    "renoise": renoise,
}
ODE_SOLVERS = ("euler", "heun", "ddim", "dpm_solver", "unipc")  # no draws: the first noise decides the sample
FEW_STEP_SOLVERS = ("ddim", "euler", "dpm_solver")  # one pass a step; Heun is unstable below about six steps


class Recording:
    """A wrapper that runs a solver unchanged and keeps every state at which it calls the denoiser.

    Args:
        solver: any of `SOLVERS`, or a learned one.

    Attributes:
        states: `(x_t [B, ...], t, x_0 [B, ...])` for each call of the last run, in order; for Heun
            also the points at which it looks ahead. The last x_0 is the sample.
    """

    def __init__(self, solver: Callable):
        self.solver = solver
        self.states: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(
        self, denoise: Denoise, process: Process, x: Tensor, times: Tensor, noise: Noise | None = None
    ) -> Tensor:
        self.states = []

        def recorded(x_t: Tensor, t: Tensor) -> Tensor:
            x_0 = denoise(x_t, t)
            self.states.append((x_t, t, x_0))
            return x_0

        return self.solver(recorded, process, x, times, noise)


def network_passes(solver: str, steps: int) -> int:
    """Calls of the denoiser in a run with `steps` times."""
    return 2 * steps - 1 if solver == "heun" else steps


def pure_noise(process: Process, eps: Tensor, t: Tensor) -> Tensor:
    """`sigma(t) eps`: the input of the first step, without signal; its std is sigma(t), not one."""
    return process.sigma(t).to(eps.dtype) * eps


Renoise = Literal["fresh", "implied", "first"]  # the noise of the student's steps after the first


def draws(renoise: Renoise, steps: int) -> int:
    """The number of draws of noise in one sample of a student with `steps` times."""
    return steps if renoise == "fresh" else 1


def few_step(
    denoise: Denoise,
    process: Process,
    times: Tensor,
    noise: Noise,
    renoise: Renoise = "fresh",
    stop: int | None = None,
    start: Callable[[Tensor, Tensor], Tensor] | None = None,
    noise_scale: float = 1.0,
    through: bool = False,
) -> tuple[Tensor, Tensor]:
    """The student's sampler: predict x_0, return to the next noise level, predict again.

    Args:
        denoise: the student, `(x_t, t) -> x_0`.
        times: [K] decreasing times; the student is called once at each.
        noise: `noise(i)` is a fresh Gaussian draw for step i, shaped like a sample.
        renoise: `fresh` re-noises x_0 with new noise (consistency and DMD2 sampling); `implied`
            with the noise that the student implies (deterministic, DDIM-like); `first` with that of
            the first step again (few-step SiD, arXiv 2505.12674; RF++, arXiv 2405.20320).
        stop: the last step that is run (default all).
        through: whether the steps before it carry gradients too. Without, this is the backward
            simulation of DMD2 (arXiv 2405.14867 section 4.5) and few-step SiD (arXiv 2505.12674).
        start: `(eps, t) -> x`, the first input from unit noise; default `noise_scale sigma(t) eps`.
        noise_scale: factor on the standard deviation of every draw at unchanged times: noise
            modulation (arXiv 2510.03095); below 1 samples are safer and more alike.

    Returns:
        `(x_0, x_t)`: the sample of step `stop` and the input that it was predicted from.
    """
    stop = len(times) - 1 if stop is None else stop
    x_0 = None
    for i in range(stop + 1):
        t = times[i]
        if i == 0:
            x_t = start(noise(0), t) if start else noise_scale * pure_noise(process, noise(0), t)
        elif renoise == "implied":
            x_t = process.jump(x_t, x_0, times[i - 1], t)
        else:
            alpha, sigma = _scales(process, t, x_0)
            x_t = alpha * x_0 + sigma * noise_scale * noise(i if renoise == "fresh" else 0)
        if i and not through:
            x_t = x_t.detach()
        with torch.set_grad_enabled(torch.is_grad_enabled() and (through or i == stop)):
            x_0 = denoise(x_t, t)
    return x_0, x_t


def jump_steps(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
    process: Process,
    times: Tensor,
    noise: Noise,
    gamma: float = 0.0,
    start: Callable[[Tensor, Tensor], Tensor] | None = None,
    noise_scale: float = 1.0,
) -> Tensor:
    """The gamma-sampler of students that are told where a jump ends (CTM, arXiv 2310.02279).

    A step jumps to the level whose ratio sigma / alpha is `sqrt(1 - gamma^2)` times that of the
    next time, and noises from there to the next time. With gamma = 0 the steps are jumps alone,
    exact for an exact student; with gamma = 1 each jumps to the datum, as `few_step` with fresh
    noise.

    Args:
        denoise: the student, `(x_t, t, end) -> x_0`: the jump to `end` is `process.jump` with it.
        times: [K] decreasing times; the student is called once at each.
        noise: `noise(i)` is a fresh Gaussian draw for step i; without gamma only that of step 0.
        gamma: share of new noise, in [0, 1].
        start, noise_scale: as in `few_step`.
    """
    x = start(noise(0), times[0]) if start else noise_scale * pure_noise(process, noise(0), times[0])
    ends = [*times[1:], times.new_tensor(CLEAN)]
    for i, (t, s) in enumerate(zip(times, ends, strict=True)):
        end = s
        if gamma == 1:
            end = times.new_tensor(CLEAN)
        elif gamma and s >= 0:
            end = process.from_ratio((1 - gamma**2) ** 0.5 * process.ratio(s)).clamp(process.t_min, s)
        x = process.jump(x, denoise(x, t, end), t, end)
        if gamma and s >= 0:
            x = process.travel(x, end, s, noise_scale * noise(i + 1))
    return x
