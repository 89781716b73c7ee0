"""Noise optimisation: closed forms with linear samplers, and what each sample is promised."""

from __future__ import annotations

import pytest
import torch

from distillkit.control.control import Asked, Control
from distillkit.control.noise import Found, NoiseOptimizer

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


A, B, Z = torch.eye(6, dtype=torch.float64) + 0.1 * randn(6, 6), randn(6), randn(4, 6)  # x = A z + b; starts


class Linear(Control):
    """|C x - y|^2."""

    name = "linear"

    def __init__(self, features, target):
        super().__init__(Asked((6,)))
        self.features, self.target = features, target

    @classmethod
    def read(cls, text, asked):
        raise NotImplementedError

    def loss(self, x, cond):
        return (x @ self.features.T - self.target).square().sum(1)


def affine(z, cond):
    return z @ A.T + B


ONE = Linear(torch.eye(6, dtype=torch.float64)[:1], torch.ones(1, dtype=torch.float64))  # the first number is one


# ---- closed forms


def test_the_optimum_is_the_least_squares_solution():
    """More is asked than there are numbers: one minimum, whatever the start."""
    features, target = torch.linalg.qr(randn(9, 6))[0], randn(9)
    expected = torch.linalg.lstsq(features @ A, (target - features @ B)[:, None]).solution[:, 0]
    least = (features @ (A @ expected + B) - target).square().sum()
    found = NoiseOptimizer(affine, [Linear(features, target)], steps=400, lr=0.1)(Z, {})
    assert (found.noise - expected).abs().max() < 1e-6
    assert least > 0.1 and (found.loss - least).abs().max() < 1e-9


def test_what_is_not_asked_for_stays_as_it_was():
    """Less is asked than there are numbers: the change is the smallest that does it.

    `z* = z + pinv(C A) (y - C (A z + b))`. Adam keeps to it where each demand weighs its own
    numbers alike, as here; in general it does not.
    """
    weights = torch.zeros(2, 6, dtype=torch.float64)
    weights[0, :2], weights[1, 3:] = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.5, -0.5])
    features, target = weights @ torch.linalg.inv(A), randn(2)
    missing = target - affine(Z, {}) @ features.T
    found = NoiseOptimizer(affine, [Linear(features, target)], steps=300, lr=0.05)(Z, {})
    assert (found.noise - (Z + missing @ torch.linalg.pinv(features @ A).T)).abs().max() < 1e-5
    assert (found.noise[:, 2] - Z[:, 2]).abs().max() < 1e-6


def test_losses_of_controls_are_added():
    pair = [Linear(*(f(each) for each in (ONE.features, ONE.target))) for f in (lambda x: x, lambda x: -2 * x)]
    both = NoiseOptimizer(affine, pair, steps=0)(Z, {})
    assert torch.allclose(both.loss, ONE.loss(affine(Z, {}), {}) * 5)
    weighed = NoiseOptimizer(affine, pair, steps=0, weights=[3.0, 2.0])(Z, {})
    assert torch.allclose(weighed.loss, ONE.loss(affine(Z, {}), {}) * (3 + 2 * 4))
    with pytest.raises(ValueError, match="weights must be positive, got \\[1.0, 0.0\\]"):
        NoiseOptimizer(affine, pair, weights=[1.0, 0.0])


# ---- what each sample is promised


def test_the_best_noise_is_kept_not_the_last():
    optimizer = NoiseOptimizer(affine, [ONE], steps=30, lr=0.5)  # jumps over the minimum and back
    found = optimizer(Z, {})
    assert torch.equal(found.loss, optimizer.loss(found.noise, {})) and torch.equal(found.loss, found.history.amin(1))
    assert (found.history[:, -1] > found.loss).any() and (found.history.argmin(1) < 30).any()
    assert found.history.shape == (4, 31) and torch.equal(found.history[:, 0], optimizer.loss(Z, {}))


def test_the_noise_after_the_last_step_counts():
    optimizer = NoiseOptimizer(affine, [ONE], steps=1, lr=1e-3)
    found, moved = optimizer(Z, {}), Z.clone().requires_grad_()
    optimizer.loss(moved, {}).sum().backward()
    assert torch.allclose(found.noise, Z - 1e-3 * moved.grad.sign(), atol=1e-8)  # Adam's first step
    assert (found.history[:, 1] < found.history[:, 0]).all()


def test_samples_are_independent():
    cond = {"label": torch.arange(4)}

    def sample(z, cond):
        return affine(z, cond) + cond["label"][:, None]

    class Own(Linear):
        def loss(self, x, cond):
            return super().loss(x, cond) * (1 + cond["label"])

    own = Own(ONE.features, ONE.target)
    together = NoiseOptimizer(sample, [own], steps=25, lr=0.1)(Z, cond)
    for i in range(4):
        alone = NoiseOptimizer(sample, [own], steps=25, lr=0.1)(Z[i : i + 1], {"label": cond["label"][i : i + 1]})
        assert torch.allclose(alone.noise[0], together.noise[i], atol=1e-12, rtol=0)
    again = NoiseOptimizer(sample, [own], steps=25, lr=0.1)(Z, cond)
    assert torch.equal(again.noise, together.noise) and torch.equal(again.history, together.history)


