"""Makers: the source of a role's denoiser, its folder, and runs that go on from it."""

import io
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from helpers import BATCH, CLASSES, UNMEASURED, Pairs, Record, at, fit, gaussian, neural, same, trainer, wake
from lightning.pytorch import Callback
from torch import nn

import distillkit.methods.dmd as dmd_module
from distillkit import load_student, runs
from distillkit.cli import front
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from distillkit.methods.lsd import LSD
from distillkit.methods.pairs import PairDistil
from distillkit.methods.sid import SiD
from distillkit.networks.adapters import Adapters
from distillkit.networks.mlp import MLP
from distillkit.networks.particles import Particles
from distillkit.spec import Outside
from distillkit.students.makers import Copy, FromFolder, Leap, Lora, Routed, Scene
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactTeacher, Mixture

SHORT = ["trainer.max_steps=6", *UNMEASURED]
DIGITS = ["domain=image", "method=dmd", "model.gan=0", "data.batch_size=8", *SHORT]
PLANE = ["domain=toy", "data.batch_size=32", "data.num_samples=256", *SHORT]
QUICK = {"student": Adam(lr=1e-2), "fake_score": Adam(lr=1e-2, updates=1), "ema_halflife": 50}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", runs.OUT):
        monkeypatch.delenv(name, raising=False)


def distil(out: Path, *words: str) -> Path:
    """The folder of a run, made in this process."""
    assert front.main(["fit", *words, "--out", str(out)]) == 0
    return out


def complaint(*argv: object) -> str:
    """The one sentence of an impossible command."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        assert front.main([*map(str, argv)]) == 2, said.getvalue()
    lines = said.getvalue().strip().splitlines()
    assert lines[-1].startswith("error: ") and sum(line.startswith("error: ") for line in lines) == 1
    return lines[-1].removeprefix("error: ")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def score(kind=DMD, maker=None, **settings):
    torch.manual_seed(0)
    return kind(neural(), student_maker=maker, **{**QUICK, **settings})


# Copy and fresh


def test_a_copy_is_the_teacher_s_network_with_weights_of_its_own():
    teacher = neural()
    made, x, t = Copy().make(teacher), torch.randn(8, 2), torch.tensor(0.7)
    assert torch.equal(made(x, t, {"label": BATCH["label"]}), teacher.denoiser(x, t, {"label": BATCH["label"]}))
    assert made.training and all(p.requires_grad for p in made.parameters())
    mine, theirs = ({p.data_ptr() for p in one.parameters()} for one in (made, teacher))
    assert not mine & theirs


def built(*words: str):
    from tests.battery.conftest import build

    return build(*words).model


def test_a_smaller_student_keeps_a_fake_score_of_the_teacher_s_size():
    model = built(*DIGITS, "student=fresh", "network.channels=6")
    assert count(model.student) < count(model.teacher.denoiser) / 10
    assert count(model.fake_score) == count(model.teacher.denoiser)
    both = built(*DIGITS, "student=fresh", "fake_score=fresh", "network.channels=6")
    assert count(both.fake_score) == count(both.student) == count(model.student)


# Adapters


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Short runs on the digits: the whole network, and adapters of rank 1 on all its layers."""
    home = tmp_path_factory.mktemp("digits")
    return {kind: distil(home / kind, *DIGITS, *words) for kind, words in KINDS.items()}


KINDS = {"copy": (), "lora": ("student=lora", "student.rank=1")}


