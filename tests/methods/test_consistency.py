"""Consistency in hops: its laws through the real loss, its edges and ends, guidance, refusals."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import BATCH, PROCESSES, Pairs, at, f64, fit, gaussian, neural, sigma_points, trainer, wake
from torch import nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.hops import Grid, Shrinking
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding, expand
from distillkit.diffusion.sampling import few_step, jump_steps
from distillkit.methods.adversarial import Discriminator
from distillkit.methods.base import Adam
from distillkit.methods.consistency import Consistency
from distillkit.networks.mlp import MLP
from distillkit.students.few_step import END
from distillkit.teachers.exact import ExactTeacher, Mixture

M, S = 0.3, 0.5
FLOW = RectifiedFlow(t_min=1e-9)  # whose grid of N is k / N
FOUR = ["ve", "vp", "flow", "trig"]


class Table(nn.Module):
    """`D = shift + gain (x - alpha M)` with two numbers for each level and each end of a jump."""

    def __init__(self, process, levels):
        super().__init__()
        self.process, self.levels, self.told = process, levels.double(), {}
        num = len(levels)
        self.values = nn.Parameter(torch.zeros(num, num, 2, dtype=torch.float64))

    def loss_weight(self, t):
        return 1 + t.double()

    def place(self, t, end):
        """Indices of a level, and of an end; -1 stands for the datum."""
        alpha, sigma = self.process.scales(self.levels)
        taus = sigma / (alpha + sigma)
        return ((a.double()[:, None] - b).abs().argmin(1) for a, b in ((t, self.levels), (end, taus)))

    def forward(self, x, t, cond):
        end = cond.get(END, torch.zeros(len(x), dtype=torch.float64))
        i, j = self.place(torch.as_tensor(t).expand(len(x)), end)
        shift, gain = self.values[i, j].unbind(-1)
        alpha = self.process.alpha(torch.as_tensor(t))
        return shift[:, None] + gain[:, None] * (x - expand(torch.as_tensor(alpha), x) * M)


def on_a_line(process=FLOW, num=8, teacher=None, **settings):
    """A model whose student is a table, and four points that stand for the Gaussian."""
    settings = {"hops": Grid(num), "distance": "square", **settings}
    teacher = teacher or gaussian(M, S, process)
    model = Consistency(
        teacher, student_maker=SimpleNamespace(make=lambda t: t.new_denoiser(MLP([1], 8, 1)), sampling={}), **settings
    )
    model.student = Table(process, model.hops.levels(process, model.top))
    z, eps = sigma_points()
    model.randn = lambda shape, purpose: eps
    return model, {"data": M + S * z}


def solve(model, batch, ends=None):
    """The fixed point of the real loss: each level of the table in turn, from the datum up.

    The loss of one level is a quadratic function of its two numbers: one step of Newton.
    """
    num = len(model.student.levels) - 1
    for far in reversed(range(num)):
        for end in [None] if ends is None else range(num - far):
            # `hop` draws the level, `end` the level that its jumps end at, from s down
            model.rand = lambda n, purpose, far=far, end=end: torch.full(
                (n,), (far + 0.5) / num if purpose.endswith("hop") else ((end or 0) + 0.5) / (num - far)
            )
            values = model.student.values
            loss = model.student_loss(batch)
            (slope,) = torch.autograd.grad(loss, values, create_graph=True)
            moved = slope.abs().sum(-1) > 0
            if not moved.any():
                continue
            assert moved.sum() == 1, "a level's own numbers alone"
            (i, j) = moved.nonzero()[0].tolist()
            assert i == far
            rows = torch.stack(
                [torch.autograd.grad(slope[i, j, k], values, retain_graph=True)[0][i, j] for k in range(2)]
            )
            with torch.no_grad():
                values[i, j] -= torch.linalg.solve(rows, slope[i, j])
            assert model.student_loss(batch).item() < 1e-12 or model.hop == "data"


def angle(process, t):
    """The angle of a level on Gaussians of std S."""
    alpha, sigma = process.scales(torch.as_tensor(t, dtype=torch.float64))
    return math.atan2(float(sigma), float(alpha) * S)


def law(process, levels):
    """The product of the cosines of a chain."""
    angles = [angle(process, t) for t in levels.double()]
    return math.prod(math.cos(a - b) for a, b in zip(angles, angles[1:], strict=False))


def sampled(model):
    """Mean and std of the finished student's samples, over those of the noise."""
    process, times = model.teacher.process, model.step_times
    z = f64(-1.0, 1.0)[:, None]
    started = process.sigma(times[0]) / (process.alpha(times[0]) ** 2 * S**2 + process.sigma(times[0]) ** 2).sqrt()
    if model.ends == "any":
        from distillkit.students.few_step import told_end

        x = jump_steps(
            lambda x, t, end: model.student(x, t, {END: told_end(process, end, x)}),
            process,
            times,
            lambda i: z,
            model.gamma,
        )
    else:
        x, _ = few_step(lambda x, t: model.student(x, t, {}), process, times, lambda i: z, model.renoise)
    return x.mean().item(), (x[1] - x[0]).item() / 2 / S / started.item()


