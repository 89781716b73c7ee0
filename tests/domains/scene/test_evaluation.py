"""Clips between two views: measured beside the true ones, in time and as sets."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from distillkit.evaluation.samples import Diverged
from distillkit.rendering.cameras import look_at
from domains.scene.data import Rooms
from domains.scene.evaluation import SceneEvaluator
from domains.scene.media import SceneMedia, coloured
from domains.scene.warping import warp_error, warped


@pytest.fixture(scope="module")
def held_out():
    data = Rooms(train=8, val=8, test=24)
    data.setup()
    return data.test


@pytest.fixture(scope="module")
def batch(held_out):
    return held_out[torch.arange(len(held_out))]


@pytest.fixture(scope="module")
def evaluator(held_out):
    return SceneEvaluator([held_out])


@pytest.fixture(scope="module")
def real(evaluator, batch):
    return evaluator(batch["data"], batch)


def blurred(x):
    flat = x.transpose(1, 2).flatten(0, 1)
    return F.avg_pool2d(F.pad(flat, (1,) * 4, "replicate"), 3, 1).reshape(x.transpose(1, 2).shape).transpose(1, 2)


def test_true_clips_are_perfect(real):
    assert real["psnr"] == real["psnr_worst"] == 100 and real["ssim"] == pytest.approx(1) and real["error"] == 0
    assert real["frechet"] < 1e-6 and real["video"] < 1e-6 and real["outside"] == 0


def test_the_floor_leaves_out_what_says_nothing_of_true_clips(evaluator, real):
    floor = evaluator.floor(24)
    assert floor.keys() == real.keys() - {"psnr", "psnr_worst", "ssim"} and floor["error"] == 0
    assert floor["warp_error"] == pytest.approx(real["warp_error"])


def test_every_kind_of_fault_is_noticed(evaluator, batch, real):
    x = batch["data"]
    noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for name, made in {"blurred": blurred(x), "noisy": noisy, "coarse": batch["coarse"]}.items():
        found = evaluator(made, batch)
        assert found["frechet"] > 1 and found["psnr"] < 35 and found["ssim"] < 0.98, name
    assert evaluator(noisy, batch)["warp_error"] > 1.3 * real["warp_error"]


def test_errors_are_those_between_the_ends(evaluator, batch):
    """One frame of six is off by 13 of 255 levels, and the ends by anything."""
    x = batch["data"].clone()
    x[:, :, 3] = x[:, :, 3] - 26 / 255 * batch["data"][:, :, 3].sign()  # inwards, so that nothing is cut
    x[:, :, [0, -1]] = 0
    found, off = evaluator(x, batch), (26 / 255) ** 2
    assert found["error"] == pytest.approx((off / 6) ** 0.5, rel=1e-3)
    assert found["psnr"] == pytest.approx(10 * math.log10(4 * 6 / off), abs=0.01)
    assert found["psnr_worst"] == pytest.approx(10 * math.log10(4 / off), abs=0.01)


def test_a_clip_is_measured_beside_the_true_one_of_its_coarse_clip(evaluator, batch):
    order = torch.arange(24).flip(0)
    turned = {name: value[order] for name, value in batch.items()}
    assert evaluator(batch["data"][order], turned)["psnr"] == 100
    assert evaluator(batch["data"], turned)["psnr"] < 20


def test_baselines_need_no_model(evaluator, batch):
    found = evaluator.baselines(batch)
    assert torch.equal(found["coarse"], batch["coarse"])
    fade = found["cross-fade"]
    assert torch.equal(fade[:, :, 0], batch["first"][:, :, 0]) and torch.allclose(
        fade[:, :, -1], batch["first"][:, :, 1]
    )
    assert torch.allclose(fade.diff(n=2, dim=2), torch.zeros(()), atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda x, cond: (x[:, :, :4], cond), "samples have shape"),
        (lambda x, cond: (x * math.nan, cond), "NaN or infinity"),
        (lambda x, cond: (x, cond | {"coarse": -cond["coarse"]}), "there is none for sample 0"),
    ],
)
def test_what_is_refused(evaluator, batch, damage, said):
    with pytest.raises((ValueError, Diverged), match=said):
        evaluator(*damage(batch["data"], batch))


# The geometry


def wall(seen: torch.Tensor, shift: float):
    """Two frames of a wall at distance 2 with a pattern, by cameras `shift` apart, and depths."""
    eyes = torch.tensor([[0.0, 0.0, 0.0], [0.0, shift, 0.0]])
    cameras = look_at(eyes, eyes + torch.tensor([2.0, 0.0, 0.0]), math.pi / 2)[None]
    return seen, cameras, torch.full((1, 1, 2, 16, 16), 2.0)


def test_a_step_to_the_left_moves_a_wall_to_the_right():
    """A pixel of 16 at 90 degrees is 1/4 wide at distance 2; looking along x, y is on the left."""
    first = torch.linspace(-1, 1, 16).expand(1, 3, 1, 16, 16)
    clip, cameras, depth = wall(torch.cat([first, torch.zeros_like(first)], 2), 0.5)
    before, seen = warped(clip, cameras, depth)
    assert torch.allclose(before[0, 0, 0, 5, 2:], first[0, 0, 0, 5, :-2], atol=1e-5)
    assert seen[0, 0, 0, :, 2:].all() and not seen[0, 0, 0, :, :2].any()
    clip[:, :, 1, :, 2:] = first[:, :, 0, :, :-2]
    assert warp_error(clip, cameras, depth).item() == pytest.approx(0, abs=1e-5)
    clip[:, :, 1] += 0.3
    assert warp_error(clip, cameras, depth).item() == pytest.approx(0.3, abs=1e-5)


def test_what_is_hidden_in_the_frame_before_does_not_count():
    clip, cameras, depth = wall(torch.zeros(1, 3, 2, 16, 16), 0.0)
    depth[:, :, 0, :, :4] = 1.0  # something stood in front
    assert warped(clip, cameras, depth)[1].sum() == 16 * 12


def test_geometry_of_rooms_agrees_with_their_pictures(batch):
    """Neighbouring frames show nearly the same colours where the geometry says so."""
    error = warp_error(batch["data"], batch["cameras"], batch["depth"])
    wrong = warp_error(batch["data"], batch["cameras"].flip(1), batch["depth"])
    assert error.mean() < 0.15 and wrong.nanmean() > 1.5 * error.mean()


# Pictures


def test_pictures_show_coarse_made_true_and_depth(held_out, batch, tmp_path):
    media = SceneMedia(held_out)
    some = {name: value[:2] for name, value in batch.items()}
    wide, high = media.picture(some["data"], some).size
    assert (wide, high) == (8 * 34, 4 * 34)  # strips of coarse and made clips
    sheet = media.compare({"student": some["data"], "teacher": some["coarse"]}, some)
    assert sheet.size[1] > 5 * 2 * 32  # five sets of two clips
    rows = {"student": some["data"], "teacher": some["coarse"], "real": some["data"]}
    assert media.compare(rows, some) == sheet  # real clips are the true ones
    assert media.compare(rows, {}).size[1] > media.compare({k: rows[k] for k in ("student", "teacher")}, {}).size[1]
    paths = media.save(some["data"], some, tmp_path)
    assert {path.name for path in paths} == {"clips.gif", "clips.mp4"} and all(path.stat().st_size for path in paths)


def test_clips_of_other_data_have_no_true_one(held_out, batch):
    media = SceneMedia(held_out)
    assert media.truth({"coarse": -batch["coarse"]}) == {} and media.truth(None) == {}
    assert media.truth(batch).keys() == {"true", "depth"}


def test_near_is_red_and_far_is_blue():
    depth = torch.full((1, 1, 1, 2, 2), 4.0)
    depth[..., 0, 0] = 1.0
    near, far = coloured(depth)[0, :, 0, 0, 0], coloured(depth)[0, :, 0, 1, 1]
    assert near[0] > near[2] and far[2] > far[0]