def test_the_folder_of_adapters_is_small_and_loads_in_one_line(digits):
    whole, small = (digits[kind] / "student" for kind in KINDS)
    weights = [(folder / "model.safetensors").stat().st_size for folder in (small, whole)]
    assert weights[0] < 0.05 * weights[1] and size(small) < 0.05 * size(whole)
    student = load_student(digits["lora"])
    assert isinstance(student.denoiser.network, Adapters)
    assert student.sample(3).shape == (3, 1, 8, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_student_has_a_plain_network(kind, digits, tmp_path, capsys):
    from safetensors import safe_open

    out = tmp_path / "student.safetensors"
    assert front.main(["export", str(digits[kind]), "--out", str(out)]) == 0
    with safe_open(out, "pt") as file:
        names = set(file.keys())
    assert names == load_student(digits["copy"]).denoiser.state_dict().keys()
    difference = float(capsys.readouterr().out.split()[-1])
    assert difference == 0 if kind == "copy" else difference < 1e-4


def test_merged_adapters_are_no_adapters_and_give_the_same():
    teacher = neural()
    made = Lora(2).make(teacher)
    wake(made)
    made.eval()
    plain = made.merged()
    x, t, cond = torch.randn(8, 2), torch.tensor(0.7), {"label": BATCH["label"]}
    assert type(plain.network) is MLP and not any(isinstance(m, Adapters) for m in plain.modules())
    torch.testing.assert_close(plain(x, t, cond), made(x, t, cond), rtol=1e-4, atol=1e-5)
    assert Copy().make(teacher).merged().network.__class__ is MLP
    routed = Routed(part=Lora(2)).make(teacher)
    wake(routed)
    plain = routed.merged()
    assert not any(isinstance(m, Adapters) for m in plain.modules())
    torch.testing.assert_close(plain(x, t, cond), routed(x, t, cond), rtol=1e-4, atol=1e-5)


def test_adapters_of_a_teacher_in_a_folder_need_it_and_trust(tmp_path, capsys):
    network = wake(MLP([2], 16, 2))
    Teacher(Denoiser(network, VarianceExploding()), (2,)).save(tmp_path / "teacher")
    other = ["data.teacher._target_=domains.toy.teacher.Gaussian", "teacher=folder"]
    words = [*PLANE, "method=dmd", "student=lora", "student.rank=1", *other, f"teacher.path={tmp_path / 'teacher'}"]
    run = distil(tmp_path / "run", *words)
    with pytest.raises(Outside, match=re.escape(f"pass trust=({str(tmp_path / 'teacher')!r},)")):
        load_student(run)
    assert f"--trust {tmp_path / 'teacher'}" in complaint("sample", run)
    student = load_student(run, (str(tmp_path / "teacher"),))
    assert student.sample(2).isfinite().all()
    assert front.main(["sample", str(run), "--trust", str(tmp_path / "teacher"), "-n", "3"]) == 0
    wake(network, 1)
    Teacher(Denoiser(network, VarianceExploding()), (2,)).save(tmp_path / "teacher")
    with pytest.raises(ValueError, match="adapters on other weights than those of the teacher"):
        load_student(run, (str(tmp_path / "teacher"),))


# Several networks

SPLITS = {
    "label": (Routed(2), {}),
    "time": (Routed(2, by="time", edges=[5.0]), {"times": [40.0, 1.0], "matched": "last"}),
}


def parts(denoiser) -> list[dict]:
    return [{k: v.clone() for k, v in part.state_dict().items()} for part in denoiser.network.parts]


@pytest.mark.parametrize("how", SPLITS)
@pytest.mark.parametrize("only", [0, 1])
def test_one_part_learns_and_the_others_stay_bit_for_bit(how, only):
    maker, settings = SPLITS[how]
    if how == "time":
        settings = {**settings, "matched": "each"}  # so that either part has its turns
    maker = Routed(2, maker.by, maker.owner, maker.edges, only)
    model = score(maker=maker, **settings)
    before = parts(model.student)
    fit(model, 12)
    for after in (parts(model.student), parts(model.ema)):
        assert [same(one, two) for one, two in zip(before, after, strict=True)] == [only != 0, only != 1]
    assert not model.bad_steps.any()


def test_a_batch_without_rows_for_the_part_that_learns_is_a_step_without_gradient():
    model = at(score(maker=Routed(2, only=1)))
    model.focus("student")
    model.student_loss({"data": torch.zeros(8, 2), "label": torch.zeros(8, dtype=torch.long)}).backward()
    grads = [p.grad for p in model.student.parameters() if p.grad is not None]
    assert grads and not any(g.any() for g in grads)


@pytest.mark.parametrize("how", SPLITS)
def test_a_part_learns_from_its_own_samples_alone(how):
    maker, settings = SPLITS[how]
    model = at(score(maker=maker, **settings))
    wake(model.student, 1), wake(model.fake_score, 2)  # where they are copies of their teacher, nothing pulls
    model.focus("student")
    label = torch.ones(8, dtype=torch.long)
    model.student_loss({"data": torch.zeros(8, 2), "label": label}).backward()
    idle, busy = ([p.grad for p in part.parameters() if p.grad is not None] for part in model.student.network.parts)
    assert not any(g.any() for g in idle) and any(g.any() for g in busy)


@pytest.mark.parametrize("how", SPLITS)
def test_several_networks_come_back_from_the_folder(how, tmp_path):
    maker, settings = SPLITS[how]
    model = score(maker=maker, **settings)
    fit(model, 6)
    model.export(tmp_path / "s")
    student, again = model.product().eval(), load_student(tmp_path / "s")
    assert torch.equal(again.sample(6, seed=1), student.sample(6, seed=1))
    label = torch.tensor([1] * 6)
    other = again.sample(6, {"label": 1 - label}, seed=1)
    assert not torch.equal(again.sample(6, {"label": label}, seed=1), other)


ROUTES = [
    ({"parts": 3}, "2 classes among 3 parts leave part 2 without any: lower student.parts"),
    ({"owner": [0, 0]}, "2 classes among 2 parts leave part 1 without any"),
    ({"owner": [0, 1, 1]}, "owner must name a part for each of the 2 classes, got 3"),
    ({"parts": 1, "owner": [0, 1]}, "owner must be at most 0, got"),
    ({"by": "colour"}, "routed by colour needs a teacher with such classes, Teacher has label: say student=copy"),
    ({"by": "time"}, "between 2 parts there are 1 falling times, got edges=.*: say them"),
    ({"by": "time", "edges": [1.0, 2.0], "parts": 3}, "there are 2 falling times, got"),
    ({"by": "time", "edges": [900.0]}, "edges must lie in .*, got 900"),
    ({"by": "time", "edges": [1.0], "owner": [0, 1]}, "routing by time asks no class"),
    ({"edges": [1.0]}, "routing by class asks no time"),
    ({"only": 2}, "only must be at most 1, got 2"),
    ({"parts": 0}, "parts must be"),
]


@pytest.mark.parametrize(("settings", "said"), ROUTES)
def test_a_split_that_makes_no_sense_is_one_sentence(settings, said):
    with pytest.raises(ValueError, match=said):
        Routed(**settings).make(neural())


def test_a_split_by_class_needs_classes():
    with pytest.raises(ValueError, match="needs a teacher with such classes, .* has none: say student=copy"):
        Routed(2).make(gaussian(0.0, 1.0))
    assert complaint("fit", *PLANE, "method=msd").startswith("Routed needs labels, which Gaussian and ToyData")


# On from a finished student


@pytest.fixture
def finished(tmp_path):
    """A student of two steps at times of its own, which keeps the noise that it implies."""
    model = score(SiD, times=[40.0, 1.5], renoise="implied")
    fit(model, 8)
    return model.export(tmp_path / "run" / "student").parent


@pytest.mark.parametrize("kind", [DMD, SiD])
def test_it_begins_as_the_student_that_it_goes_on_from(kind, finished):
    model = score(kind, FromFolder(str(finished)))
    expected = load_student(finished)
    assert (model.num_steps, model.renoise, model.step_times.tolist()) == (2, "implied", [40.0, 1.5])
    for denoiser in (model.student, model.ema):
        assert same(dict(denoiser.state_dict()), dict(expected.denoiser.state_dict()))
    assert torch.equal(model.product().sample(6, seed=1), expected.sample(6, seed=1))
    assert all(p.requires_grad for p in model.student.parameters()) and model.student.training
    fit(model, 6)
    assert not torch.equal(model.product().eval().sample(6, seed=1), expected.sample(6, seed=1))


def test_the_run_may_say_other_times(finished):
    maker = FromFolder(str(finished))
    assert score(maker=maker, num_steps=1).num_steps == 1
    assert score(maker=maker, times=[30.0], renoise="fresh").renoise == "fresh"
    assert score(maker=maker, num_steps=2, t_init=40.0).step_times.tolist() == [40.0, 1.5]
    with pytest.raises(ValueError, match="t_init=20.0 and times=.* contradict"):
        score(maker=maker, t_init=20.0)


def test_every_denoiser_of_it_is_one_of_its_own(finished):
    maker, teacher = FromFolder(str(finished)), neural()
    one, two = maker.make(teacher), maker.make(teacher)
    assert not {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in two.parameters()}


def test_a_run_that_went_on_resumes_bit_for_bit(finished, tmp_path):
    class Keep(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "cut.ckpt")

    def made():
        return score(maker=FromFolder(str(finished)))

    whole, again = made(), made()
    trainer(9, callbacks=[Keep()]).fit(whole, Pairs(batch_size=8))
    record = Record()
    trainer(9, callbacks=[record]).fit(again, Pairs(batch_size=8), ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    assert same(dict(whole.state_dict()), dict(again.state_dict())) and len(record.states) == 5


def other(shape=(2,), classes=CLASSES, process=None):
    network = MLP(list(shape), width=8, depth=1, classes=classes)
    return Teacher(Denoiser(network, process or VarianceExploding(), "edm", 1.0), shape, classes)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (other((3,)), r"has samples of shape \(2,\), the teacher \(3,\): give a student of this teacher"),
        (other(classes={"label": 5}), "has the classes {'label': 2}, the teacher {'label': 5}"),
        (other(process=RectifiedFlow()), "has the process .*, the teacher "),
    ],
)
def test_a_student_of_another_kind_of_teacher_is_refused(teacher, said, finished):
    with pytest.raises(ValueError, match=said):
        FromFolder(str(finished)).make(teacher)


