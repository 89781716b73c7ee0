"""Losses, methods and metrics ignore a protein's pose, its place and the padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow
from distillkit.losses.denoising import denoising_loss
from distillkit.losses.dmd import dmd_loss
from distillkit.losses.sid import sid_loss
from distillkit.methods.mdt_dist import MDTDist
from distillkit.networks.pair_transformer import PairTransformer
from distillkit.teachers.base import Teacher
from domains.protein import geometry
from domains.protein.data import ProteinData
from domains.protein.evaluation import ProteinEvaluator
from domains.protein.folds import IdealFolds

MASK = torch.arange(12) < torch.tensor([12, 7, 9])[:, None]
TURNED = settings(max_examples=8, deadline=None)
SEED = st.integers(0, 10_000)


def denoiser(seed: int) -> Denoiser:
    """One without a closed path, in double precision."""
    network, g = PairTransformer((12, 3), width=8, depth=1, heads=2, pair=4), torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=g)
    return Denoiser(network.double(), RectifiedFlow(), "flow")


def drawn(seed: int, num: int) -> list[Tensor]:
    """Centred chains, [3, 12, 3] each."""
    g = torch.Generator().manual_seed(seed)
    return [geometry.centred(torch.randn(3, 12, 3, generator=g).double(), MASK) for _ in range(num)]


def turn(seed: int) -> Tensor:
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)).double())[0]
    return q * torch.linalg.det(q).sign()


def weights_gradient(loss: Tensor, model: nn.Module) -> Tensor:
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) if g is not None]
    )


# ---- losses


@TURNED
@given(seed=SEED)
@pytest.mark.parametrize("loss", [sid_loss, dmd_loss])
@pytest.mark.parametrize("normalise", [None, "sample"])
def test_a_turned_chain_is_pulled_in_the_turned_direction(loss, normalise, seed):
    """Without the normaliser the gradient turns exactly with the chain.

    The normaliser is a mean of absolute coordinates, so with it the length may change.
    """
    real, fake = denoiser(1), denoiser(2)
    (x, eps), r, t = drawn(seed, 2), turn(seed), torch.tensor([0.9, 0.5, 0.1]).double()

    def pulled(x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        x_t = real.process.add_noise(x, eps, t)
        value = loss(x, *(net(x_t, t, {"mask": MASK}) for net in (real, fake)), normalise=normalise, mask=MASK)
        return value.detach(), torch.autograd.grad(value, x)[0]

    value, gradient = pulled(x, eps)
    turned_value, turned = pulled(x @ r, eps @ r)
    if normalise is None:
        torch.testing.assert_close(turned_value, value)
        torch.testing.assert_close(turned, gradient @ r)
    directions = (nn.functional.normalize(g.flatten(1), dim=1) for g in (turned, gradient @ r))
    torch.testing.assert_close(*directions)
    assert (gradient[~MASK] == 0).all() and (gradient[MASK] != 0).all()


@TURNED
@given(seed=SEED)
def test_denoising_knows_neither_turn_nor_the_place_of_the_noise(seed):
    model, (x, eps), r, t = denoiser(1), drawn(seed, 2), turn(seed), torch.tensor([0.9, 0.5, 0.1]).double()
    loss = denoising_loss(model, x, t, eps, {"mask": MASK})
    torch.testing.assert_close(denoising_loss(model, x @ r, t, eps @ r, {"mask": MASK}), loss)
    torch.testing.assert_close(denoising_loss(model, x, t, eps + eps[:, :1] * 3, {"mask": MASK}), loss)
    mirror = torch.tensor([1.0, 1.0, -1.0]).double()
    assert abs(denoising_loss(model, x * mirror, t, eps * mirror, {"mask": MASK}) - loss) > 1e-9


@TURNED
@given(seed=SEED)
@pytest.mark.parametrize("tangent", ["fd", "product", "jvp"])
def test_transport_distillation_learns_the_same_of_a_turned_chain(tangent, seed):
    model = MDTDist(Teacher(denoiser(1), (12, 3), context=("mask",)), tangent=tangent, ema_halflife=0)
    model.student.load_state_dict(denoiser(2).state_dict())
    (x, eps), r, tau = drawn(seed, 2), turn(seed), torch.tensor([0.9, 0.5, 0.1]).double()
    straight, turned = (model.velocity_matching(a, tau, b, {"mask": MASK}) for a, b in ((x, eps), (x @ r, eps @ r)))
    torch.testing.assert_close(turned, straight)
    torch.testing.assert_close(*(weights_gradient(loss, model.student) for loss in (turned, straight)))


# ---- methods


@pytest.mark.parametrize("tangent", ["fd", "product", "jvp"])
@pytest.mark.parametrize("garbage", [1e6, float("nan")])
def test_transport_distillation_never_reads_the_padding(tangent, garbage):
    """Bit for bit, loss and gradients; SiD's and DMD's are in tests/methods/test_sets.py."""
    model = MDTDist(Teacher(denoiser(1).float(), (12, 3), context=("mask",)), tangent=tangent)
    model.student.load_state_dict(denoiser(2).state_dict())
    (x,) = drawn(0, 1)
    found = []
    for filled in (0.0, garbage):
        batch = {"data": torch.where(MASK[..., None], x.float(), filled), "mask": MASK}
        loss = model.student_loss(batch)
        found.append((loss.detach(), weights_gradient(loss, model.student)))
    (loss, gradient), (again, other) = found
    assert torch.equal(loss, again) and torch.equal(gradient, other) and gradient.abs().sum() > 0


# ---- metrics


@pytest.fixture(scope="module")
def judged() -> tuple[ProteinEvaluator, dict[str, Tensor], dict[str, float]]:
    """An evaluator, chains that are not perfect, and what it says of them."""
    data = ProteinData(IdealFolds(60, 12, 12))
    evaluator, batch = data.evaluator(), data.train[torch.arange(24)]
    noise = 0.02 * torch.randn(batch["data"].shape, generator=torch.Generator().manual_seed(0))
    batch = batch | {"data": batch["data"] + noise * batch["mask"][..., None]}
    return evaluator, batch, evaluator(batch["data"], batch)


@settings(max_examples=5, deadline=None)
@given(seed=SEED, far=st.floats(-5, 5))
def test_no_metric_depends_on_turn_place_or_order(judged, seed, far):
    evaluator, batch, expected = judged
    g = torch.Generator().manual_seed(seed)
    x = batch["data"] @ geometry.rotations(24, g) + far * torch.randn(24, 1, 3, generator=g)
    order = torch.randperm(24, generator=g)
    found = evaluator((x * batch["mask"][..., None])[order], {name: value[order] for name, value in batch.items()})
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # a distance on the edge of a bin may fall to either side
        assert found[name] == pytest.approx(value, abs=5e-3), name


def test_no_metric_reads_the_padding(judged):
    evaluator, batch, expected = judged
    for garbage in (9.0, 1e6):
        assert evaluator(torch.where(batch["mask"][..., None], batch["data"], garbage), batch) == expected
