"""Denoising score matching: minimised by the posterior mean; its weight, its constants."""

import pytest
import torch
from helpers import PROCESSES, Line, f64, gaussian, sigma_points
from torch import nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding
from distillkit.losses.denoising import denoising_loss

M, S, RATIO = 0.4, 0.8, 0.9


class Shifted(nn.Module):
    """The exact denoiser of N(M, S^2) plus a + b x_t, with the weight of another prediction."""

    def __init__(self, process, prediction="x0"):
        super().__init__()
        self.exact, self.process = gaussian(M, S, process).denoiser, process
        self.a, self.b = (nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(2))
        self.loss_weight = Denoiser(nn.Identity(), process, prediction, sigma_data=0.7).loss_weight

    def forward(self, x_t, t, cond):
        return self.exact(x_t, t) + self.a + self.b * x_t


def points(process):
    z, eps = sigma_points()
    return M + S * z, process.from_ratio(f64(RATIO)).expand(4), eps


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("prediction", ["x0", "eps", "flow", "edm"])
def test_the_posterior_mean_is_the_minimiser(prediction, process):
    """Zero gradient for every affine change of the posterior mean, and a larger loss beside it."""
    x_0, t, eps = points(process)
    denoiser = Shifted(process, prediction)
    loss = denoising_loss(denoiser, x_0, t, eps, {})
    gradient = torch.autograd.grad(loss, [denoiser.a, denoiser.b])
    assert max(g.abs().item() for g in gradient) < 1e-10 * max(1, loss.item())
    for parameter in (denoiser.a, denoiser.b):
        for step in (0.1, -0.1):
            with torch.no_grad():
                parameter += step
                assert denoising_loss(denoiser, x_0, t, eps, {}) > loss * 1.001
                parameter -= step


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("prediction, weight", [("x0", 1.0), ("eps", RATIO**-2), ("edm", RATIO**-2 + 0.7**-2)])
def test_value_at_the_minimum(prediction, weight, process):
    """weight x posterior variance S^2 ratio^2 / (S^2 + ratio^2)."""
    loss = denoising_loss(Shifted(process, prediction), *points(process), {})
    assert loss.item() == pytest.approx(weight * S**2 * RATIO**2 / (S**2 + RATIO**2), rel=1e-8)


def test_flow_weight_on_a_flow():
    """Velocity eps - x_0 = (x_t - x_0) / t: an error of x_0 counts 1 / t^2."""
    process = RectifiedFlow()
    t = float(process.from_ratio(f64(RATIO)))
    loss = denoising_loss(Shifted(process, "flow"), *points(process), {})
    assert loss.item() == pytest.approx(S**2 * RATIO**2 / (S**2 + RATIO**2) / t**2)


def test_clean_samples_are_constants():
    """The fake score learns from the student and never moves it."""
    student, process = Line(M, S), VarianceExploding()
    z, eps = sigma_points()
    x_g = student(z)
    loss = denoising_loss(Shifted(process), x_g, f64(RATIO).expand(4), eps, {})
    assert torch.autograd.grad(loss, [student.mu, student.s], allow_unused=True) == (None, None)


def test_every_sample_has_its_own_weight():
    process, t = VarianceExploding(), f64(0.2, 1.0, 5.0)
    x_0, eps = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Zero(nn.Module):
        def forward(self, x, time, cond):
            return torch.zeros_like(x)

    found = denoising_loss(Denoiser(Zero(), process, "x0"), x_0, t, eps, {})
    assert found.item() == pytest.approx(x_0.square().mean().item())
    denoiser = Denoiser(Zero(), process, "eps")  # D = x_t, error sigma eps, weight 1 / sigma^2
    assert denoising_loss(denoiser, x_0, t, eps, {}).item() == pytest.approx(eps.square().mean().item())


def test_a_guided_call_can_take_its_place():
    x_0, t, eps = points(VarianceExploding())
    denoiser, seen = Shifted(VarianceExploding()), []

    def denoise(x_t, t, cond):
        seen.append((x_t, cond))
        return torch.zeros_like(x_t)

    loss = denoising_loss(denoiser, x_0, t, eps, {"label": 1}, denoise)
    assert loss.item() == pytest.approx(x_0.square().mean().item())
    assert torch.equal(seen[0][0], x_0 + RATIO * eps) and seen[0][1] == {"label": 1}