def test_a_sampler_has_no_network_to_go_on_from(tmp_path):
    from distillkit.teachers.exact import exact
    from domains.toy.teacher import Gaussian

    LSD(exact(Gaussian())).export(tmp_path / "s")
    with pytest.raises(ValueError, match="holds a SamplerStudent, which has no network of its own to go on from"):
        FromFolder(str(tmp_path / "s"))


def test_another_method_goes_on_from_the_command_line(tmp_path):
    first = distil(tmp_path / "sid", *PLANE, "method=sid", "model.num_steps=2")
    words = [*PLANE, "method=dmd", "student=folder"]
    said = complaint("fit", *words, f"student.path={tmp_path / 'nowhere'}", "--out", tmp_path / "no")
    assert said.startswith(f"there is no student folder {tmp_path / 'nowhere'}")
    assert complaint("fit", *words) == "student.path has no default: say student.path=..."
    second = distil(tmp_path / "dmd", *words, f"student.path={first}")
    assert load_student(second).times == load_student(first).times
    assert not torch.equal(load_student(second).sample(4), load_student(first).sample(4))


# The words of before

OLD = [
    ("vars.student_network=mlp", "student=fresh network=.* fake_score=fresh"),
    ("model.network=mlp", "no key model.network any more: another network is student=fresh"),
]


