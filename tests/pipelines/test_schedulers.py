"""Schedulers of the package diffusers against our solvers on the same Gaussian, in closed form.

The data are N(0.7, 0.6^2), so the denoiser is known. Schedulers run their own loops with it.
"""

import sys
from math import exp

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers

from distillkit.diffusion.sampling import SOLVERS, Recording
from distillkit.pipelines import schedulers

MEAN, STD = 0.7, 0.6
SHAPE = (2, 3, 4, 4)
WITHIN = 1e-5  # their tables are float32; measured: 4.3e-6 at most, at zero terminal SNR too
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # Stable Diffusion
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
COG = {**ZERO, "snr_shift_scale": 3.0, "timestep_spacing": "trailing"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
UNCUT = {"clip_sample": False}
SPACINGS = ({"timestep_spacing": "leading", "steps_offset": 1}, {"timestep_spacing": "trailing"})
LINSPACE = {"timestep_spacing": "linspace"}
LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
MULTISTEP = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")


def posterior(x, alpha, sigma):
    """E[x_0 | x_t] of the Gaussian."""
    return (alpha * STD**2 * x + sigma**2 * MEAN) / ((alpha * STD) ** 2 + sigma**2)


def noises(num=64):
    return torch.randn(num, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Case:
    """A scheduler, what the library makes of it, and its own loop.

    Args:
        name: its class.
        steps: number of steps.
        options: further arguments of `set_timesteps`.
        config: its configuration.
    """

    def __init__(self, name, steps=8, options=None, **config):
        self.scheduler, self.steps, self.options = getattr(diffusers, name)(**config), steps, options or {}
        self.flows = "FlowMatch" in name or config.get("use_flow_sigmas", False)
        read = schedulers.flow if self.flows else schedulers.variance_preserving
        shift = (exp(self.options["mu"]),) if "mu" in self.options else ()
        self.process, self.prediction = read(self.scheduler, *shift)
        self.grid = schedulers.grid(self.scheduler, self.process, steps, **dict(self.options))
        self.noise = self.process.sigma(self.grid[0]) * noises()[0]

    def denoise(self, x, t):
        return posterior(x, self.process.alpha(t), self.process.sigma(t))

    def ours(self):
        solver = Recording(SOLVERS[schedulers.solver(self.scheduler)])
        x = solver(self.denoise, self.process, self.noise, self.grid, lambda i: noises()[i])
        self.states = solver.states
        return x

    def theirs(self, monkeypatch):
        """The loop of a pipeline, whose network is told the times of `grid`."""
        scheduler, draws = self.scheduler, iter(noises()[1:])
        kind = type(scheduler).__name__
        twice = kind == "CogVideoXDPMScheduler"  # it draws twice in steps after the first and takes the second
        monkeypatch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", lambda *a, **k: next(draws), False)
        if "sigmas" not in self.options:
            scheduler.set_timesteps(self.steps, **self.options)
        else:
            scheduler.set_timesteps(**self.options)
        x, before, times = self.noise, None, scheduler.timesteps
        if kind.startswith("Euler"):  # in units of sigma / alpha
            x = x * (1 + scheduler.sigmas[0].double() ** 2).sqrt()
        for i, (t, known) in enumerate(zip(times, self.grid, strict=True)):
            seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            alpha, sigma = self.process.alpha(known), self.process.sigma(known)
            x_0 = posterior(seen, alpha, sigma)
            eps = (seen - alpha * x_0) / sigma
            out = {"eps": eps, "v": alpha * eps - sigma * x_0, "x0": x_0, "flow": eps - x_0}[self.prediction]
            if twice:
                draws = iter(noises()[[i + 1, i + 1]])
                x, before = scheduler.step(out, before, t, times[i - 1] if i else None, x)
            else:
                x = scheduler.step(out, t, x, return_dict=False)[0]
        return x

    def told(self):
        """The largest difference of the times that a network is told, in 1000 of the range."""
        unit = 1000 if self.flows else 1
        return float((unit * self.grid - self.scheduler.timesteps).abs().max())


EXACT = [
    *(("DDIMScheduler", {**SD, **UNCUT, **own}) for own in SPACINGS),
    ("DDIMScheduler", {**SD, **UNCUT, **ZERO, "timestep_spacing": "trailing"}),
    ("DDIMScheduler", {**COSINE, **UNCUT, "prediction_type": "sample", "timestep_spacing": "trailing"}),
    *(("DDPMScheduler", {**UNCUT, **own, **more}) for own in (*SPACINGS, LINSPACE) for more in (SD, COSINE)),
    *(("DDPMScheduler", {**UNCUT, **SD, "variance_type": kind}) for kind in ("fixed_small_log", "fixed_large")),
    *(("EulerDiscreteScheduler", {**SD, **own}) for own in (*SPACINGS, LINSPACE)),
    *(("EulerDiscreteScheduler", {**SD, level: True}) for level in LEVELS),
    *(("EulerAncestralDiscreteScheduler", {**SD, **own}) for own in (*SPACINGS, LINSPACE)),
    *((name, {**SD, **own}) for name in MULTISTEP for own in (*SPACINGS, LINSPACE)),
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "stochastic_sampling": True}),
    *(("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, level: True}) for level in LEVELS),
    ("CogVideoXDDIMScheduler", COG),
    ("CogVideoXDPMScheduler", COG),
]
NEARLY = [  # the network is told other times than ours, at most one of 1000 apart
    *((name, {**SD, level: True}) for name in MULTISTEP for level in LEVELS),
    *((name, {**SD, **ZERO, **LINSPACE}) for name in (*MULTISTEP, "EulerDiscreteScheduler")),
    ("EulerAncestralDiscreteScheduler", {**SD, **ZERO, **LINSPACE}),
    *((name, {**FLOW, "flow_shift": shift}) for name in MULTISTEP for shift in (1.0, 3.0)),
]


def named(cases):
    return [pytest.param(*case, id=f"{case[0].removesuffix('Scheduler')}-{i}") for i, case in enumerate(cases)]


@pytest.mark.parametrize("name, config", named(EXACT))
def test_steps_and_times_are_the_schedulers(name, config, monkeypatch):
    case = Case(name, **config)
    expected = case.theirs(monkeypatch)
    assert (case.ours() - expected).abs().max() < WITHIN
    assert expected.std() > 0.3 and case.told() < 1e-3  # their levels are float32


@pytest.mark.parametrize("name, config", named(NEARLY))
def test_steps_are_the_schedulers_and_times_nearly(name, config, monkeypatch):
    case = Case(name, **config)
    assert (case.ours() - case.theirs(monkeypatch)).abs().max() < WITHIN
    assert 0.01 < case.told() <= 1


def test_every_scheduler_is_compared():
    elsewhere = {"PNDMScheduler", "CosineDPMSolverMultistepScheduler", "RFD4ProteinaScheduler"}  # with their pipelines
    assert {name for name, _ in (*EXACT, *NEARLY)} == set(schedulers.SOLVERS) - elsewhere


@pytest.mark.parametrize("stretch", [{}, {"shift_terminal": 0.02}, {"time_shift_type": "linear"}])
def test_shifts_that_follow_from_the_size(stretch, monkeypatch):
    options = {"mu": 0.8, "sigmas": torch.linspace(1, 1 / 8, 8).tolist()}
    case = Case("FlowMatchEulerDiscreteScheduler", options=options, use_dynamic_shifting=True, **stretch)
    assert (case.ours() - case.theirs(monkeypatch)).abs().max() < WITHIN and case.told() < 1e-3


# What differs


def test_without_set_alpha_to_one_they_end_at_the_noise_of_time_0(monkeypatch):
    case = Case("DDIMScheduler", **SD, **UNCUT, **SPACINGS[0], set_alpha_to_one=False)
    expected, ours = case.theirs(monkeypatch), case.ours()
    x, t, x_0 = case.states[-1]
    assert (case.process.jump(x, x_0, t, torch.zeros_like(t)) - expected).abs().max() < WITHIN
    assert 1e-3 < (ours - expected).abs().max() < 0.03  # sigma(0) is 0.029, of which the noise at time 1 keeps some


def test_pndm_has_ddims_times():
    settings = {**SD, "skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": True}
    case = Case("PNDMScheduler", 50, **settings)
    assert torch.equal(case.grid, Case("DDIMScheduler", 50, **SD, **UNCUT, steps_offset=1).grid)
    case.scheduler.set_timesteps(50)
    assert (
        set(case.scheduler.timesteps.tolist()) == set(case.grid.tolist())
        and schedulers.solver(case.scheduler) == "ddim"
    )


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", *MULTISTEP])
def test_grids_have_as_many_times_as_steps(name):
    for steps in (1, 61, 103):  # with trailing times schedulers have one too many of some, below zero
        own = Case(name, steps, timestep_spacing="trailing", **SD)
        assert len(own.grid) == steps and own.grid.min() >= 0 and (own.grid.diff() < 0).all()


@pytest.mark.parametrize(
    "name, config",
    [
        ("DDIMScheduler", {"clip_sample": False, "thresholding": True}),
        ("DDPMScheduler", {"clip_sample": False, "thresholding": True}),
        ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistepScheduler", {"thresholding": True}),
        ("UniPCMultistepScheduler", {"solver_order": 3}),
        ("UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    ],
)
def test_settings_of_other_steps_are_refused(name, config):
    key = list(config)[-1]
    with pytest.raises(ValueError, match=f"says {key} = .* is known here: change its scheduler_config.json"):
        schedulers.solver(getattr(diffusers, name)(**config))


def test_other_tables_and_predictions_are_refused():
    with pytest.raises(ValueError, match="variance_type = 'learned'; known here are fixed_small"):
        schedulers.solver(diffusers.DDPMScheduler(variance_type="learned"))
    with pytest.raises(ValueError, match="trained_betas"):
        schedulers.variance_preserving(diffusers.DDIMScheduler(trained_betas=[0.1] * 1000))
    with pytest.raises(ValueError, match="beta_schedule = 'sigmoid'; known here are linear"):
        schedulers.variance_preserving(diffusers.DDPMScheduler(beta_schedule="sigmoid"))
    with pytest.raises(ValueError, match="prediction_type = 'flow_prediction'; known here are v_prediction"):
        schedulers.variance_preserving(diffusers.UniPCMultistepScheduler(**FLOW))
    with pytest.raises(ValueError, match="shifts times by the size of samples, which is not known of this family"):
        schedulers.flow(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    with pytest.raises(ValueError, match="must say use_flow_sigmas"):
        schedulers.flow(diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"))
    with pytest.raises(ValueError, match="prediction_type = 'epsilon'; known here are flow_prediction"):
        schedulers.flow(diffusers.UniPCMultistepScheduler(use_flow_sigmas=True))
