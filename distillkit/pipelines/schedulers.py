"""Schedulers of the package diffusers as processes, grids of times and solvers of ours.

Of a scheduler its configuration is used, and its times; the steps are those of our solvers.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from distillkit.diffusion.process import DiscreteVariancePreserving, RectifiedFlow
from distillkit.pipelines.files import import_diffusers

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"v_prediction": "v", "epsilon": "eps", "sample": "x0"}
# by class of a scheduler, our solver that takes the same steps, or the nearest one
SOLVERS = {
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "ddim",
    "EulerDiscreteScheduler": "ddim",
    "DDPMScheduler": "ancestral",  # see `VARIANCES`
    "EulerAncestralDiscreteScheduler": "ancestral",
    "DPMSolverMultistepScheduler": "dpm_solver",
    "UniPCMultistepScheduler": "unipc",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "CogVideoXDDIMScheduler": "ddim",
    "CogVideoXDPMScheduler": "ddim",
    "CosineDPMSolverMultistepScheduler": "dpm_solver_sde",
    "RFD4ProteinaScheduler": "euler",
}
# without a table of noise levels
OTHERS = ("FlowMatchEulerDiscreteScheduler", "CosineDPMSolverMultistepScheduler", "RFD4ProteinaScheduler")
TABLES = tuple(name for name in SOLVERS if name not in OTHERS and "CogVideoX" not in name)
FLOWS = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler")
VARIANCES = {"fixed_small": "ancestral", "fixed_small_log": "ancestral", "fixed_large": "ancestral_large"}  # of DDPM
MULTISTEP = {  # settings that our multistep solvers have
    "UniPCMultistepScheduler": {
        "solver_order": 2,
        "solver_type": "bh2",
        "predict_x0": True,
        "lower_order_final": True,
        "disable_corrector": [],
    },
    "DPMSolverMultistepScheduler": {
        "solver_order": 2,
        "solver_type": "midpoint",
        "algorithm_type": "dpmsolver++",
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
    },
    "CosineDPMSolverMultistepScheduler": {"solver_order": 2, "solver_type": "midpoint", "final_sigmas_type": "zero"},
}


def solver(scheduler: Any) -> str:
    """The name of our solver that stands for a scheduler.

    Raises:
        ValueError: the scheduler's settings are those of another solver.
    """
    kind = type(scheduler).__name__
    for key, known in MULTISTEP.get(kind, {}).items():
        if (value := scheduler.config.get(key, known)) != known:
            raise ValueError(f"the pipeline's scheduler says {key} = {value!r}; only {known!r} is known here")
    if scheduler.config.get("stochastic_sampling"):
        return "renoise"
    if kind != "DDPMScheduler":
        return SOLVERS[kind]
    if (variance := scheduler.config.variance_type) not in VARIANCES:
        raise ValueError(
            f"the pipeline's scheduler says variance_type = {variance!r}; known here are {', '.join(VARIANCES)}"
        )
    return VARIANCES[variance]


def limit(scheduler: Any) -> float | None:
    """The bound to which a scheduler cuts the absolute values of denoised samples; None is without.

    Raises:
        ValueError: it cuts them by a bound that follows from the sample (thresholding).
    """
    if scheduler.config.get("thresholding"):
        raise ValueError(
            "the pipeline's scheduler says thresholding, which is not known here: set it to false in scheduler_config.json"
        )
    return scheduler.config.clip_sample_range if scheduler.config.get("clip_sample") else None


def table(config: Any) -> DiscreteVariancePreserving:
    """The process of a scheduler's configuration with a table of noise levels.

    Raises:
        ValueError: the table is its own (trained_betas), or of an unknown form.
    """
    if config.get("trained_betas") is not None:
        raise ValueError("the pipeline's scheduler has a table of its own (trained_betas), which is not read")
    if config["beta_schedule"] not in SCHEDULES:
        raise ValueError(
            f"the pipeline's scheduler says beta_schedule = {config['beta_schedule']!r}; known here are "
            f"{', '.join(SCHEDULES)}"
        )
    return DiscreteVariancePreserving(
        config["num_train_timesteps"],
        config["beta_start"],
        config["beta_end"],
        SCHEDULES[config["beta_schedule"]],
        config.get("snr_shift_scale", 1.0),
        bool(config.get("rescale_betas_zero_snr")),
    )


def variance_preserving(scheduler: Any) -> tuple[DiscreteVariancePreserving, str]:
    """The process of a scheduler with a table of noise levels, and what its network predicts."""
    return table(scheduler.config), PREDICTIONS[scheduler.config.prediction_type]


def flow(scheduler: Any, shift: float | None = None) -> tuple[RectifiedFlow, str]:
    """The process of a scheduler of flows, and what its network predicts.

    Args:
        scheduler: one of `FLOWS`.
        shift: of the times, where it follows from the size of samples (`exp(mu)`); None takes the
            scheduler's.

    Raises:
        ValueError: it is not a scheduler of flows, or it shifts by size and there is no shift.
    """
    config = scheduler.config
    if not config.get("use_flow_sigmas", True):
        raise ValueError("the pipeline's sampler is not one of flows: its scheduler must say use_flow_sigmas")
    if shift is None and config.get("use_dynamic_shifting"):
        raise ValueError(
            "the pipeline's scheduler shifts times by the size of samples, which is not known of this family: set "
            "use_dynamic_shifting to false in its scheduler_config.json"
        )
    own = shift or config.get("shift") or config.get("flow_shift") or 1.0
    return RectifiedFlow(shift=float(own)), "flow"


def shift_by_size(scheduler: Any, tokens: int) -> float | None:
    """The shift of times `exp(mu)` of a FlowMatchEulerDiscreteScheduler that shifts by size.

    mu is linear in the number of tokens. None means that this one does not shift by size.

    Args:
        scheduler: the pipeline's.
        tokens: number of tokens of a sample, that of the model's patches.

    Raises:
        ValueError: it shifts by size in another way.
    """
    config = scheduler.config
    if not config["use_dynamic_shifting"]:
        return None
    if config["time_shift_type"] != "exponential":
        raise ValueError(
            f"the pipeline's scheduler says time_shift_type = {config['time_shift_type']!r}; only 'exponential' is known here"
        )
    slope = (config["max_shift"] - config["base_shift"]) / (config["max_image_seq_len"] - config["base_image_seq_len"])
    return math.exp(config["base_shift"] + slope * (tokens - config["base_image_seq_len"]))


def grid(scheduler: Any, process: Any, steps: int, **options: Any) -> Tensor:
    """The times that a pipeline visits, decreasing, without the final step to the datum; float64.

    Args:
        scheduler: the pipeline's.
        process: its process, see `flow` and `variance_preserving`.
        steps: number of times.
        options: further arguments of its `set_timesteps`, such as `mu` and `sigmas`.
    """
    kind = type(scheduler).__name__
    if kind == "DDPMScheduler" or kind == "PNDMScheduler":  # their own grids repeat times or leave the end out
        scheduler = import_diffusers().DDIMScheduler.from_config(scheduler.config)
    if options.get("sigmas") is None:
        options["num_inference_steps"] = steps
    scheduler.set_timesteps(**options)
    if isinstance(process, RectifiedFlow):
        return scheduler.sigmas[:-1].double()
    if hasattr(scheduler, "sigmas"):  # sigma / alpha
        return process.from_ratio(scheduler.sigmas[:steps].double()).clamp(process.t_min, process.t_max)
    return scheduler.timesteps.double()