@pytest.mark.parametrize(("word", "said"), OLD)
def test_a_word_of_before_gets_the_one_of_now(word, said):
    assert re.search(said, complaint("fit", *PLANE, "method=dmd", word))


def test_the_rank_of_before_is_the_student_s():
    words = ["domain=video", "method=dmd", "teacher=diffusers", "teacher.path=x", "data=prompts", "data.path=y"]
    assert "no key teacher.lora any more: adapters are student=lora student.rank" in complaint(
        "fit", *words, "teacher.lora=4"
    )


# A student that is told kappa


def test_each_sample_has_a_kappa_of_its_own_and_both_roles_are_told_it(monkeypatch):
    model, seen = at(score(kappa=[1.0, 4.0])), []
    real = dmd_module.guided
    monkeypatch.setattr(dmd_module, "guided", lambda *a: seen.append((a[0], a[3], a[5])) or real(*a))
    model.student_loss({"data": torch.zeros(500, 2), "label": torch.arange(500) % 2})
    (teacher, cond, kappa), (fake, told, unguided) = seen
    assert teacher is model.teacher.denoiser and fake is model.fake_score and unguided == 1
    assert kappa is cond["kappa"] is told["kappa"] and kappa.shape == (500,)
    assert 1 <= kappa.min() < 1.05 and 3.95 < kappa.max() <= 4 and abs(kappa.mean() - 2.5) < 0.15
    for role in (model.student, model.fake_score, model.ema):
        assert role.told == {"kappa": {"range": [1.0, 4.0]}}


