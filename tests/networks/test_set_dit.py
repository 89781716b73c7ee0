"""SetDiT: a volume in which only the voxels of a set exist."""

import pytest
import torch
from torch import nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow
from distillkit.networks.dit import DiT
from distillkit.networks.set_dit import SetDiT
from distillkit.students.base import load_student
from distillkit.students.few_step import FewStepStudent

SIDE, CHANNELS = 8, 3


def randomised(network: nn.Module) -> nn.Module:
    """Returns the network with no weight at zero, so that no path is closed."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network


def small(**kwargs) -> SetDiT:
    settings = {"side": SIDE, "width": 8, "depth": 2, "heads": 2, "patch": 4, "classes": {"label": 2}} | kwargs
    return randomised(SetDiT((6, CHANNELS), **settings))


def batch(sizes=(6, 3, 1), seed: int = 1) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Distinct random voxels in the first half of the blocks, padded to the largest set."""
    generator = torch.Generator().manual_seed(seed)
    num, most = len(sizes), max(sizes)
    place = torch.stack([torch.randperm(SIDE**3 // 2, generator=generator)[:most] for _ in sizes])
    coords = torch.stack([place // SIDE**2, place // SIDE % SIDE, place % SIDE], -1)
    mask = torch.arange(most) < torch.tensor(sizes)[:, None]
    x = torch.randn(num, most, CHANNELS, generator=generator) * mask[..., None]
    return x, {"coords": coords, "mask": mask, "label": torch.arange(num) % 2}


def test_it_is_a_dit_on_the_volume():
    """It is the plain DiT if every voxel is active, channel for channel and place for place."""
    network, x = small(), torch.randn(1, SIDE**3, CHANNELS, generator=torch.Generator().manual_seed(2))
    axis = torch.arange(SIDE)
    coords = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(1, -1, 3)
    cond = {"coords": coords, "mask": torch.ones(1, SIDE**3, dtype=torch.bool), "label": torch.tensor([1])}
    volume = torch.ones(1, CHANNELS + 1, SIDE, SIDE, SIDE)
    for i, (a, b, c) in enumerate(coords[0].tolist()):
        volume[0, :-1, a, b, c] = x[0, i]
    out = network.dit(volume, torch.tensor([0.3]), cond)[0, :-1]
    expected = torch.stack([out[:, a, b, c] for a, b, c in coords[0].tolist()])
    torch.testing.assert_close(network(x, torch.tensor([0.3]), cond)[0], expected)


@pytest.mark.parametrize("what", ["forward", "features"])
def test_order_and_padding_change_nothing(what):
    network, (x, cond) = small(), batch()
    call = getattr(network, what)
    time = torch.tensor([0.1, 0.5, 0.9])
    expected = call(x, time, cond)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = call(x[:, order], time, {k: v if k == "label" else v[:, order] for k, v in cond.items()})
    if what == "forward":
        expected_there = torch.where(cond["mask"][..., None], expected, 0)[:, order]
        torch.testing.assert_close(torch.where(cond["mask"][:, order, None], shuffled, 0), expected_there)
    else:
        torch.testing.assert_close(shuffled, expected)
    for i, size in enumerate((6, 3, 1)):  # each alone, without padding
        own = {k: v[i : i + 1] if k == "label" else v[i : i + 1, :size] for k, v in cond.items()}
        alone = call(x[i : i + 1, :size], time[i : i + 1], own)[0]
        torch.testing.assert_close(alone, expected[i, :size] if what == "forward" else expected[i])


def test_whatever_lies_in_the_padding():
    x, cond = batch()
    denoiser, t = Denoiser(small(), RectifiedFlow()), torch.tensor([0.1, 0.5, 0.9])
    dirty = torch.where(cond["mask"][..., None], x, torch.nan)
    elsewhere = {**cond, "coords": torch.where(cond["mask"][..., None], cond["coords"], 0)}
    assert torch.equal(denoiser(dirty, t, elsewhere), denoiser(x, t, cond))


def test_voxels_of_different_blocks_see_each_other_and_where_they_are():
    network, (x, cond) = small(), batch((2,))
    cond["coords"] = torch.tensor([[[0, 0, 0], [3, 7, 7]]])
    time = torch.tensor([0.5])
    out = network(x, time, cond)
    moved = network(x, time, cond | {"coords": torch.tensor([[[0, 0, 0], [2, 7, 7]]])})
    other = network(torch.cat([x[:, :1], x[:, 1:] + 1], 1), time, cond)
    assert (out - moved).abs()[0, 0].max() > 1e-4 and (out - other).abs()[0, 0].max() > 1e-4


def test_a_set_without_voxels_is_nothing_and_no_nan():
    network, (x, cond) = small(), batch((4, 0))
    out = Denoiser(network, RectifiedFlow())(x, torch.tensor([0.5, 0.5]), cond)
    assert out.isfinite().all() and (out[1] == 0).all() and (out[0] != 0).all()
    features = network.features(x, torch.tensor([0.5, 0.5]), cond)
    assert features.shape == (2, 8, 8) and (features[1] == 0).all() and (features[0] != 0).any()


def test_gradients_reach_every_weight_and_every_voxel():
    network, (x, cond) = small(), batch()
    x.requires_grad_()
    network(x, torch.tensor([0.1, 0.5, 0.9]), cond)[cond["mask"]].square().sum().backward()
    there = (x.grad != 0).any(-1)
    assert torch.equal(there, cond["mask"])
    seldom = ("classes", "position")  # a class that is not drawn, an empty block
    assert all((p.grad != 0).any() for n, p in network.named_parameters() if not any(s in n for s in seldom))


def test_its_student_folder_loads_and_samples_sets_of_any_size(tmp_path):
    student = FewStepStudent(
        Denoiser(small(), RectifiedFlow()), [1.0], (6, CHANNELS), {"label": 2}, context=("coords", "mask")
    )
    student.save(tmp_path / "student")
    again = load_student(tmp_path / "student")
    for sizes in ((6, 3, 1), (9, 2)):
        _, cond = batch(sizes)
        samples = again.sample(len(sizes), cond)
        assert torch.equal(samples, student.sample(len(sizes), cond))
        assert samples.shape == (len(sizes), max(sizes), CHANNELS) and (samples[~cond["mask"]] == 0).all()


def test_what_it_cannot_read_is_refused():
    with pytest.raises(ValueError, match=r"needs samples \(voxels, channels\)"):
        SetDiT((1, 8, 8, 8))
    with pytest.raises(ValueError, match="needs sides divisible by 4"):
        SetDiT((6, 3), side=6)
    assert isinstance(small().dit, DiT)
