"""Scale distillation on a joint Gaussian, where the tower rule is exact; its stages and errors."""

# ruff: noqa: E501 (a fault is a row of a table)

import pytest
import torch
from helpers import CLASSES, Pairs, f64, neural, trainer, wake
from lightning.pytorch import Callback
from mutations import Mutation, prove
from torch import nn

from distillkit.codec import Codec
from distillkit.data import DistillData, TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, ResShift, VarianceExploding, VariancePreserving
from distillkit.diffusion.times import Times
from distillkit.files import read_yaml
from distillkit.losses.denoising import answer_loss, denoising_loss
from distillkit.methods.yonos import YONOS
from distillkit.networks.mlp import MLP
from distillkit.students.makers import Fresh
from distillkit.teachers.base import Teacher
from distillkit.teachers.folder import FolderTeacher
from domains.super_resolution.codec import Upscale
from domains.super_resolution.network import PatchNet

PROCESSES = {"ve": VarianceExploding(), "vp": VariancePreserving(), "flow": RectifiedFlow(), "shift": ResShift()}
CODECS = {"identity": (Codec(), Codec()), "residual": (Upscale(1), Upscale(2))}
RATIO = 1.3


class Level(Times):
    """One time, always: that of the ratio 1.3 between noise and signal."""

    def times(self, u, process):
        return process.from_ratio(f64(RATIO)).expand(len(u))


# A photograph x of 2 x 2 pixels, its observation y of as many, and y' of one. All are linear in 13
# unit Gaussians: x in the first four, the noise of y in the next, that of y', that of z_t. The
# plain average over the points below is the expectation of every cubic polynomial of them.

POINTS = 13**0.5 * torch.cat([torch.eye(13), -torch.eye(13)]).double()
SOURCES = torch.eye(13).double()
X = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.8, 0, 0], [-0.3, 0.2, 0.6, 0], [0.7, 0.1, -0.2, 0.4]]).double() @ SOURCES[:4]
EASY = X + 0.4 * SOURCES[4:8]
HARD = EASY.mean(0, keepdim=True) + 0.5 * SOURCES[8:9]
ALONE = X.mean(0, keepdim=True) + (0.4**2 / 4 + 0.5**2) ** 0.5 * SOURCES[8:9]  # of the same law beside x, not made of y
EPS = SOURCES[9:]


def fitted(target, *seen):
    """The matrix of the linear regression on what is seen, and the covariance of its error."""
    seen = torch.cat(seen)
    gain = target @ seen.T @ torch.linalg.inv(seen @ seen.T)
    error = target - gain @ seen
    return gain, error @ error.T


def images(rows, side):
    """The values of rows [side^2, 13] at the points, as images [26, 1, side, side]."""
    return (POINTS @ rows.T).reshape(26, 1, side, side)


class Linear(Denoiser):
    """A matrix on the pixels of the noised sample and of the observation."""

    def __init__(self, process, gain):
        super().__init__(nn.Identity(), process, "edm", 0.7)
        self.gain = nn.Parameter(gain)

    def forward(self, x_t, t, cond=None):
        return (torch.cat([x_t.flatten(1), cond["low"].flatten(1)], 1) @ self.gain.T).reshape(x_t.shape)


def exact(process, codec, observation):
    """The exact denoiser of an observation in its codec's space, and its error's covariance."""
    alpha, sigma = (scale(process.from_ratio(f64(RATIO))) for scale in (process.alpha, process.sigma))
    residual = (
        0 if type(codec) is Codec else observation.mean(0, keepdim=True) if len(observation) == 1 else observation
    )
    gain, left = fitted(X - residual, alpha * (X - residual) + sigma * EPS, observation)
    return Linear(process, gain), left


def scales(process="vp", codecs="residual", hard=HARD):
    """The method between exact denoisers, its batch, and the teacher's remaining variance."""
    process, (old, new) = PROCESSES[process], CODECS[codecs]
    denoiser, left = exact(process, old, EASY)
    model = YONOS(Teacher(denoiser, (1, 2, 2), context=("low",), codec=old), new, times=Level())
    model.student, _ = exact(process, new, HARD)
    model.easier = [{"low": "low_1"}]
    model.randn = lambda shape, purpose: images(EPS, 2)
    batch = {"data": images(X, 2), "low_1": images(EASY, 2), "low": images(hard, 1)}
    return model, batch, left