def test_kappas_in_one_call_are_those_of_single_calls(tmp_path):
    model = score(kappa=[1.0, 4.0])
    fit(model, 20)
    model.export(tmp_path / "s")
    student, kappas = load_student(tmp_path / "s"), [1.0, 2.0, 3.0, 4.0]
    together = student.sample(4, kappa=torch.tensor(kappas))
    alone = [student.sample(4, kappa=kappa) for kappa in kappas]
    assert torch.equal(together, torch.stack([one[i] for i, one in enumerate(alone)]))
    assert not torch.equal(alone[0], alone[3])
    assert torch.equal(student.sample(4), student.sample(4, kappa=2.5))  # the middle is the default
    for wrong in (0.5, 5.0, torch.tensor([1.0, 2.0, 3.0, 4.5]), float("nan")):
        with pytest.raises(ValueError, match="must hold 4 numbers from 1 to 4"):
            student.sample(4, kappa=wrong)
    with pytest.raises(ValueError, match=r"was not told kappa.*train with a range such as model.kappa=\[1,4\]"):
        score().product().sample(4, kappa=2.0)


def test_a_range_is_two_rising_numbers_of_a_method_that_takes_one():
    for wrong in ([4.0, 1.0], [1.0], [1.0, 2.0, 3.0], [2.0, 2.0]):
        with pytest.raises(ValueError, match=r"kappa is a number or a range \[low, high\], got"):
            score(kappa=wrong)
    with pytest.raises(ValueError, match="kappa of SiD is one number, got the range"):
        score(SiD, kappa=[1.0, 4.0])
    with pytest.raises(ValueError, match="regression has pairs of one kappa"):
        score(kappa=[1.0, 4.0], regression=0.1)
    assert "model.kappa must be a float" in complaint(
        "fit", *PLANE, "teacher=labelled", "method=sid", "model.kappa=[1,4]"
    )


def test_kappa_on_the_command_line(tmp_path):
    words = [*PLANE, "teacher=labelled", "method=dmd"]
    told = distil(tmp_path / "told", *words, "model.kappa=[1,4]")
    assert front.main(["sample", str(told), "--kappa", "2", "-n", "5", "--out", str(tmp_path / "s")]) == 0
    assert "must hold 64 numbers from 1 to 4" in complaint("sample", told, "--kappa", "9", "--out", tmp_path / "no")
    plain = distil(tmp_path / "plain", *words, "model.kappa=2")
    assert "was not told kappa, so it samples with the one it was trained for (2" in complaint(
        "sample", plain, "--kappa", "2", "--out", tmp_path / "no"
    )


def test_who_was_told_kappa_goes_on_with_the_same_range(tmp_path):
    folder = score(kappa=[1.0, 4.0]).export(tmp_path / "s")
    assert score(maker=FromFolder(str(folder)), kappa=[1.0, 4.0]).student.told == {"kappa": {"range": [1.0, 4.0]}}
    for kappa in (1.0, 2.0, [1.0, 8.0]):
        with pytest.raises(
            ValueError, match=r"was told a kappa in \[1.0, 4.0\], here it is .*: say model.kappa=\[1.0, 4.0\]"
        ):
            score(maker=FromFolder(str(folder)), kappa=kappa)
    with pytest.raises(ValueError, match="here it is 1.0: take one that was not"):
        score(SiD, FromFolder(str(folder)))


M_C, M_0, S = 1.0, -0.2, 0.5  # a class, all together, and the std of both: then guided means are closed forms
GUIDED = ExactTeacher(
    Mixture([[0.5], [M_C], [M_0]], [[[S**2]]] * 3, labels=[0, 1, 2]), VarianceExploding(), classes=CLASSES
)


class Mean(nn.Module):
    """The student of the closed forms, N(a + b kappa, S^2); not told kappa, b stays zero."""

    def __init__(self, a: float, b: float, told: bool):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b), requires_grad=told)

    def mean(self, cond):
        return (self.a + self.b * cond["kappa"])[:, None]

    def forward(self, x, t, cond):
        return self.mean(cond) + S * x / t


class Response(nn.Module):
    """The fake score that fits the current student exactly."""

    def __init__(self, student: Mean):
        super().__init__()
        self.student = student

    def forward(self, x, t, cond):
        mean = self.student.mean(cond).detach()
        return mean + S**2 / (S**2 + t[:, None] ** 2) * (x - mean)


