"""Schedulers of the package diffusers that take the steps of a student.

- A flow: FlowMatchEulerDiscreteScheduler, whose step is `x + (s - t) v`, or with
  `stochastic_sampling` `(1 - s) x_0 + s eps`, eps fresh.
- A table of noise levels with fresh noise: LCMScheduler, whose step is `alpha_s x_0 + sigma_s eps`
  once its boundary functions are those of a large argument, `c_skip = 0` and `c_out = 1`.
- A table with the noise that the student implies, or one step: EulerDiscreteScheduler, whose step
  is DDIM's in `x / alpha`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from distillkit.diffusion.process import DiscreteVariancePreserving, Process, RectifiedFlow
from distillkit.diffusion.sampling import Renoise
from distillkit.pipelines.files import import_diffusers
from distillkit.pipelines.schedulers import PREDICTIONS, SCHEDULES

CLOSE = 1e-6  # of times of order one, which schedulers keep in float32
FAR = 1e6  # the factor of times in LCM's boundary functions, so that c_skip < 1e-12


@dataclass
class Steps:
    """A scheduler, and what makes a pipeline take a student's steps with it.

    Attributes:
        scheduler: the scheduler.
        call: arguments of the pipeline's call.
        sigmas: levels that must be handed to the scheduler by hand, since its configuration cannot
            hold them and the pipeline's call takes none; None if nothing is to be done.
        std: standard deviation of the student's start; the pipeline's is 1.
    """

    scheduler: Any
    call: dict[str, Any] = field(default_factory=dict)
    sigmas: list[float] | None = None
    std: float = 1.0

    def prepare(self, pipeline: Any) -> None:
        """Hand the levels to the pipeline's scheduler, if that has to be done by hand."""
        if self.sigmas is not None:
            own = pipeline.scheduler.set_timesteps

            @wraps(own)  # pipelines look at its arguments
            def set_timesteps(*args: Any, **more: Any) -> None:
                own(*args, **{**more, "sigmas": self.sigmas})

            pipeline.scheduler.set_timesteps = set_timesteps


def steps(
    process: Process,
    prediction: str,
    times: Sequence[float],
    renoise: Renoise,
    visited: Callable[[Any, int], Tensor],
    takes: Collection[str],
) -> Steps:
    """The scheduler that takes a student's steps.

    Args:
        process: the student's.
        prediction: what its network predicts.
        times: the student's.
        renoise: the noise between its steps.
        visited: the times that the pipeline visits by itself, `(scheduler, number) -> times`.
        takes: names of the arguments of the pipeline's call.

    Raises:
        ValueError: no scheduler takes these steps.
    """
    if renoise == "first" and len(times) > 1:
        raise ValueError(
            "no scheduler of the package diffusers goes back to the student's first noise (renoise=first): use its folder"
        )
    fresh = renoise == "fresh" and len(times) > 1
    if type(process) is RectifiedFlow and prediction == "flow":
        return of_flow(list(times), fresh, visited, takes)
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if type(process) is DiscreteVariancePreserving and prediction in names:
        made = {**table(process), "prediction_type": names[prediction]}
        return (renoised if fresh else implied)(process, list(times), made, takes)
    raise ValueError(
        f"no scheduler of the package diffusers is known for {prediction} predictions on a {type(process).__name__}: use the "
        f"student's folder"
    )


def of_flow(times: list[float], fresh: bool, visited: Callable[[Any, int], Tensor], takes: Collection[str]) -> Steps:
    """The steps of a flow, `fresh` with new noise.

    Where `shift` and `shift_terminal` make the pipeline visit the very times, it needs to be told
    their number alone. They do for all grids `t = s u / (1 + (s - 1) u)` of evenly spaced u from 1
    down, as students have them by default.
    """

    def made(shift: float = 1.0, end: float | None = None) -> Any:
        cls = import_diffusers().FlowMatchEulerDiscreteScheduler
        return cls(shift=shift, shift_terminal=end, stochastic_sampling=fresh)

    num, wanted = len(times), torch.tensor(times, dtype=torch.float64)
    end = times[-1] if num > 1 else None
    low, high = (1e-4, 1e4) if num > 2 else (1.0, 1.0)  # the second time rises with the shift
    for _ in range(80 if num > 2 else 0):
        shift = (low * high) ** 0.5
        low, high = (shift, high) if visited(made(shift, end), num)[1] < wanted[1] else (low, shift)
    found = made((low * high) ** 0.5, end)
    if (visited(found, num) - wanted).abs().max() < CLOSE:
        return Steps(found, {"num_inference_steps": num}, std=times[0])
    if "sigmas" in takes:
        return Steps(made(), {"num_inference_steps": num, "sigmas": times}, std=times[0])
    return Steps(made(), {"num_inference_steps": num}, times, std=times[0])