def gradient(model, loss):
    return torch.autograd.grad(loss, model.student.gain)[0]


def check_tower(process="vp", codecs="residual"):
    """Anywhere the gradient is that of training on data, whose loss is larger by Var(x | z, y)."""
    model, batch, left = scales(process, codecs)
    weight = float(model.student.loss_weight(Level().times(f64(0), model.student.process)))
    for away in (0.0, 0.3):
        with torch.no_grad():
            model.student.gain += away
        loss = model.student_loss(batch)
        t = Level().times(f64(*range(26)), model.student.process)
        direct = denoising_loss(model.student, model.codec.encode(batch), t, images(EPS, 2), {"low": batch["low"]})
        assert torch.allclose(gradient(model, loss), gradient(model, direct), rtol=1e-6, atol=1e-6)
        assert (direct - loss).item() == pytest.approx(weight * left.trace().item() / 4, rel=1e-6)


def check_minimiser(process="vp", codecs="residual"):
    """The exact denoiser of the harder observation is the student's minimiser."""
    model, batch, _ = scales(process, codecs)
    assert gradient(model, model.student_loss(batch)).abs().max() < 1e-6
    with torch.no_grad():
        model.student.gain += 0.1
    assert gradient(model, model.student_loss(batch)).abs().max() > 0.05


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("process", PROCESSES)
def test_the_gradient_is_that_of_training_on_data_with_less_variance(process, codecs):
    check_tower(process, codecs)


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("process", PROCESSES)
def test_the_minimiser_is_the_exact_denoiser_of_the_harder_observation(process, codecs):
    check_minimiser(process, codecs)


def check_first_stage():
    """In an earlier stage of a sweep the student sees no more than the stage's own observation."""
    found = []
    for further in (None, 0.0, 3.0):
        model, batch, _ = scales()
        if further is not None:
            model.easier, model.stage = [*model.easier, {"low": "low_2"}], lambda step: 0
            batch |= {"low_2": batch["low"], "low": batch["low"] / 2 + further}
        found.append(model.student_loss(batch).item())
    assert found == pytest.approx([found[0]] * 3, rel=1e-12)


def test_an_earlier_stage_of_a_sweep_is_a_run_of_its_own():
    check_first_stage()


@pytest.mark.parametrize("codecs", CODECS)
def test_an_observation_that_is_not_made_of_the_easier_one_has_another_minimiser(codecs):
    """It has the same law beside x, so the same exact denoiser; the tower rule is what fails."""
    model, batch, _ = scales(codecs=codecs, hard=ALONE)
    assert gradient(model, model.student_loss(batch)).abs().max() > 0.01


def check_stopped():
    """The answer is a constant of the loss, also if the teacher could be trained."""
    model, batch, _ = scales()
    for parameter in model.teacher.parameters():
        parameter.requires_grad_()
    model.student_loss(batch).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


def check_constant():
    model, batch, _ = scales()
    answer = images(X, 2).requires_grad_()
    t = Level().times(f64(*range(26)), model.student.process)
    loss = answer_loss(model.student, images(X, 2), t, answer, {"low": batch["low"]})
    assert torch.autograd.grad(loss, [model.student.gain, answer], allow_unused=True)[1] is None


def test_the_answer_is_a_constant():
    check_stopped()
    check_constant()


def test_gradient_reaches_the_student_alone():
    model, batch, _ = scales()
    with torch.no_grad():
        model.student.gain += 0.1
    model.student_loss(batch).backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["student.gain"]


# Stages


class Tower(DistillData):
    """Random pictures, and observations of scales 1, 2 and 4."""

    event_shape, classes, context, domain = (3, 4, 4), {}, ("low",), "none"
    build_evaluator = media = None

    def __init__(self, batch_size: int = 8, easier=(1, 2)):
        super().__init__(batch_size)
        self.easier = [{"low": f"low_{scale}"} for scale in easier]

    def load(self):
        generator = torch.Generator().manual_seed(0)
        data = torch.rand(32, 3, 4, 4, generator=generator) * 2 - 1
        lows = {f"low_{scale}": nn.functional.avg_pool2d(data, scale) for scale in (1, 2)}
        made = TensorData({"data": data, **lows, "low": nn.functional.avg_pool2d(data, 4)})
        return made, made, made