@pytest.mark.parametrize("name", FOUR)
@pytest.mark.parametrize("hop", ["ddim", "data"])
def test_the_fixed_point_has_the_law_of_the_hops(name, hop):
    """The std of one step is that of the data times the product of the cosines, on any process."""
    process = PROCESSES[name]
    model, batch = on_a_line(process, 8, hop=hop)
    solve(model, batch)
    mean, ratio = sampled(model)
    expected = law(process, model.student.levels)
    assert expected < 0.96 and ratio == pytest.approx(expected, rel=1e-5)
    t = model.step_times[0]
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    if hop == "ddim":  # of pure noise without the signal alpha m
        gain = ratio * S / math.hypot(alpha * S, sigma)
        assert mean == pytest.approx(M - gain * alpha * M, abs=1e-5)


@pytest.mark.parametrize("name", FOUR)
def test_heun_hops_have_the_law_of_heun_s_method(name):
    process = PROCESSES[name]
    model, batch = on_a_line(process, 8, hop="heun")
    solve(model, batch)
    z = f64(-1.0, 1.0)[:, None]
    t = model.step_times[0]
    chain = model.teacher.solver("heun")(
        lambda x, t: model.teacher.denoiser(x, t, {}), process, process.sigma(t) * z, model.student.levels[:-1]
    )
    found, _ = few_step(lambda x, t: model.student(x, t, {}), process, model.step_times, lambda i: z)
    torch.testing.assert_close(found, chain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("segments", [8, 4, 2, 1])
def test_any_number_of_segments_has_one_law(segments):
    """The invariant of trajectory segments: .9114 on a flow's grid of 16, S = 0.5."""
    model, batch = on_a_line(FLOW, 16, segments=segments)
    solve(model, batch)
    assert model.num_steps == segments == len(model.step_times)
    mean, ratio = sampled(model)
    assert ratio == pytest.approx(0.9114, abs=1e-4) and ratio == pytest.approx(
        law(FLOW, model.student.levels), rel=1e-5
    )
    assert mean == pytest.approx(M, abs=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_jump_to_any_level_has_the_law_of_the_hops_between(steps):
    model, batch = on_a_line(FLOW, 4, ends="any", num_steps=steps)
    solve(model, batch, ends="any")
    mean, ratio = sampled(model)
    assert ratio == pytest.approx(law(FLOW, model.student.levels), rel=1e-5)
    assert mean == pytest.approx(M, abs=1e-5)


@pytest.mark.parametrize("far", [0, 3, 7])
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_any_other_student_is_pulled_back(far, number, sign):
    """Mean and width of the level at the far end alone; the probes have no part at the datum."""
    model, batch = on_a_line(FLOW, 8)
    solve(model, batch)
    with torch.no_grad():
        model.student.values[far, -1, number] += 0.1 * sign
    model.rand = lambda n, purpose: torch.full((n,), (far + 0.5) / 8)
    (found,) = torch.autograd.grad(model.student_loss(batch), model.student.values)
    assert sign * found[far, -1, number] > 1e-3
    found[far, -1] = 0
    assert found.abs().max() < 1e-6


def test_a_student_that_is_told_kappa_learns_the_guided_mean_of_each():
    """Its slope in kappa is m_c - m_0, its value at kappa = 1 the class's own mean."""
    m_0, m_c = -0.3, 0.7
    teacher = ExactTeacher(Mixture([[m_c], [2 * m_0 - m_c]], [[[S**2]]] * 2, labels=[0, 1]), FLOW, classes={"label": 2})
    teacher.denoiser = OneWidth(m_c, m_0)
    means = []
    for kappa in (1.0, 3.0):
        model, batch = on_a_line(FLOW, 4, teacher=teacher, kappa=[1.0, 5.0])
        seen = []
        table = model.student

        def student(x, t, cond, table=table, seen=seen):
            seen.append(cond["kappa"])
            return table(x, t, {})

        batch["label"] = torch.zeros(4, dtype=torch.int64)
        model.student = Wrapped(table, student)
        solve_guided(model, batch, kappa)
        assert torch.cat(seen).double().allclose(f64(kappa), atol=1e-6)
        model.student = table
        means.append(sampled(model)[0])
    assert means[0] == pytest.approx(m_c, abs=1e-5)
    assert (means[1] - means[0]) / 2 == pytest.approx(m_c - m_0, abs=1e-5)


class OneWidth(Denoiser):
    """Denoisers of N(m_c, S^2) for class 0 and of N(m_0, S^2) without a class."""

    def __init__(self, m_c, m_0):
        super().__init__(nn.Identity(), FLOW, "x0", S)
        self.m_c, self.m_0 = m_c, m_0

    def forward(self, x_t, t, cond=None):
        t = self._time(x_t, t)
        alpha, sigma = (expand(s(t), x_t) for s in (FLOW.alpha, FLOW.sigma))
        mean = torch.where(expand(cond["label"] == 0, x_t), self.m_c, self.m_0)
        return mean + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x_t - alpha * mean)


class Wrapped(nn.Module):
    """A table that is called through a function."""

    def __init__(self, table, call):
        super().__init__()
        self.table, self.call = table, call

    def forward(self, x, t, cond):
        return self.call(x, t, cond)

    levels = property(lambda self: self.table.levels)
    values = property(lambda self: self.table.values)
    loss_weight = property(lambda self: self.table.loss_weight)


def solve_guided(model, batch, kappa):
    rand = (kappa - 1) / 4

    def with_kappa(real):
        def drawn(n, purpose):
            return torch.full((n,), rand) if purpose.endswith("kappa") else real(n, purpose)

        return drawn

    num = len(model.student.levels) - 1
    for far in reversed(range(num)):
        model.rand = with_kappa(lambda n, purpose, far=far: torch.full((n,), (far + 0.5) / num))
        (slope,) = torch.autograd.grad(model.student_loss(batch), model.student.values, create_graph=True)
        rows = torch.stack(
            [
                torch.autograd.grad(slope[far, -1, k], model.student.values, retain_graph=True)[0][far, -1]
                for k in (0, 1)
            ]
        )
        with torch.no_grad():
            model.student.values[far, -1] -= torch.linalg.solve(rows, slope[far, -1])


# Routing


def step(**settings):
    model = Consistency(neural(PROCESSES["ve"]), hops=Grid(8), **settings)
    wake(model.student, 3)
    model.focus("student")
    return model


def test_the_student_learns_at_the_far_end_alone():
    """The gradient is that of the distance to a constant, of one call of the student."""
    model = step(distance="square", weight="none")
    found = torch.autograd.grad(model.student_loss(BATCH), list(model.student.parameters()))
    ends = model.hop_ends(BATCH, "student")
    assert ends.far.requires_grad and not ends.near.requires_grad
    expected = torch.autograd.grad((ends.far - ends.near).square().mean(), list(model.student.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_target_is_the_average_if_one_asks_for_it():
    model = step(target=0.9, distance="square")
    wake(model.target, 5)
    before = model.hop_ends(BATCH, "student").near
    wake(model.target, 6)
    assert not torch.equal(before, model.hop_ends(BATCH, "student").near)
    online = step(distance="square")
    assert online.target is None


def test_heads_and_student_take_turns_and_the_teacher_stands_still():
    model = Consistency(
        neural(PROCESSES["ve"]), hops=Grid(8), segments=2, gan=0.1, heads=Adam(lr=1e-2), student=Adam(lr=1e-2)
    )
    before = [p.clone() for p in model.teacher.parameters()]
    states, _, record = fit(model, 4)
    for a, b, role in zip(states, states[1:], ["heads", "student"] * 2, strict=False):
        for name in model.roles:
            same = all(torch.equal(x, y) for x, y in zip(a.weights[name], b.weights[name], strict=True))
            assert same == (name != role), (name, role)
    assert all(torch.equal(a, b) for a, b in zip(before, model.teacher.parameters(), strict=True))


def test_a_discriminator_that_knows_nothing_changes_nothing():
    model = step(gan=0.5, segments=2)
    for parameter in model.heads.parameters():
        nn.init.zeros_(parameter)
    with_gan = torch.autograd.grad(model.student_loss(BATCH), list(model.student.parameters()))
    model.gan = 0.0
    without = torch.autograd.grad(model.student_loss(BATCH), list(model.student.parameters()))
    for a, b in zip(with_gan, without, strict=True):
        torch.testing.assert_close(a, b)


def test_ends_are_noised_to_levels_of_their_segment_and_keep_the_marginal():
    """Samples of the level `end` become samples of t, which lies in the segment."""
    model, _ = on_a_line(FLOW, 8, segments=4)
    edges = [0.75, 0.5, 0.25, -1.0]
    for edge, top in zip(edges, [1.0, *edges], strict=False):
        num, seen = 20_000, {}
        generator = torch.Generator().manual_seed(0)
        end = torch.full((num,), edge)
        alpha, sigma = FLOW.scales(end.double())
        x = (M * alpha + (alpha**2 * S**2 + sigma**2).sqrt() * torch.randn(num, generator=generator).double())[:, None]
        model.rand = lambda n, purpose, g=generator: torch.rand(n, generator=g)
        model.randn = lambda shape, purpose, g=generator: torch.randn(shape, generator=g).double()
        model.heads = None
        model.discriminator = SimpleNamespace(
            logits=lambda heads, tapped, x_t, t, cond, seen=seen: seen.update(x=x_t, t=t)
        )
        ends = SimpleNamespace(end=end, top=torch.full((num,), top), cond={})
        model.logits(x, ends, "heads")
        t = seen["t"].double()
        assert max(edge, 0) <= t.min() and t.max() <= top and t.max() - t.min() > 0.24
        unit = (seen["x"][:, 0] - FLOW.alpha(t) * M) / (FLOW.alpha(t) ** 2 * S**2 + FLOW.sigma(t) ** 2).sqrt()
        assert unit.mean().abs() < 0.03 and unit.std().item() == pytest.approx(1, abs=0.02)


def test_tops_are_the_levels_above_the_segments():
    model, batch = on_a_line(FLOW, 8, segments=4)
    for far, (edge, top) in enumerate([(0.75, 1.0)] * 2 + [(0.5, 0.75)] * 2 + [(0.25, 0.5)] * 2 + [(-1.0, 0.25)] * 2):
        model.rand = lambda n, purpose, far=far: torch.full((n,), (far + 0.5) / 8)
        ends = model.hop_ends(batch, "student")
        assert torch.allclose(ends.end, torch.tensor(edge)) and torch.allclose(ends.top, torch.tensor(top))


def test_a_weight_is_one_over_the_length_of_the_hop():
    model, batch = on_a_line(VarianceExploding(), 4, weight="hop", hop="data")
    levels = model.student.levels
    for far in range(4):
        model.rand = lambda n, purpose, far=far: torch.full((n,), (far + 0.5) / 4)
        length = levels[far] - levels[far + 1].clamp_min(0)
        torch.testing.assert_close(
            model.hop_ends(batch, "student").weight.double(), (1 / length).expand(4), rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("distance, power", [("square", 1.0), ("huber", 0.5), ("absolute", 0.5)])
def test_the_network_s_weight_counts_differences_of_its_outputs(distance, power):
    """`D = c_skip x + c_out F`, so F's difference is D's over c_out; a square's is squared."""
    model = step(distance=distance)
    t = torch.tensor([0.01, 0.5, 60.0])
    sd = model.teacher.denoiser.sigma_data
    c_out = t * sd / (t**2 + sd**2).sqrt()
    torch.testing.assert_close(model.weights(t, t / 2), c_out ** (-2 * power))


def test_segments_become_fewer_in_equal_parts_of_the_run():
    model, batch = on_a_line(FLOW, 16, segments=[8, 4, 2, 1])
    model.rand = lambda n, purpose: torch.full((n,), 0.01)  # the first hop, from 1
    seen = []
    for now in range(8):
        at(model, now)._trainer.estimated_stepping_batches = 8
        seen.append(round(model.hop_ends(batch, "student").end[0].item(), 4))
    assert seen == [0.875, 0.875, 0.75, 0.75, 0.5, 0.5, -1.0, -1.0] and model.num_steps == 1


def test_kappa_is_drawn_and_not_told_if_one_says_so():
    teacher = neural(PROCESSES["ve"])
    told = Consistency(teacher, hops=Grid(8), kappa=[1.0, 5.0])
    quiet = Consistency(teacher, hops=Grid(8), kappa=[1.0, 5.0], tell_kappa=False)
    assert "kappa" in told.student.told and "kappa" not in quiet.student.told
    a, b = (model.hop_ends(BATCH, "student").cond for model in (told, quiet))
    assert a["kappa"].min() >= 1 and a["kappa"].max() <= 5 and len(a["kappa"].unique()) == 8 and "kappa" not in b


# The product


def test_a_student_of_jumps_comes_back_with_its_gamma(tmp_path):
    from distillkit import load_student

    model = Consistency(neural(), hops=Grid(8), ends="any", num_steps=3, gamma=0.5)
    wake(model.ema, 2)
    made = model.product()
    made.save(tmp_path / "s")
    again = load_student(tmp_path / "s")
    assert again.gamma == 0.5 and again.told == {} and again.draws == 3
    cond = {"label": torch.arange(8) % 2}
    torch.testing.assert_close(again.sample(8, cond), made.eval().sample(8, cond))
    again.gamma = 0.0
    assert again.draws == 1 and not torch.equal(again.sample(8, cond), made.sample(8, cond))


def test_steps_of_segments_go_from_edge_to_edge():
    model = Consistency(neural(PROCESSES["flow"]), hops=Grid(16), segments=4)
    torch.testing.assert_close(model.step_times, f64(1.0, 0.75, 0.5, 0.25), atol=1e-2, rtol=0)
    assert model.product().renoise == "implied" and model.product().draws == 1


def test_a_start_below_the_largest_level():
    model = Consistency(neural(PROCESSES["flow"]), hops=Grid(4), t_init=0.6)
    assert model.hops.levels(model.teacher.process, model.top)[0] == pytest.approx(0.6)
    assert model.product().times == [0.6]


# Refusals


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"segments": 3}, "3 segments do not divide 8 hops: give model.hops.num a multiple of 3"),
        ({"segments": 2, "num_steps": 4}, "the student of 2 segments has as many steps"),
        ({"segments": 2, "renoise": "fresh"}, "steps from edge to edge have no new noise"),
        ({"hop": "data", "kappa": 2.0}, "hop=data has no teacher to guide"),
        ({"t_init": 2.0}, "t_init"),
        ({"ends": "any", "hops": Shrinking()}, "ends=any takes levels of a grid"),
        ({"segments": 2, "hops": Grid(8, 16)}, "2 segments need hops that stay"),
        ({"gamma": 1.5}, "gamma"),
        ({"gan": 0.1, "discriminator": Discriminator()}, "set model.discriminator.taps=teacher"),
    ],
)
def test_what_cannot_be_is_refused_before_work_starts(settings, says):
    with pytest.raises(ValueError, match=says):
        Consistency(neural(PROCESSES["flow"]), **{"hops": Grid(8), **settings})