@pytest.mark.parametrize("told", [True, False])
def test_who_is_told_kappa_lands_at_the_guided_means_and_who_is_not_at_their_average(told):
    """m_kappa = m_0 + kappa (m_c - m_0); without kappa the student lands at m of E[kappa] = 2.5."""
    model = DMD(GUIDED, kappa=[1.0, 4.0], normalise=None)
    student = Mean(0.0, 0.0, told)
    model.student, model.fake_score = student, Response(student)
    batch = {"data": torch.zeros(512, 1), "label": torch.ones(512, dtype=torch.long)}
    optimiser = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, 400)
    for step in range(400):
        optimiser.zero_grad()
        at(model, step).student_loss(batch).backward()
        optimiser.step()
        schedule.step()
    kappa = torch.tensor([1.0, 2.5, 4.0])
    found = student.mean({"kappa": kappa})[:, 0].tolist()
    expected = M_0 + (kappa if told else torch.full((3,), 2.5)) * (M_C - M_0)
    assert found == pytest.approx(expected.tolist(), abs=0.04 if told else 0.08)


# Scenes


class Told(Particles):
    """Particles that say where the run is, and how far they are from the origin."""

    shares: list[float] = []

    def progress(self, done):
        self.shares.append(done)

    def forward(self, x, time, cond):
        self.penalty = 1000 * self.points.square().mean() if self.training else None
        return super().forward(x, time, cond)


def test_a_scene_s_own_loss_counts_in_the_student_s_steps_and_it_knows_the_share_of_the_run(monkeypatch):
    monkeypatch.setattr(Told, "shares", [])
    model = score(maker=Scene(Told((2,), 16)), schedule="constant")
    before = model.student.network.points.square().mean()
    fit(model, 40)
    assert Told.shares == [k / 40 for k in range(40)]
    assert model.student.network.points.square().mean() < 0.9 * before  # 20 steps of 0.01 towards the origin


def test_a_scene_is_a_one_step_student_whose_folder_is_its_samples(tmp_path):
    model = score(maker=Scene(Particles((2,), 16)))
    fit(model, 6)
    model.export(tmp_path / "s")
    student, again = model.product().eval(), load_student(tmp_path / "s")
    assert torch.equal(again.sample(64, seed=1), student.sample(64, seed=1))
    assert not torch.equal(again.sample(64, seed=2), student.sample(64, seed=1))
    own = student.denoiser.network.points[0]
    assert (again.sample(64, seed=1)[:, None] == own).all(-1).any(1).all()


def test_a_method_that_maps_noise_has_no_use_for_a_scene():
    said = complaint("fit", *PLANE, "method=consistency", "student=scene")
    assert said.startswith(
        "a scene makes its samples without noise, and Consistency learns a map from noise to samples"
    )


def test_a_domain_without_scenes_says_so():
    assert "say student=copy" in complaint("fit", *DIGITS, "student=scene")


# Leaps


def test_a_leap_starts_from_the_approximation_below_the_largest_level(tmp_path):
    model = DMD(neural(context=("coarse",)), student_maker=Leap("coarse", 2.0), num_steps=2, **QUICK)
    assert model.step_times[0] == pytest.approx(2.0) and model.step_times[1] < 1.9
    coarse = torch.tensor([[100.0, -100.0]] * 512)
    cond, seen = {"label": torch.zeros(512, dtype=torch.long), "coarse": coarse}, []
    hook = model.student.register_forward_pre_hook(lambda _, given: seen.append(given[:2]))
    at(model).generate((512, 2), cond, "leap", 0)
    hook.remove()
    assert float(seen[0][1]) == pytest.approx(2.0) and (seen[0][0] - coarse).std() == pytest.approx(2.0, rel=0.1)
    model.product().save(tmp_path / "s", examples=cond)
    again = load_student(tmp_path / "s")
    assert (again.start.base, again.start.level, again.times) == ("coarse", 2.0, model.step_times.tolist())


def test_pairs_of_the_teacher_are_refused_for_a_leap():
    teacher = neural(context=("coarse",))
    with pytest.raises(ValueError, match="does not start from noise as the teacher does"):
        PairDistil(teacher, student_maker=Leap("coarse", 2.0))
    with pytest.raises(ValueError, match="does not start from noise as the teacher does"):
        DMD(teacher, student_maker=Leap("coarse", 2.0), regression=0.25)


def test_data_without_an_approximation_say_so():
    assert "no approximation of their samples" in complaint("fit", *PLANE, "student=leap")
