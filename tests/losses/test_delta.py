"""The delta score in closed form: what it moves, how far, and that no noise is left in it."""

from functools import partial

import pytest
import torch
from helpers import PROCESSES, f64, gaussian
from methods.test_sets import MASK, SIZES
from mutations import Mutation, prove

from distillkit.losses.delta import delta_loss

M, S, RATIO = 0.4, 0.8, 0.9
X, Y = f64(1.1, -0.3, 0.7)[:, None], f64(0.4, 0.5, 0.7)[:, None]


def found(process, seed, y=Y, **settings):
    """Loss and gradient at X, noised like y."""
    x, denoiser = X.clone().requires_grad_(), gaussian(M, S, process).denoiser
    eps = torch.randn(X.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    t = process.from_ratio(f64(RATIO)).expand(len(X))
    moved, still = (denoiser(process.add_noise(value, eps, t), t) for value in (x, y))
    loss = delta_loss(x, moved, still, **settings)
    return loss.item(), torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_value_and_gradient_without_noise_variance(process):
    """`g = a (x_g - y)`, a = alpha^2 S^2 / V, whatever the noise: 0.5 mean g^2 and g / N."""
    g = S**2 / (S**2 + RATIO**2) * (X - Y)
    for seed in range(3):
        loss, gradient = found(process, seed)
        assert loss == pytest.approx(0.5 * g.square().mean().item(), rel=1e-6)
        torch.testing.assert_close(gradient, g / 3, rtol=1e-6, atol=1e-9)


def test_it_moves_the_sample_to_the_reference():
    _, gradient = found(PROCESSES["ve"], 0)
    assert torch.equal(gradient.sign(), (X - Y).sign())


def test_equal_samples_are_left_exactly_alone():
    loss, gradient = found(PROCESSES["ve"], 0, y=X)
    assert loss == 0 and not gradient.any()


def test_the_scale_divides_the_gradient_and_is_a_constant():
    scale = f64(2.0, 4.0, 8.0)[:, None].requires_grad_()
    _, plain = found(PROCESSES["ve"], 0)
    loss, divided = found(PROCESSES["ve"], 0, scale=scale)
    torch.testing.assert_close(divided, plain / scale.detach())
    assert loss == pytest.approx(0.5 * (3 * divided).square().mean().item())


def test_what_the_denoiser_says_is_a_constant():
    x, moved, still, scale = (f64(*row)[:, None].requires_grad_() for row in ((1, 2), (3, 5), (2, 7), (1, 2)))
    delta_loss(x, moved, still, scale).backward()
    assert x.grad.any() and moved.grad is still.grad is scale.grad is None


def test_of_a_padded_batch_it_is_the_mean_of_the_samples_alone():
    generator = torch.Generator().manual_seed(3)
    x, moved, still = (torch.randn(3, 6, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    alone = [delta_loss(*(v[i : i + 1, : SIZES[i]] for v in (x, moved, still))) for i in range(3)]
    torch.testing.assert_close(delta_loss(x, moved, still, mask=MASK), torch.stack(alone).mean())


closed = partial(test_value_and_gradient_without_noise_variance, PROCESSES["ve"])
scaled, constant = test_the_scale_divides_the_gradient_and_is_a_constant, test_what_the_denoiser_says_is_a_constant
FAULTS = [
    ("the reference moved", "moved - still", "still - moved", test_it_moves_the_sample_to_the_reference),
    ("the target on the other side", "x_g - g", "x_g + g", test_it_moves_the_sample_to_the_reference),
    ("no reference", "moved - still", "moved", test_equal_samples_are_left_exactly_alone),
    ("nothing stopped", "torch.no_grad()", "torch.enable_grad()", constant),
    ("the samples stopped", "(x_g - target)", "(0 * x_g + x_g.detach() - target)", closed),
    ("the half dropped", "0.5 * mean", "mean", closed),
    ("the distance not squared", ".square()", ".abs()", closed),
    ("the scale dropped", "if scale is not None", "if False", scaled),
    ("the scale squared", "g / scale", "g / scale**2", scaled),
    ("the mask ignored", "square(), mask)", "square())", test_of_a_padded_batch_it_is_the_mean_of_the_samples_alone),
]


@pytest.mark.parametrize("mutation", [Mutation(says, delta_loss, *rest) for says, *rest in FAULTS], ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)