def test_a_sample_that_is_good_enough_leaves_the_batch():
    seen = []

    def sample(z, cond):
        seen.append(cond["row"].tolist())
        return affine(z, cond)

    start, cond = Z.clone(), {"row": torch.arange(4)}
    start[2, 0] += (1 - affine(Z, {})[2, 0]) / A[0, 0]  # has what is asked for already
    found = NoiseOptimizer(sample, [ONE], steps=100, lr=0.05, tolerance=1e-4)(start, cond)
    assert torch.equal(found.noise[2], start[2]) and found.history[2].isfinite().sum() == 1
    assert (found.loss <= 1e-4).all() and (found.loss[[0, 1, 3]] > 0).all()
    steps = found.history.isfinite().sum(1)
    assert torch.equal(found.taken, steps - 1)
    assert [sum(i in rows for rows in seen) for i in range(4)] == steps.tolist() and steps.max() < 101
    assert seen[0] == [0, 1, 2, 3] and seen[1] == [0, 1, 3]
    free = NoiseOptimizer(affine, [ONE], steps=int(steps[0]) - 1, lr=0.05)(start, {})  # those left are not disturbed
    assert torch.allclose(free.noise[0], found.noise[0], atol=1e-12, rtol=0)


def test_steps_without_a_gradient_are_left_out():
    """Of the sample that has none; the others go on, and Adam's state of it does not move."""
    broken = iter([False, True, True, False] + 100 * [False])

    def sample(z, cond):
        x = affine(z, cond)
        return torch.stack([x[0], x[1] + (0 * x[1]).sqrt(), *x[2:]]) if next(broken) else x

    found = NoiseOptimizer(sample, [ONE], steps=12, lr=0.05)(Z, {})
    whole = NoiseOptimizer(affine, [ONE], steps=12, lr=0.05)(Z, {})
    shorter = NoiseOptimizer(affine, [ONE], steps=10, lr=0.05)(Z, {})
    assert found.skipped.tolist() == [0, 2, 0, 0] and whole.skipped.sum() == 0
    assert torch.equal(found.noise[[0, 2, 3]], whole.noise[[0, 2, 3]])
    assert torch.equal(found.noise[1], shorter.noise[1])


def test_a_sample_at_the_tolerance_is_done_and_has_left_out_nothing():
    losses = ONE.loss(affine(Z, {}), {})
    least, cond = int(losses.argmin()), {"row": torch.arange(4)}

    def sample(z, cond):  # without a gradient for this sample
        x = affine(z, cond)
        return torch.where(cond["row"][:, None] == least, x + (0 * x).sqrt(), x)

    found = NoiseOptimizer(sample, [ONE], steps=3, lr=1e-3, tolerance=float(losses.min()))(Z, cond)
    assert torch.equal(found.noise[least], Z[least]) and found.taken[least] == found.skipped[least] == 0
    assert (found.taken > 0).sum() == 3


def test_a_sample_that_never_has_a_loss_keeps_its_noise():
    found = NoiseOptimizer(lambda z, cond: z * torch.nan, [ONE], steps=3)(Z, {})
    assert torch.equal(found.noise, Z) and found.loss.isinf().all()
    assert found.taken.tolist() == found.skipped.tolist() == [3] * 4


def test_projected_noise_has_the_norm_of_its_size():
    found = NoiseOptimizer(affine, [ONE], steps=20, lr=0.1, project=True)(Z, {})
    free = NoiseOptimizer(affine, [ONE], steps=20, lr=0.1)(Z, {})
    assert torch.allclose(found.noise.norm(dim=1), torch.full((4,), 6.0, dtype=torch.float64).sqrt())
    assert (free.noise.norm(dim=1) - 6**0.5).abs().min() > 1e-3
    assert (found.loss < found.history[:, 0]).all()


def test_the_noise_given_is_not_changed():
    before = Z.clone()
    found = NoiseOptimizer(affine, [ONE], steps=3)(Z, {})
    assert torch.equal(Z, before) and not found.noise.requires_grad and found.seconds > 0


def test_parts_join_in_order():
    optimizer = NoiseOptimizer(affine, [ONE], steps=5)
    parts = [optimizer(Z[:3], {}), optimizer(Z[3:], {})]
    found, whole = Found.joined(parts), optimizer(Z, {})
    for name in ("noise", "loss", "history", "taken", "skipped"):
        assert torch.allclose(getattr(found, name), getattr(whole, name))
    assert found.seconds == sum(part.seconds for part in parts)


@pytest.mark.parametrize("settings", [{"steps": -1}, {"lr": 0.0}, {"tolerance": float("nan")}])
def test_numbers_without_sense_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        NoiseOptimizer(affine, [ONE], **settings)