def table(process: DiscreteVariancePreserving) -> dict[str, Any]:
    """The settings of a scheduler that has the process's table."""
    names = {ours: theirs for theirs, ours in SCHEDULES.items()}
    own = {"num_train_timesteps": process.num_steps, "rescale_betas_zero_snr": process.zero_snr}
    own |= {"steps_offset": 1}  # of no effect here; pipelines warn of another
    if process.snr_shift == 1:
        return own | {
            "beta_start": process.beta_start,
            "beta_end": process.beta_end,
            "beta_schedule": names[process.schedule],
        }
    squared = process.alpha(torch.arange(process.num_steps, dtype=torch.float64)) ** 2
    kept = torch.cat([squared[:1], squared[1:] / squared[:-1]])
    return own | {"trained_betas": (1 - kept).tolist()}  # CogVideoX's shift is no setting of these schedulers


def renoised(
    process: DiscreteVariancePreserving, times: list[float], settings: dict[str, Any], takes: Collection[str]
) -> Steps:
    """Steps with new noise on a table, at integer times alone."""
    whole = [round(t) for t in times]
    if whole != times:
        raise ValueError(
            f"LCMScheduler, which renoises with fresh noise, takes integer times alone, got {_listed(times)}: write times: "
            f"{whole} into student.yaml, which changes its samples a little, or train with model.times={whole}"
        )
    cls, num = import_diffusers().LCMScheduler, len(times)
    std = float(process.sigma(torch.tensor(times[0], dtype=torch.float64)))

    def made(original: int) -> Any:
        return cls(**settings, timestep_scaling=FAR, original_inference_steps=original)

    scheduler = made(process.num_steps)
    for original in range(num, process.num_steps + 1):
        scheduler.set_timesteps(num, original_inference_steps=original)
        if scheduler.timesteps.tolist() == whole:
            return Steps(made(original), {"num_inference_steps": num}, std=std)
    if "timesteps" not in takes:
        raise ValueError(
            f"the pipeline's call takes no times, and LCMScheduler cannot hold {whole}: use the student's folder"
        )
    return Steps(made(process.num_steps), {"num_inference_steps": num, "timesteps": whole}, std=std)


def implied(
    process: DiscreteVariancePreserving, times: list[float], settings: dict[str, Any], takes: Collection[str]
) -> Steps:
    """DDIM's steps on a table; the scheduler gives the start the student's standard deviation."""
    cls, num = import_diffusers().EulerDiscreteScheduler, len(times)
    for spacing in ("trailing", "linspace"):
        scheduler = cls(**settings, timestep_spacing=spacing)
        scheduler.set_timesteps(num)
        if scheduler.timesteps.tolist() == times:
            return Steps(cls(**settings, timestep_spacing=spacing), {"num_inference_steps": num})
    ratios = process.ratio(torch.tensor(times, dtype=torch.float64)).tolist()
    told = {"sigmas": [*ratios, 0.0]} if "sigmas" in takes else {"timesteps": times}
    if not told.keys() <= set(takes):
        raise ValueError(
            f"the pipeline's call takes no times, and EulerDiscreteScheduler cannot hold {_listed(times)}: use the student's "
            f"folder"
        )
    return Steps(cls(**settings, timestep_spacing="trailing"), {"num_inference_steps": num, **told})


def _listed(times: Sequence[float]) -> str:
    return ", ".join(f"{t:g}" for t in times)
