"""Reflow against closed forms: its loss, its lines and their start, and the teacher it leaves."""

from types import SimpleNamespace

import pytest
import torch
from helpers import CLASSES, PROCESSES, Line, f64, fit, gaussian, neural, sigma_points
from helpers import Pairs as Plane
from torch import nn

from distillkit.cli import config
from distillkit.codec import Codec
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.flow import flow_time
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding, expand
from distillkit.diffusion.start import Start
from distillkit.diffusion.times import Times
from distillkit.files import read_yaml
from distillkit.methods.base import Adam
from distillkit.methods.reflow import Reflow
from distillkit.networks.mlp import MLP
from distillkit.students.makers import Fresh, Lora
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactTeacher, Mixture, exact
from distillkit.teachers.folder import FolderTeacher
from distillkit.teachers.trajectory import straightness

M, S = 0.3, 0.5
Z = f64(1.0, -1.0)[:, None]  # has the first two moments of unit noise
SMALL = {"num_pairs": 16, "steps": 3}


class Straight(Denoiser):
    """The flow of pairs (z, mu + s z): at x_t on the line of z it returns `line.mu + line.s z`.

    Lines start at `sigma_T z`, so the factor of the sample is `alpha - sigma alpha_T / sigma_T`.
    """

    def __init__(self, process, mu=M, s=S, line=None):
        super().__init__(nn.Identity(), process, "edm", 1.0)
        self.mu, self.s, self.line = mu, s, line or Line(mu, s)

    def forward(self, x_t, t, cond=None):
        t, last = torch.as_tensor(t, dtype=torch.float64), f64(self.process.t_max)[0]
        alpha, sigma = (expand(each, x_t) for each in (self.process.alpha(t), self.process.sigma(t)))
        gain = alpha - sigma * self.process.alpha(last) / self.process.sigma(last)
        return self.line((x_t - gain * self.mu) / (gain * self.s + sigma))


class Level(Times):
    """One time, always."""

    def __init__(self, t):
        self.t = t

    def times(self, u, process):
        return f64(self.t).expand(len(u))


def on_a_line(process, mu=M, s=S, pairs=(Z, M + S * Z), **settings):
    """Reflow of N(M, S^2) on given pairs, with the exact answer for N(mu, s^2) as its student."""
    model = Reflow(gaussian(M, S, process), Fresh(MLP([1], width=8, depth=1)), **settings)
    line = Line(mu, s)
    model.student = Straight(process, line=line)
    model.pairs.random = lambda num, generator: (*pairs, {})
    rand = model.rand
    model.rand = lambda num, purpose: rand(num, purpose).double()
    return model, line


def loss_of(model, num=2):
    return model.student_loss({"data": torch.zeros(num, 1)})


# The loss


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_nothing_pulls_at_the_exact_flow_of_the_pairs(process):
    model, line = on_a_line(process)
    loss = loss_of(model)
    assert loss.item() < 1e-12 and max(map(abs, line.gradient(loss))) < 1e-6


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_loss_and_gradient_in_closed_form(process):
    """`w ((mu - M)^2 + (s - S)^2)` at any level: an error is the same all along its line."""
    t = (process.t_min + process.t_max) / 2
    mu, s = M + 0.2, S - 0.1
    model, line = on_a_line(process, mu, s, times=Level(t))
    weight = float(model.student.loss_weight(f64(t)))
    loss = loss_of(model)
    assert loss.item() == pytest.approx(weight * (0.2**2 + 0.1**2), rel=1e-6)
    assert line.gradient(loss) == pytest.approx([2 * weight * 0.2, -2 * weight * 0.1], rel=1e-6)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_the_velocity_has_the_slope_of_a_reflowed_gaussian(t):
    """The slope is `(1 - S) / ((1 - t) S + t)` on a rectified flow, constant along a pair."""
    process = RectifiedFlow()
    flow = Straight(process)
    x = f64(0.0, 1.0)[:, None]
    v = flow.velocity(x, f64(t)[0])
    assert float((v[1] - v[0]).detach()) == pytest.approx((1 - S) / ((1 - t) * S + t))
    along = flow.velocity((1 - t) * (M + S * Z) + t * Z, f64(t)[0])
    torch.testing.assert_close(along, Z - (M + S * Z), check_dtype=False)


