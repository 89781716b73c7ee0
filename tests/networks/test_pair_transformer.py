"""PairTransformer: chains in space, however they are rotated and padded."""

import pytest
import torch
from torch import nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow
from distillkit.networks.pair_transformer import PairTransformer
from distillkit.students.base import load_student
from distillkit.students.few_step import FewStepStudent

TIME = torch.tensor([0.1, 0.5, 0.9])
SIZES = (9, 7, 4)


def randomised(network: nn.Module) -> nn.Module:
    """Returns the network with no weight at zero, so that no path is closed."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network


def small(**kwargs) -> PairTransformer:
    settings = {"width": 8, "depth": 2, "heads": 2, "pair": 6, "classes": {"label": 2}} | kwargs
    return randomised(PairTransformer((9, 3), **settings))


def batch(sizes=SIZES, padded: int | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Random chains with neighbours about 0.4 apart."""
    generator = torch.Generator().manual_seed(1)
    x = (0.25 * torch.randn(len(sizes), max(sizes), 3, generator=generator)).cumsum(1)
    mask = torch.arange(padded or max(sizes)) < torch.tensor(sizes)[:, None]
    x = nn.functional.pad(x, (0, 0, 0, mask.shape[1] - x.shape[1])) * mask[..., None]
    return x, {"mask": mask, "label": torch.arange(len(sizes)) % 2}


def rotation(seed: int = 0) -> torch.Tensor:
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    return q * torch.linalg.det(q)


def test_turning_the_input_turns_the_output_and_leaves_features_alone():
    network, (x, cond), turn = small().double(), batch(), rotation()
    x, time = x.double(), TIME.double()
    out = network(x, time, cond)
    torch.testing.assert_close(network(x @ turn, time, cond), out @ turn)
    torch.testing.assert_close(network.features(x @ turn, time, cond), network.features(x, time, cond))
    assert out[cond["mask"]].abs().min() > 1e-4


def test_a_mirror_image_is_another_chain():
    network, (x, cond) = small().double(), batch()
    x, time, mirror, there = x.double(), TIME.double(), torch.tensor([1.0, 1.0, -1.0]).double(), cond["mask"]
    out, tokens = network(x, time, cond), network.features(x, time, cond)
    assert (network(x * mirror, time, cond) - out * mirror)[there].abs().max() > 1e-2
    assert (network.features(x * mirror, time, cond) - tokens).abs().max() > 1e-5  # rounding is below 1e-12


def test_the_direction_of_the_chain_counts():
    network, (x, cond) = small(), batch((9, 9, 9))
    back = network(x.flip(1), TIME, cond).flip(1)
    assert (back - network(x, TIME, cond)).abs().max() > 1e-3


@pytest.mark.parametrize("what", ["forward", "features"])
def test_more_padding_changes_nothing(what):
    network = small()
    (x, cond), (longer, more) = batch(), batch(padded=14)
    expected, found = (getattr(network, what)(*pair) for pair in ((x, TIME, cond), (longer, TIME, more)))
    if what == "features":
        expected, found = expected.mT, found.mT
        assert (found[~more["mask"]] == 0).all()
    torch.testing.assert_close(found[more["mask"]], expected[cond["mask"]])
    for i, size in enumerate(SIZES):  # each alone, without padding
        own = {"mask": cond["mask"][i : i + 1, :size], "label": cond["label"][i : i + 1]}
        alone = getattr(network, what)(x[i : i + 1, :size], TIME[i : i + 1], own)[0]
        torch.testing.assert_close(alone.mT if what == "features" else alone, expected[i, :size])


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e30])
def test_what_lies_in_the_padding_is_never_read(garbage):
    """Bit for bit, in the output and in the gradients of every weight."""
    x, cond = batch()
    gradients, answers = [], []
    for fill in (0.0, garbage):
        denoiser = Denoiser(small(), RectifiedFlow(), "flow")
        out = denoiser(torch.where(cond["mask"][..., None], x, fill), TIME, cond)
        out[cond["mask"]].square().sum().backward()
        answers.append(out.detach())
        gradients.append([p.grad for p in denoiser.parameters()])
    assert torch.equal(*answers) and (answers[0][~cond["mask"]] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_gradients_reach_every_weight_and_every_residue():
    network, (x, cond) = small(), batch()
    x.requires_grad_()
    network(x, TIME, cond)[cond["mask"]].square().sum().backward()
    assert torch.equal((x.grad != 0).any(-1), cond["mask"]) and x.grad.isfinite().all()
    assert all((p.grad != 0).any() for n, p in network.named_parameters())


def test_a_denoiser_of_centred_samples_neither_sees_nor_gives_a_place():
    denoiser, (x, cond) = Denoiser(small(), RectifiedFlow(), "flow"), batch()
    there = cond["mask"][..., None]
    out = denoiser(x, TIME, cond)
    assert (out.sum(1) / cond["mask"].sum(1, keepdim=True)).abs().max() < 1e-5
    torch.testing.assert_close(
        denoiser(x + there * torch.tensor([5.0, -3.0, 1.0]), TIME, cond), out, atol=1e-4, rtol=1e-4
    )
    full = {"label": cond["label"], "mask": torch.ones(3, 9, dtype=torch.bool)}
    assert denoiser(x + 7.0, TIME, full).mean(1).abs().max() < 1e-5


def test_it_starts_as_nothing_and_can_be_told_the_step_that_it_judges():
    network, (x, cond) = PairTransformer((9, 3), width=8, heads=2, classes={"label": 2}), batch()
    assert (network(x, TIME, cond) == 0).all()
    network = small()
    network.embed.tell("step", categories=4)
    expected = network(x, TIME, cond | {"step": torch.tensor([0, 0, 0])})
    nn.init.normal_(network.embed.told["step"].weight)
    assert (network(x, TIME, cond | {"step": torch.tensor([3, 3, 3])}) - expected).abs().max() > 1e-4


def test_its_student_folder_loads_and_makes_chains_of_any_length(tmp_path):
    denoiser = Denoiser(small(), RectifiedFlow(), "flow")
    student = FewStepStudent(denoiser, [0.7, 0.2], (9, 3), {"label": 2}, context=("mask",), noise_scale=0.45)
    again = load_student(student.save(tmp_path / "student"))
    for sizes in ((9, 7, 4), (12, 5)):
        _, cond = batch(sizes)
        samples = again.sample(len(sizes), cond)
        assert torch.equal(samples, student.sample(len(sizes), cond))
        assert samples.shape == (len(sizes), max(sizes), 3) and (samples[~cond["mask"]] == 0).all()


def test_forward_mode_agrees_with_finite_differences():
    """MDT-dist with `tangent=jvp` needs these derivatives."""
    network, (x, cond) = small().double(), batch()
    x, v = (
        x.double(),
        torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double() * cond["mask"][..., None],
    )
    rate = torch.func.jvp(lambda y: network(y, TIME.double(), cond), (x,), (v,))[1]
    there, h = cond["mask"], 1e-6
    quotient = (network(x + h * v, TIME.double(), cond) - network(x - h * v, TIME.double(), cond)) / (2 * h)
    torch.testing.assert_close(rate[there], quotient[there], rtol=1e-4, atol=1e-5)


def test_what_it_cannot_read_is_refused():
    with pytest.raises(ValueError, match=r"needs samples \(points, 3\)"):
        PairTransformer((9, 2))
    with pytest.raises(ValueError, match="divisible by heads"):
        PairTransformer((9, 3), width=10, heads=4)