def teacher(scale=1, **settings):
    network = wake(PatchNet((3, 4, 4), width=8, depth=1, patch=2))
    return Teacher(
        Denoiser(network, ResShift(), "edm", 0.3), (3, 4, 4), context=("low",), codec=Upscale(scale), **settings
    )


def sweep(**settings):
    torch.manual_seed(0)
    return YONOS(teacher(), Upscale(4), ema_halflife=settings.pop("ema_halflife", 30), **settings)


class Watch(Callback):
    """Whom a step asked with observations of which side, and what the next stage's teacher is."""

    def on_train_start(self, run, model):
        self.asked, self.now, self.targets, self.averages = [], [], [], []
        for name, module in (("teacher", model.teacher.denoiser), ("target", model.target), ("student", model.student)):
            if module is not None:
                module.register_forward_hook(
                    lambda _, args, __, name=name: self.now.append((name, args[2]["low"].shape[-1]))
                )

    def on_train_batch_end(self, run, model, *_):
        self.asked, self.now = [*self.asked, self.now], []
        for found, module in ((self.targets, model.target), (self.averages, model.best_student)):
            found.append({name: value.clone() for name, value in module.state_dict().items()} if module else None)


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def check_stages(halflife=30):
    """Five steps of two stages: the average after the third step teaches the last two."""
    model, watch = sweep(ema_halflife=halflife), Watch()
    trainer(max_steps=5, callbacks=[watch]).fit(model, Tower())
    assert watch.asked == [[("teacher", 4), ("student", 2)]] * 3 + [[("target", 2), ("student", 1)]] * 2
    assert same(watch.targets[0], watch.targets[1])
    assert same(watch.targets[2], watch.averages[2]) and not same(watch.averages[2], watch.averages[1])
    assert same(watch.targets[4], watch.averages[2]) and not same(watch.averages[4], watch.averages[2])


@pytest.mark.parametrize("halflife", [30, 0])
def test_the_average_of_a_stage_teaches_the_next(halflife):
    check_stages(halflife)


def test_one_stage_has_one_teacher():
    model, watch = sweep(), Watch()
    trainer(max_steps=3, callbacks=[watch]).fit(model, Tower(easier=(1,)))
    assert watch.asked == [[("teacher", 4), ("student", 1)]] * 3 and watch.targets == [None] * 3


def test_resumed_before_at_and_after_a_boundary_it_is_bit_equal(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, run, *_):
            run.save_checkpoint(tmp_path / f"{run.global_step}.ckpt")

    whole = sweep()
    trainer(max_steps=7, callbacks=[Save()]).fit(whole, Tower())
    for cut in (3, 4, 5):  # the second stage begins with the fifth step
        again = sweep()
        trainer(max_steps=7).fit(again, Tower(), ckpt_path=tmp_path / f"{cut}.ckpt", weights_only=True)
        assert same(whole.state_dict(), again.state_dict())


def test_what_is_left_is_a_teacher_of_the_hardest_observation(tmp_path):
    model = sweep()
    trainer(max_steps=4).fit(model, Tower())
    model.export(tmp_path)
    again, cond = FolderTeacher(str(tmp_path)), {"low": torch.zeros(2, 3, 2, 3)}
    assert again.codec.scale == 4 and again.generate(2, cond, 0, times=again.grid(2)).shape == (2, 3, 8, 12)
    assert all(torch.equal(p, q) for p, q in zip(again.denoiser.parameters(), model.ema.parameters(), strict=True))
    assert read_yaml(tmp_path / "teacher.yaml")["stages"] == 2


def test_classes_are_dropped_together():
    model = YONOS(neural(), drop=0.5)
    model.easier, seen = [{}], []
    for denoiser in (model.student, model.teacher.denoiser):
        denoiser.register_forward_hook(lambda _, args, __: seen.append(args[2]["label"]))
    model.student_loss({"data": torch.zeros(64, 2), "label": torch.arange(64) % 2})
    assert torch.equal(*seen) and 10 < int((seen[0] == CLASSES["label"]).sum()) < 54