def test_shuffled_pairs_are_plain_flow_matching():
    """The teacher's denoiser is optimal; at pure noise the reflowed one's loss is `2 S^2 w`."""
    process, (z, other) = RectifiedFlow(), sigma_points()
    shuffled = (z, M + S * other)
    model, _ = on_a_line(process, pairs=shuffled, times=Level(1.0))
    weight = float(model.student.loss_weight(f64(1 - 1e-9)))
    assert loss_of(model, 4).item() == pytest.approx(weight * 2 * S**2, rel=1e-5)
    model, line = on_a_line(process, pairs=shuffled, times=Level(0.5))
    assert abs(line.gradient(loss_of(model, 4))[1]) > 0.1
    model.student = model.teacher.denoiser
    plain = loss_of(model, 4).item()
    model.pairs.random = lambda num, generator: (Z, M + S * Z, {})
    assert loss_of(model).item() > 0.01 and plain > 0.01  # the teacher's own is not the answer to its pairs


def test_noise_is_the_pairs_own():
    """With z from elsewhere the exact flow is pulled."""
    model, _ = on_a_line(RectifiedFlow(), pairs=(Z.flip(0), M + S * Z), times=Level(0.5))
    assert loss_of(model).item() > 0.1


# Where lines start


class Asked(Straight):
    """Keeps what it is asked about."""

    def forward(self, x_t, t, cond=None):
        self.asked = x_t, t
        return super().forward(x_t, t, cond)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_a_line_starts_where_sampling_starts(process):
    """Not at `alpha x + sigma z`, which the sampler never sees where signal is left at the end."""
    model, _ = on_a_line(process, times=Level(process.t_max))
    model.student = Asked(process)
    loss_of(model)
    x_t, t = model.student.asked
    assert t.tolist() == [process.t_max] * 2
    torch.testing.assert_close(x_t, process.sigma(f64(process.t_max)) * Z, rtol=1e-6, atol=1e-6)


def test_lines_start_where_the_pairs_did_on_a_grid_that_begins_elsewhere_if_it_is_short():
    class Leading(Teacher):
        def grid(self, steps):
            return torch.arange(steps, 0, -1, dtype=torch.float64) / (steps + 1)

    teacher = Leading(Straight(RectifiedFlow()), (1,))
    model = Reflow(teacher, Fresh(MLP([1], width=8, depth=1)), num_pairs=16, steps=9)
    assert model.first == 0.9 and 0.6 < model.levels(1000).max() <= 0.9


def test_with_a_base_it_starts_there_too_and_no_level_above_is_visited():
    """Half way between start and sample lies the middle of the two, in flow coordinates."""
    process, start = VarianceExploding(), Start("scan", 2.0)
    teacher = Teacher(Straight(process), (1,), context=("scan",), start=start)
    model = Reflow(teacher, Fresh(MLP([1], width=8, depth=1)), **SMALL)
    z, x, scan = Z, M + S * Z, f64(5.0, 7.0)[:, None]
    model.pairs.random = lambda num, generator: (z, x, {"scan": scan})
    model.student = Asked(process)
    first, end = scan + 2.0 * z, flow_time(process, f64(2.0))[0]
    for times, expected in ((Level(80.0), first), (Level(2.0), first)):
        model.times = times
        loss_of(model)
        assert model.student.asked[1].tolist() == pytest.approx([2.0, 2.0])
        torch.testing.assert_close(model.student.asked[0], expected)
    half = process.from_ratio(end / 2 / (1 - end / 2))
    model.times = Level(float(half))
    loss_of(model)
    torch.testing.assert_close(model.student.asked[0] / (1 + half), (x + first / 3) / 2)
    model.times = None
    assert model.levels(1000).max() <= 2.0


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_one_step_of_the_exact_reflowed_teacher_is_exact(process):
    reflowed = Teacher(Straight(process), (1,))
    for steps in (1, 2, 7):
        samples = reflowed.sample(Z, {}, solver="ddim", times=reflowed.grid(max(steps, 2))[:steps])
        torch.testing.assert_close(samples.detach(), M + S * Z, check_dtype=False, rtol=1e-5, atol=1e-5)
    assert float(straightness(reflowed, Z, {}, 10).detach()) < 1e-8