def test_hops_that_change_need_the_end_of_the_run():
    model = Consistency(neural(), hops=Grid(4, 8), schedule="constant", ema_halflife=0)
    with pytest.raises(ValueError, match="give trainer.max_steps"):
        trainer(-1).fit(model, Pairs(batch_size=8))


def test_a_student_of_jumps_is_not_for_methods_that_do_not_tell():
    from distillkit.methods.dmd import DMD

    teacher = neural()
    told = teacher.new_denoiser()
    told.tell(END, range=(0.0, 1.0))
    with pytest.raises(ValueError, match="was told end, which DMD does not tell"):
        DMD(teacher, student_maker=SimpleNamespace(make=lambda t: told, sampling={}))


def test_a_student_that_was_told_kappa_is_told_it():
    teacher = neural()
    told = teacher.new_denoiser()
    told.tell("kappa", range=(1.0, 5.0))
    maker = SimpleNamespace(make=lambda t: told, sampling={})
    with pytest.raises(ValueError, match="was told kappa: say model.tell_kappa=true"):
        Consistency(teacher, student_maker=maker, hops=Grid(8), kappa=[1.0, 5.0], tell_kappa=False)
    assert Consistency(teacher, student_maker=maker, hops=Grid(8), kappa=[1.0, 5.0]).student.told.keys() == {"kappa"}