# Errors


@pytest.mark.parametrize(
    "make, data, says",
    [
        (lambda: YONOS(teacher(2), Upscale(4)), Tower(), r"the teacher's codec makes samples of shape \[3, 8, 8\] from low_1, here they have \[3, 4, 4\]"),
        (lambda: YONOS(teacher(1), Upscale(8)), Tower(), r"the new codec makes samples of shape \[3, 8, 8\] from low, here they have"),
        (lambda: YONOS(teacher(1), Upscale(4, residual=False)), Tower(), r"the teacher's codec \(Upscale\) and the new one \(Upscale\) differ"),
        (lambda: YONOS(teacher(1), Upscale(4)), Tower(easier=()), r"YONOS needs tower, which Teacher and Tower do not give"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(make, data, says):
    with pytest.raises(ValueError, match=says):
        trainer(max_steps=1).fit(make(), data)


def test_stages_without_an_end_are_refused():
    model = sweep(schedule="constant")
    with pytest.raises(ValueError, match="several stages need to know the end of the run: give trainer.max_steps"):
        trainer(max_steps=-1, max_time="00:00:01:00").fit(model, Tower())


def test_a_denoiser_that_was_told_more_is_refused():
    network = MLP([2], width=8, depth=1, classes=CLASSES)
    maker = Fresh(network)
    make = maker.make
    maker.make = lambda teacher: (made := make(teacher)).tell("kappa", range=(1, 2)) or made
    with pytest.raises(ValueError, match="a teacher is not told kappa"):
        YONOS(neural(), student_maker=maker)


def test_data_without_easier_observations_do_not_give_a_tower():
    assert not Pairs.easier


# Each fault must be noticed

MUTATIONS = [
    ("the wrong way round", Upscale.rebase, "(ours - theirs)", "(theirs - ours)", check_tower),
    ("the signal's scale forgotten", Upscale.rebase, "alpha * (ours", "(ours", check_tower),
    ("no weight", answer_loss, "expand(denoiser.loss_weight(t), error) * ", "", check_tower),
    ("weight squared", answer_loss, "denoiser.loss_weight(t)", "denoiser.loss_weight(t) ** 2", check_tower),
    ("the answer not stopped", answer_loss, "answer.detach()", "answer", check_constant),
    ("the teacher sees the harder observation", YONOS.student_loss, "(x_easy, t, easy)", "(x_easy, t, {'low': easy['low'].mean((2, 3), keepdim=True).expand(-1, -1, 2, 2)})", check_tower),
    ("the teacher sees the student's sample", YONOS.student_loss, "teacher(x_easy,", "teacher(x_t,", check_tower),
    ("the answer left in the teacher's space", YONOS.student_loss, "1.0, easy, hard)", "0.0, easy, hard)", check_tower),
    ("the answer scaled as the noised sample", YONOS.student_loss, "1.0, easy, hard)", "expand(process.alpha(t), x_t), easy, hard)", check_tower),
    ("the sample left in the last stage's space", YONOS.student_loss, "stage + 1 < len", "stage + 1 > len", check_first_stage),
    ("levels swapped", YONOS.student_loss, "(stage, stage + 1)", "(stage + 1, stage)", check_stages),
    ("always the first teacher", YONOS.student_loss, "self.target if stage else self.teacher.denoiser", "self.teacher.denoiser", check_stages),
    ("a stage early", YONOS.stage, "(step * len", "((step + 1) * len", check_stages),
    ("a step late", YONOS.update_target, "self.stage(self.global_step + 1) != self.stage(self.global_step)", "self.stage(self.global_step) != self.stage(self.global_step - 1)", check_stages),
    ("a step early", YONOS.update_target, "self.stage(self.global_step + 1) != self.stage(self.global_step)", "self.stage(self.global_step + 2) != self.stage(self.global_step + 1)", check_stages),
    ("the student instead of its average", YONOS.update_target, "self.best_student", "self.student", check_stages),
]  # fmt: skip


@pytest.mark.parametrize("mutation", [Mutation(says, *rest) for says, *rest in MUTATIONS], ids=str)
def test_a_fault_is_noticed(mutation):
    prove(mutation)