def test_levels_are_uniform_in_tau_and_always_finite():
    for process in (
        *PROCESSES.values(),
        RectifiedFlow(t_min=0.067),
    ):  # where the largest float32 below 1 rounds to tau = 1
        model, _ = on_a_line(process)
        model.rand = lambda num, purpose: torch.linspace(0, 1 - 2**-24, num)
        t = model.levels(1001)
        assert t.isfinite().all() and t.min() >= process.t_min and t.max() <= process.t_max
        steps = flow_time(process, t.double()).diff()
        assert float(steps.max()) == pytest.approx(float(steps.mean()), rel=0.05), process


# Guidance


def guided_teacher():
    """Class 0 is N(1, 0.25), without a class N(0.2, 0.25), guided N(0.2 + 0.8 kappa, 0.25)."""
    mixture = Mixture([[1.0], [0.2]], [[[0.25]], [[0.25]]], labels=[0, 1])
    return ExactTeacher(mixture, RectifiedFlow(), classes={"label": 1})


def test_guidance_is_in_the_pairs_and_nowhere_else():
    model = Reflow(guided_teacher(), num_pairs=4096, kappa=4.0, drop=0.0, steps=20)
    data = SimpleNamespace(train=[])
    labels = {"label": torch.zeros(8, dtype=torch.long)}

    class Labels:
        def __len__(self):
            return 8

        def __getitem__(self, rows):
            return {"label": labels["label"][rows]}

    data.train = Labels()
    model._trainer = SimpleNamespace(datamodule=data, strategy=None)
    model.on_fit_start()
    _, x, cond = model.pairs.draw(torch.arange(4096))
    assert float(x.mean()) == pytest.approx(0.2 + 0.8 * 4, abs=0.05)  # m_kappa
    assert float(x.std()) == pytest.approx(0.5, abs=0.02)
    model._trainer = None
    facts = model.facts()
    assert "kappa" not in facts and facts["pairs"]["kappa"] == 4.0  # or evaluation would guide what is guided already
    seen = []
    model.student.register_forward_hook(lambda module, given, out: seen.append(given))
    model.pairs.random = lambda num, generator: (Z.float(), Z.float(), {"label": torch.zeros(2).long()})
    loss_of(model)
    assert len(seen) == 1 and len(seen[0][0]) == 2  # one plain call: no unconditional pass, nothing twice


def test_some_samples_lose_their_class():
    model = Reflow(neural(), **SMALL, drop=0.5)
    cond = {"label": torch.zeros(400).long()}
    model.pairs.random = lambda num, generator: (torch.zeros(400, 2), torch.zeros(400, 2), cond)
    seen = []
    model.student.register_forward_hook(lambda module, given, out: seen.append(given[2]["label"]))
    loss_of(model, 400)
    assert 150 < (seen[0] == CLASSES["label"]).sum() < 250 and (cond["label"] == 0).all()


def test_guidance_needs_classes():
    assert Reflow.needs({"kappa": 2.0}) == {"denoiser", "classes"} and Reflow.needs({}) == {"denoiser"}
    with pytest.raises(ValueError, match="kappa=2.0 has nothing to guide"):
        Reflow(gaussian(M, S), kappa=2.0)


# Solvers


def test_pairs_are_of_a_solver_by_which_noise_decides():
    drawing = neural()
    drawing.best = {"solver": "ancestral", "steps": 9}
    model = Reflow(drawing)
    assert model.pairs.solver == "ddim" and model.best == {"solver": "ddim", "steps": 9}
    with pytest.raises(ValueError, match="pairs join a noise and the sample that it decides.*'ancestral'"):
        Reflow(neural(), solver="ancestral")
    with pytest.raises(ValueError, match="there is no solver 'oiler'"):
        Reflow(neural(), solver="oiler")


