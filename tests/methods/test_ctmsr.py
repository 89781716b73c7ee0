"""CTMSR in closed form on Gaussians, its grids and copies in time, and its student's folder."""

import math

import pytest
import torch
from helpers import BATCH, PROCESSES, Affine, Pairs, at, f64, trainer, wake
from lightning.pytorch import Callback
from torch import nn

from distillkit import load_student
from distillkit.diffusion.process import RectifiedFlow
from distillkit.methods.base import Adam
from distillkit.methods.ctmsr import CTMSR, lower_levels
from distillkit.networks.mlp import MLP

M, S = 0.4, 0.8
FLOW = PROCESSES["flow"]


def plane(process=FLOW, **settings):
    torch.manual_seed(0)
    classes = Pairs.classes
    network = MLP([2], width=8, depth=1, classes=classes)
    return CTMSR(network, process, [2], classes, student=Adam(lr=1e-2), **settings)


def on_a_line(process=FLOW, **settings):
    return CTMSR(MLP([1], width=8, depth=1), process, [1], **settings)


def placed(model, step, total):
    """The model at a step of a run of `total` steps."""
    at(model, step)._trainer.estimated_stepping_batches = total
    return model


# The law of one step


def angles(process, levels):
    """atan(sigma / (alpha S)) of the levels; the first is the datum's."""
    found = torch.atan2(process.sigma(levels), process.alpha(levels) * S)
    return torch.cat([f64(0.0), found[1:]])


class Jumps(nn.Module):
    """The student of N(M, S^2) on a grid, exact at shift 0 and log scale 0 of every level.

    Its std at a level is S times the product of the cosines of all hops up to it.
    """

    def __init__(self, process, levels):
        super().__init__()
        self.process, self.levels = process, levels.double()
        theta = angles(process, self.levels)
        self.ratio = torch.cat([f64(1.0), (theta[1:] - theta[:-1]).cos().cumprod(0)])
        self.shift, self.scale = (nn.Parameter(torch.zeros_like(self.levels)) for _ in range(2))

    def forward(self, x_t, t, cond):
        i = (t[:, None].double() - self.levels).abs().argmin(1)
        alpha, sigma = self.process.alpha(self.levels[i]), self.process.sigma(self.levels[i])
        unit = (x_t - alpha[:, None] * M) / (alpha**2 * S**2 + sigma**2).sqrt()[:, None]
        return M + (self.scale[i].exp() * self.ratio[i] * S)[:, None] * unit + self.shift[i][:, None]

    def gradient(self, loss):
        """dL/d(shift, scale) of every level, [2, levels]."""
        found = torch.autograd.grad(loss, [self.shift, self.scale], allow_unused=True)
        return torch.stack([torch.zeros_like(self.shift) if g is None else g for g in found])


def hopping(process, hops, hop):
    """A model whose student is exact, and a batch whose far ends of one hop are -1 and 1 std.

    What a hop takes away is symmetric around zero, at every far end.
    """
    model = on_a_line(process, hops=[hops, hops], dtm=0)
    levels = model.levels(hops)
    model.student, theta = Jumps(process, levels), angles(process, levels.double())[hop + 1]
    away = torch.distributions.Normal(0, 1).icdf((torch.arange(400).double() + 0.5) / 400)
    far, away = (x.flatten() for x in torch.meshgrid(f64(-1.0, 1.0), away, indexing="ij"))
    data = M + S * (theta.cos() * far - theta.sin() * away)
    eps = theta.sin() * far + theta.cos() * away
    model.draw = lambda num, among, purpose: torch.full((num,), among[hop])
    model.randn = lambda shape, purpose: (eps if purpose == "eps" else eps.flip(0))[:, None]
    return model, {"data": data[:, None]}


@pytest.mark.parametrize("name", ["flow", "ve", "trig"])
@pytest.mark.parametrize("hop", [0, 1, 2])
def test_a_student_of_the_known_law_is_not_pulled(name, hop):
    """At every hop, and nor is what it is compared with."""
    model, batch = hopping(PROCESSES[name], 3, hop)
    found = model.student.gradient(model.student_loss(batch))
    assert found.abs().max() < 1e-6


