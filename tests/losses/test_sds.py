"""SDS and ASD in closed form: what moves a sample, how far, and what is left of the noise."""

# ruff: noqa: E501 (a fault is a row of a table)

from functools import partial

import pytest
import torch
from helpers import PROCESSES, f64, gaussian
from methods.test_sets import MASK, SIZES
from mutations import Mutation, prove

from distillkit.losses.sds import sds_loss

M, S, U, LATER = 0.4, 0.8, 0.9, 1.3
X = f64(1.1, -0.3, 0.7)[:, None]
EACH = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def found(process, seed=0, later=False):
    """Loss, gradient and noise at X."""
    x, denoiser = X.clone().requires_grad_(), gaussian(M, S, process).denoiser
    eps = torch.randn(X.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    t, s = (process.from_ratio(f64(u)).expand(len(X)) for u in (U, LATER))
    said = [denoiser(process.add_noise(x, eps, time), time) for time in (t, s)]
    loss = sds_loss(x, said[0], process.ratio(t), *([said[1], process.ratio(s)] if later else []))
    return loss.item(), torch.autograd.grad(loss, x)[0], eps


def seen(eps, u):
    """What the teacher of N(M, S^2) takes for eps: `(u (x - M) + u^2 eps) / (S^2 + u^2)`."""
    return (u * (X - M) + u**2 * eps) / (S**2 + u**2)


@EACH
@pytest.mark.parametrize("seed", range(3))
def test_sds_in_terms_of_noise(process, seed):
    """`g = w (eps_real - eps)`, w as of a kept variance: 0.5 mean g^2 and g / N."""
    loss, gradient, eps = found(process, seed)
    g = U**2 / (1 + U**2) * (seen(eps, U) - eps)
    torch.testing.assert_close(gradient, g / 3, rtol=1e-5, atol=1e-8)
    assert loss == pytest.approx(0.5 * g.square().mean().item(), rel=1e-5)


@EACH
@pytest.mark.parametrize("seed", range(3))
def test_asd_in_terms_of_noise(process, seed):
    loss, gradient, eps = found(process, seed, later=True)
    g = U**2 / (1 + U**2) * (seen(eps, U) - seen(eps, LATER))
    torch.testing.assert_close(gradient, g / 3, rtol=1e-5, atol=1e-8)
    assert loss == pytest.approx(0.5 * g.square().mean().item(), rel=1e-5)


def test_the_weight_is_sigma_squared_where_the_variance_is_kept():
    process = PROCESSES["vp"]
    t = process.from_ratio(f64(U))
    assert process.sigma(t).square().item() == pytest.approx(U**2 / (1 + U**2), rel=1e-6)


def test_equal_looks_leave_a_sample_exactly_alone():
    x, real, ratio = X.clone().requires_grad_(), X.sin(), f64(0.5, 1.0, 2.0)
    loss = sds_loss(x, real, ratio, real.clone(), ratio.clone())
    loss.backward()
    assert loss == 0 and not x.grad.any()


def test_what_the_teacher_says_is_a_constant():
    rows = ((1, 2), (3, 5), (2, 7))
    x, real, later = (f64(*row)[:, None].requires_grad_() for row in rows)
    sds_loss(x, real, f64(0.5, 1), later, f64(0.7, 2)).backward()
    assert x.grad.any() and real.grad is later.grad is None


@pytest.mark.parametrize("later", [False, True])
def test_a_larger_picture_is_moved_alike_everywhere(later):
    """Each of four times as many elements has a fourth of the gradient: the direction stays."""
    generator = torch.Generator().manual_seed(0)
    x, real, second = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    further = (second, f64(0.6, 2.2)) if later else ()

    def moved(*pictures):
        x, real, *rest = pictures
        x = x.clone().requires_grad_()
        sds_loss(x, real, f64(0.5, 2), *rest[:1], *further[1:]).backward()
        return x.grad * x[0].numel()

    small = moved(x, real, *further[:1])
    large = moved(*(v.repeat_interleave(2, -1).repeat_interleave(2, -2) for v in (x, real, *further[:1])))
    torch.testing.assert_close(large[..., ::2, ::2], small)


def test_of_a_padded_batch_it_is_the_mean_of_the_samples_alone():
    generator = torch.Generator().manual_seed(3)
    x, real, later = (torch.randn(3, 6, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    u, s = f64(0.5, 1, 2), f64(0.6, 1.2, 2.5)
    alone = [
        sds_loss(x[[i], :n], real[[i], :n], u[[i]], later[[i], :n], s[[i]])
        for i, n in zip(range(3), SIZES, strict=True)
    ]
    torch.testing.assert_close(sds_loss(x, real, u, later, s, MASK), torch.stack(alone).mean())


sds, asd = (partial(test, PROCESSES["ve"], 0) for test in (test_sds_in_terms_of_noise, test_asd_in_terms_of_noise))
FAULTS = [
    ("the sign", "(x_g - real)", "(real - x_g)", sds),
    ("the sign of the second look", "(x_g - later)", "(later - x_g)", asd),
    ("the noise in the place of the second look", "if later is not None", "if False", asd),
    ("the looks swapped", "delta_loss(x_g, moved, still,", "delta_loss(x_g, still, moved,", asd),
    ("the weight squared", "u**2 / (1 + u**2)", "(u**2 / (1 + u**2)) ** 2", sds),
    ("the weight of samples", "weight * (x_g - real) / u", "weight * (x_g - real)", sds),
    ("the level of the first look for both", "expand(later_ratio, x_g)", "u", asd),
    ("the first look not stopped", "delta_loss(x_g, moved, still, mask=mask)", "(moved * x_g).mean()", test_what_the_teacher_says_is_a_constant),
    ("the samples stopped", "delta_loss(x_g,", "delta_loss(0 * x_g + x_g.detach(),", sds),
    ("the mask not handed on", ", mask=mask", "", test_of_a_padded_batch_it_is_the_mean_of_the_samples_alone),
]  # fmt: skip


@pytest.mark.parametrize("mutation", [Mutation(says, sds_loss, *rest) for says, *rest in FAULTS], ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)