# The product


def test_it_leaves_a_teacher_that_loads(tmp_path):
    teacher = neural()
    model = Reflow(teacher, num_pairs=32, steps=3, solver="ddim", kappa=2.0, student=Adam(lr=1e-2))
    _, run, _ = fit(model, 6)
    model.trainer.datamodule.conditions = lambda num: {"label": torch.arange(num) % 2}
    assert not model.conclude() and model.straightness["before"] > 0 and model.straightness["after"] > 0
    model.export(tmp_path, id="straighter")
    loaded, own = FolderTeacher(str(tmp_path)), model.product()
    facts = read_yaml(tmp_path / "teacher.yaml")
    assert facts["method"] == "Reflow" and facts["teacher"]["hash"] == teacher.fingerprint()
    assert facts["pairs"] == {"num": 32, "solver": "ddim", "steps": 3, "kappa": 2.0}
    assert facts["straightness"] == model.straightness | {"samples": 2, "steps": 50}
    assert loaded.best == {"solver": "ddim", "steps": 3} and loaded.id == "straighter"
    assert loaded.classes == CLASSES and loaded.guidable and loaded.process == teacher.process
    cond = {"label": torch.arange(4) % 2}
    assert torch.equal(loaded.generate(4, cond, 3), own.generate(4, cond, 3))
    assert torch.equal(loaded.generate(4, cond, 3), model.sample(cond, 4, 3))
    assert not torch.equal(loaded.generate(4, cond, 3), teacher.generate(4, cond, 3, "ddim", teacher.grid(3)))
    assert loaded.fingerprint() != teacher.fingerprint()


def test_start_and_codec_go_along():
    class Double(Codec):
        def decode(self, x, cond):
            return 2 * x

    codec, start = Double(), Start(level=0.5)
    old = Teacher(neural(RectifiedFlow()).denoiser, (2,), CLASSES, codec=codec, start=start)
    made = Reflow(old, **SMALL).product()
    assert made.codec is codec and made.start is start
    assert float(made.grid(4)[0]) == 0.5


def test_without_an_average_the_product_is_a_copy():
    model = Reflow(neural(), **SMALL, ema_halflife=0)
    product = model.product()
    assert not any(p.requires_grad for p in product.parameters())
    assert all(p.requires_grad for p in model.student.parameters())


def test_adapters_are_reflowed_too(tmp_path):
    model = Reflow(neural(), Lora(rank=2), **SMALL)
    fit(model, 2)
    cond = {"label": torch.arange(4) % 2}
    expected = model.sample(cond, 4, 0)
    folder = FolderTeacher(str(model.export(tmp_path / "t")))  # a plain network, which can have adapters of its own
    assert type(folder.frozen_network()) is MLP
    torch.testing.assert_close(folder.generate(4, cond, 0), expected, rtol=1e-4, atol=1e-4)
    Lora(rank=2).make(folder)


def test_its_words_are_complete():
    model = config.hand_over(config.compose(["domain=toy", "method=reflow"])[0])["model"]
    assert model["class_path"].endswith("Reflow") and model["init_args"]["student_maker"]


def test_the_plane_knows_the_law_behind_a_reflowed_exact_teacher_and_refuses_others():
    own = Reflow(guided_teacher(), **SMALL).product()
    assert exact(own).mixture is own.denoiser.exact.mixture and exact(own).classes == {"label": 1}
    with pytest.raises(ValueError, match="the law of Teacher is not known: .*'data.teacher={_target_: domains.toy"):
        exact(neural())


def test_data_of_another_shape_are_refused():
    class Other(Plane):
        event_shape = (3,)

    with pytest.raises(ValueError, match="the data have shape"):
        Reflow(neural(), **SMALL).check(Other(batch_size=4))