@pytest.mark.parametrize("hop", [0, 1, 2])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_any_other_student_is_pulled_back_at_the_far_end_alone(hop, sign):
    model, batch = hopping(FLOW, 3, hop)
    for values in (model.student.shift, model.student.scale):
        with torch.no_grad():
            values[hop + 1] += 0.1 * sign
        found = model.student.gradient(model.student_loss(batch))
        which = 0 if values is model.student.shift else 1
        assert sign * found[which, hop + 1] > 1e-3
        found[which, hop + 1] = 0
        assert found[which].abs().max() < 1e-6
        with torch.no_grad():
            values[hop + 1] = 0


def test_the_first_hop_begins_at_the_datum_itself():
    """Not at the student's sample from there, which a network is free to choose."""
    model, batch = hopping(FLOW, 3, 0)
    with torch.no_grad():
        model.student.shift[0] += 5.0
    assert model.student.gradient(model.student_loss(batch)).abs().max() < 1e-6


def test_the_known_law_is_the_product_of_the_cosines():
    """Three hops at equal angles leave 0.6495 of the std, and the flow's of S = 1 0.64."""
    levels = RectifiedFlow(t_min=1e-9).grid(4).flip(0)
    unit = torch.atan2(levels, 1 - levels)
    assert float((unit[1:] - unit[:-1]).cos().prod()) == pytest.approx(0.64, abs=1e-6)
    assert math.cos(math.pi / 6) ** 3 == pytest.approx(0.6495, abs=1e-4)
    model, _ = hopping(FLOW, 3, 0)
    t = model.levels(3)[-1:]
    z = torch.randn(100_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn = model.student(FLOW.sigma(t.double()) * z, t.expand(len(z)), {})
    assert float(drawn.std()) / S == pytest.approx(float(model.student.ratio[-1]), rel=1e-2)
    assert float(drawn.mean()) == pytest.approx(M, abs=1e-2)


def test_every_hop_is_drawn_alike():
    model = at(on_a_line(hops=[4, 4], dtm=0))
    drawn = model.draw(40_000, range(4), "hop")
    assert drawn.bincount(minlength=4).float().div(40_000).sub(0.25).abs().max() < 0.01
    assert set(model.draw(1000, range(3, 5), "t").tolist()) == {3, 4}


# The grid in time


@pytest.mark.parametrize(
    "hops, total, expected",
    [([4, 3], 8, [4, 4, 4, 4, 3, 3, 3, 3]), ([1, 4], 8, [1, 1, 2, 2, 3, 3, 4, 4]), ([5, 5], 3, [5, 5, 5])],
)
def test_the_number_of_hops_moves_in_equal_parts_of_the_run(hops, total, expected):
    model = on_a_line(hops=hops, dtm=0)
    assert [placed(model, step, total).hops_now for step in range(total)] == expected
    assert placed(model, total, total).hops_now == hops[1]  # where a finished run is validated


def test_levels_are_those_of_the_process_from_noise_down_to_the_datum():
    levels = on_a_line(hops=[3, 3]).levels(3)
    torch.testing.assert_close(levels, torch.tensor([0.001, 0.334, 0.667, 1.0]))


def test_the_student_is_called_at_levels_of_the_last_grid():
    for num, expected in ((1, [1.0]), (2, [1.0, 0.667]), (3, [1.0, 0.667, 0.334])):
        assert plane(num_steps=num).product().times == pytest.approx(expected)


# Matching


def matching(model, out, data, at_level=1):
    """The gradient of matching in `out`."""
    model.draw = lambda num, among, purpose: torch.full((num,), at_level)
    out = out.clone().requires_grad_()
    loss = model.matching(out, data, {}, model.levels(3))
    return torch.autograd.grad(loss, out)[0]


def matched(step=10, **settings):
    """A model in whose run of 20 steps matching has joined at step 10, and whose copy is exact."""
    model = placed(on_a_line(dtm_start=0.5, **settings), step, 20)
    model.student, model.frozen = (Jumps(FLOW, model.levels(3)) for _ in range(2))
    return model


OUT, DATA = f64(1.0, 0.2, -0.7)[:, None], f64(0.5, 0.9, -0.4)[:, None]


def test_matching_draws_samples_to_their_data_whatever_the_noise():
    """g is `ratio S alpha / sqrt(alpha^2 S^2 + sigma^2)` of the way, over the way's own length."""
    model = matched()
    t = model.levels(3)[1].double()
    slope = model.student.ratio[1] * S * (1 - t) / ((1 - t) ** 2 * S**2 + t**2).sqrt()
    expected = slope * (OUT - DATA) / (OUT - DATA).abs() / 3
    torch.testing.assert_close(matching(model, OUT, DATA), expected, rtol=1e-5, atol=1e-7)


def test_matching_with_lpips_moves_along_its_gradient_towards_the_same_target():
    model = matched()
    plain = matching(model, OUT, DATA)
    model.lpips = lambda x, y: (x - y).square().flatten(1).sum(1)  # the square, if it were LPIPS
    torch.testing.assert_close(matching(model, OUT, DATA), plain)


def test_matching_takes_the_copy_and_not_the_student():
    model = matched(step=11)
    with torch.no_grad():
        model.student.scale += 1.0
    same = matching(matched(step=11), OUT, DATA)
    torch.testing.assert_close(matching(model, OUT, DATA), same)


@pytest.mark.parametrize("num, expected", [(4, [1]), (5, [1]), (2, [1]), (41, [*range(4, 20)])])
def test_samples_are_matched_at_low_levels(num, expected):
    """Of four levels the released code has only index 1, from a tenth to half of them."""
    assert [*lower_levels(num)] == expected


def test_matching_joins_at_its_share_of_the_run_with_its_weight():
    torch.manual_seed(0)
    model = wake(plane(hops=[3, 3], dtm=1.6, dtm_start=0.5))
    model.frozen.load_state_dict(model.student.state_dict())
    assert [placed(model, step, 20).matches for step in (0, 9, 10, 19)] == [False, False, True, True]
    late = placed(model, 12, 20)
    whole, parts = late.student_loss(BATCH), late.noted
    total = parts["student/consistency"] + 1.6 * parts["student/matching"]
    torch.testing.assert_close(whole.detach(), total)
    assert float(parts["student/matching"]) > 0
    late.dtm_start = 0.9
    torch.testing.assert_close(late.student_loss(BATCH).detach(), parts["student/consistency"])


@pytest.mark.parametrize("never", [{"dtm": 0}, {"dtm_start": 1}])
def test_a_run_without_matching_keeps_no_copy(never):
    assert plane(**never).frozen is None and not any("frozen" in name for name in plane(**never).state_dict())


class Copies(Callback):
    """Weights of the student before each step, and of its copy after it."""

    def __init__(self):
        self.student, self.frozen = [], []

    def on_train_batch_start(self, trainer, model, *_):
        self.student.append({name: value.clone() for name, value in model.student.state_dict().items()})

    def on_train_batch_end(self, trainer, model, *_):
        self.frozen.append({name: value.clone() for name, value in model.frozen.state_dict().items()})
        if trainer.global_step == 7:
            trainer.save_checkpoint(trainer.kept)


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_the_copy_is_renewed_by_the_step_and_resumes_with_the_run(tmp_path):
    """Of ten steps matching joins at the fourth; the copy is that of steps 4 and 7."""
    settings = {"dtm_start": 0.4, "refresh": 3, "hops": [3, 3]}
    copies = Copies()
    straight = plane(**settings)
    run = trainer(10, callbacks=[copies])
    run.kept = tmp_path / "seven.ckpt"
    run.fit(straight, Pairs(batch_size=8))
    for step in range(4, 10):
        since = 4 if step < 7 else 7
        assert same(copies.frozen[step], copies.student[since]), step
        assert not same(copies.frozen[step], copies.student[since + 1])
    again = plane(**settings)
    trainer(10).fit(again, Pairs(batch_size=8), ckpt_path=tmp_path / "seven.ckpt", weights_only=True)
    assert same(straight.state_dict(), again.state_dict())
    assert not any(p.requires_grad for p in straight.frozen.parameters())


# The other half of the distance


def test_half_of_the_distance_is_lpips_of_decoded_samples():
    """Its gradient reaches the far end alone."""
    model = placed(wake(plane(codec=Affine(), hops=[3, 3], dtm=0)), 0, 20)
    out, target = torch.randn(2, 8, 2, generator=torch.Generator().manual_seed(0))
    cond, seen = {"label": BATCH["label"]}, []
    plain = model.distance(out, target, cond)
    model.lpips = lambda *decoded: seen.append(decoded) or torch.arange(8.0)
    torch.testing.assert_close(model.distance(out, target, cond), plain + 0.5 * 3.5)
    torch.testing.assert_close(plain, 0.5 * (out - target).abs().mean())
    for x, decoded in zip((out, target), seen[0], strict=True):
        assert torch.equal(decoded, Affine().decode(x, cond))
    seen.clear()
    model.student_loss({**BATCH, "data": Affine().decode(BATCH["data"], BATCH)})
    assert seen[0][0].requires_grad and not seen[0][1].requires_grad


def test_the_distance_knows_its_eps_and_where_a_set_ends():
    out, target = torch.randn(2, 2, 3, 1, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    each = ((out - target).square() + 0.04).sqrt()
    expected = 0.5 * (each[0].mean() + each[1, 0, 0]) / 2
    torch.testing.assert_close(plane(eps=0.04).distance(out, target, {"mask": mask}), expected)


# What it leaves, and what it refuses


def test_a_folder_without_a_teacher_loads_and_samples_alike(tmp_path):
    model = plane(num_steps=2)
    trainer(3).fit(model, Pairs(batch_size=8))
    model.export(tmp_path / "student")
    student = load_student(tmp_path / "student")
    cond = {"label": torch.tensor([0, 1, 1])}
    assert torch.equal(student.sample(3, cond, 7), model.eval().sample(cond, 3, 7))
    assert "teacher" not in student.config and student.config["method"] == "CTMSR"
    assert student.renoise == "fresh" and student.num_steps == 2


def test_the_codec_is_the_students():
    model = plane(codec=Affine())
    assert model.product().sample(3, {"label": torch.tensor([0, 1, 1])}).shape == (3, 2, 1)
    assert model.check(_shaped((2, 1))) is None
    with pytest.raises(ValueError, match=r"the data have shape \(2,\), the network expects \(2, 1\)"):
        model.check(_shaped((2,)))


def _shaped(shape):
    data = Pairs()
    data.event_shape = shape
    return data


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"hops": [3]}, "hops must be two numbers, for the beginning and the end of the run, got"),
        ({"hops": [3, 0]}, "hops must be at least 1"),
        ({"num_steps": 4}, "num_steps must be at most 3, got 4 (it samples at levels of the last grid)"),
        ({"dtm_start": 1.5}, "dtm_start must lie in [0, 1], got 1.5 (1 is never)"),
        ({"dtm": -1}, "dtm must lie in [0, 1000]"),
        ({"refresh": 0}, "refresh must be at least 1"),
        ({"lpips": "nowhere.pth"}, "nowhere.pth"),
    ],
)
def test_values_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError) as error:
        plane(**settings)
    assert said in str(error.value)


def test_a_run_without_an_end_has_no_shares():
    for settings in ({"hops": [4, 3], "dtm": 0}, {"hops": [3, 3], "dtm_start": 0.5}):
        with pytest.raises(ValueError, match="give trainer.max_steps"):
            trainer(-1).fit(plane(schedule="constant", **settings), Pairs(batch_size=8))


def test_tokens_are_no_numbers():
    with pytest.raises(ValueError, match="CTMSR needs numbers, which"):
        data = Pairs()
        data.provides = frozenset({"data"})
        plane().require(data)
