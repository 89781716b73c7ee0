"""VideoScene: the leap's law, the true sample's part, the policy, its student and their faults."""

import math
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers import BATCH, PROCESSES, Pairs, at, f64, fit, gaussian, neural, sigma_points, trainer, wake
from losses import test_bandit as bandit
from methods.test_consistency import FLOW, M, S, Table, law, solve
from torch import nn

from distillkit import load_student
from distillkit.cli import front
from distillkit.data import TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.hops import Grid
from distillkit.diffusion.process import expand
from distillkit.diffusion.start import Start
from distillkit.losses.bandit import reinforce
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from distillkit.methods.videoscene import VideoScene
from distillkit.networks.policy import Policy
from distillkit.networks.video_unet import VideoUNet
from distillkit.students.few_step import FewStepStudent
from distillkit.students.leap import LeapStudent, state, state_shape
from distillkit.students.makers import FromFolder, Leap
from distillkit.teachers.base import Teacher
from tests.mutations import Mutation, prove

TOP, DELTA, V = 0.6, 0.7, 0.9  # T', and the mean error and the width of coarse samples
ALPHA, SIGMA = 1 - TOP, TOP


def leaping(num=4, maker=None, start=TOP, **settings):
    """A model on a line whose coarse samples are `M + DELTA + V z`, and a batch of sigma points."""
    teacher = gaussian(M, S, FLOW)
    teacher.context = ("coarse",)
    maker = maker or SimpleNamespace(make=lambda t: t.new_denoiser(), sampling={"start": Start("coarse", start)})
    settings = {"hops": Grid(num), "distance": "square", "weight": "none", "ema_halflife": 0, **settings}
    model = VideoScene(teacher, student_maker=maker, **settings)
    model.student = Table(FLOW, model.hops.levels(FLOW, model.top))
    z, eps = sigma_points()
    model.randn = lambda shape, purpose: eps
    return model, {"data": M + S * z, "coarse": M + DELTA + V * z}


class FlowMap(nn.Module):
    """The exact consistency function of N(M, S^2)."""

    told, process = {}, FLOW

    def forward(self, x, t, cond):
        alpha, sigma = (expand(scale, x) for scale in FLOW.scales(torch.as_tensor(t)))
        return M + (x - alpha * M) * S / (alpha**2 * S**2 + sigma**2).sqrt()


# The leap


@pytest.mark.parametrize("hop", ["ddim", "heun"])
def test_a_step_from_a_coarse_sample_is_the_teacher_s_sampler_from_there(hop):
    """With DDIM its mean error is the coarse one times a known factor, and so is its width."""
    model, batch = leaping(8, hop=hop)
    solve(model, batch)  # at the fixed point of every level the loss is zero
    coarse, noise = batch["coarse"], sigma_points()[1]
    found = model.product().solve(noise, {"coarse": coarse})  # at first the policy takes the largest level
    assert model.product().levels({"coarse": coarse}).tolist() == [TOP] * 4
    times = model.student.levels[:-1].double()
    chain = model.teacher.solver(hop)(
        lambda x, t: model.teacher.denoiser(x, t, {}), FLOW, ALPHA * coarse + SIGMA * noise, times
    )
    torch.testing.assert_close(found, chain, rtol=1e-5, atol=1e-5)
    if hop == "ddim":
        factor = law(FLOW, model.student.levels) * S / math.hypot(ALPHA * S, SIGMA)
        assert found.mean().item() == pytest.approx(M + DELTA * ALPHA * factor, abs=1e-6)
        assert found.std(unbiased=False).item() == pytest.approx(factor * math.hypot(ALPHA * V, SIGMA), abs=1e-6)
        assert model.student.levels[0].item() == pytest.approx(TOP)


def test_an_exact_student_s_mean_error_shrinks_by_what_the_class_says():
    """In the limit of exact steps."""
    model, batch = leaping()
    model.student = FlowMap()
    error = model.product().solve(sigma_points()[1], {"coarse": batch["coarse"]}).mean() - M
    assert error.item() == pytest.approx(DELTA * ALPHA * S / math.hypot(ALPHA * S, SIGMA), abs=1e-7)


def test_states_are_noised_coarse_samples_at_levels_up_to_the_start():
    """Of the data nothing is seen, and of the levels above T' neither."""
    model, batch = leaping(8)
    seen = []
    model.student.register_forward_pre_hook(lambda module, args: seen.append(args[:2]))
    for far in range(8):
        seen.clear()
        model.rand = lambda n, purpose, far=far: torch.full((n,), (far + 0.5) / 8)
        model.student_loss(batch)
        (x, t), level = seen[0], TOP * (8 - far) / 8
        assert t.tolist() == pytest.approx([level] * 4)
        torch.testing.assert_close(x, (1 - level) * batch["coarse"] + level * sigma_points()[1], rtol=1e-5, atol=1e-6)


# The true sample


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_the_true_sample_draws_the_student_to_its_regression(weight):
    """At one hop the fixed point is `(teacher + lambda regression on x_t) / (1 + lambda)`."""
    model, batch = leaping(1, lambda_gt=weight)
    g = ALPHA * S**2 / (ALPHA**2 * S**2 + SIGMA**2)  # of the teacher's denoised sample
    c = ALPHA * S * V / (ALPHA**2 * V**2 + SIGMA**2)  # of the regression of x_0 on x_t
    gain = (g + weight * c) / (1 + weight)
    mean = M + g * ALPHA * DELTA / (1 + weight)  # of the target
    shift = mean - gain * ALPHA * DELTA
    with torch.no_grad():
        model.student.values[0, -1] = f64(shift, gain)
    (found,) = torch.autograd.grad(model.student_loss(batch), model.student.values)
    assert found.abs().max() < 1e-6  # levels are float32
    with torch.no_grad():
        model.student.values[0, -1] += 0.1
    (found,) = torch.autograd.grad(model.student_loss(batch), model.student.values)
    x = ALPHA * (batch["coarse"] - M) + SIGMA * sigma_points()[1]
    expected = 2 * (1 + weight) * 0.1 * torch.stack([(1 + x).mean(), ((1 + x) * x).mean()])
    torch.testing.assert_close(found[0, -1], expected, rtol=1e-5, atol=1e-7)


def test_a_base_that_is_no_approximation_of_a_sample_is_refused():
    """One of another shape would spread over the noise."""
    model, batch = leaping()
    with pytest.raises(ValueError, match="must be shaped like the samples"):
        model.student_loss(batch | {"coarse": batch["coarse"][:, :0].sum(1)})


# The policy


def missed(level, away, error):
    """The error of the exact student where `x_0 = M + away` and `x_r = x_0 + error`.

    Its mean and its standard deviation.
    """
    alpha, sigma = 1 - level, level
    g = S / math.hypot(alpha * S, sigma)
    return alpha * g * (away + error) - away, sigma * g


def test_rewards_are_the_negative_squared_errors_of_the_student():
    model, _ = leaping(actions=3, reward="mse")
    model.student = FlowMap()
    z, eps = sigma_points()
    batch = {"data": M + S * z, "coarse": M + S * z + DELTA}
    assert model.actions.tolist() == pytest.approx([TOP, TOP * 2 / 3, TOP / 3])
    actions = torch.tensor([[0, 1, 2]]).expand(4, 3)
    found = model.rewards(batch, model.condition(batch), actions)
    errors = [[missed(t, away, DELTA) for away in (S * z).flatten().tolist()] for t in model.actions.tolist()]
    expected = [-sum(mean**2 + std**2 for mean, std in of_level) / 4 for of_level in errors]
    assert found.mean(0).tolist() == pytest.approx(expected, abs=1e-6)
    both = model.rewards(batch, model.condition(batch), torch.tensor([[2, 2]]).expand(4, 2))
    assert torch.equal(both[:, 0], both[:, 1])  # one noise for all levels of a sample
    model.reward_of = "log_mse"
    torch.testing.assert_close(model.rewards(batch, model.condition(batch), actions), -(-found).log())


def test_the_policy_finds_the_best_level_of_each_context():
    """Those of the closed form: little noise for what is right, most for what is quite wrong."""
    contexts = ((0.0, 0.0), (1.5, 1.0), (-1.5, -3.0))
    model, _ = leaping(actions=3)
    del model.randn
    model.student = FlowMap()
    torch.manual_seed(0)
    model.policy = Policy([1], 3)
    optimizer = torch.optim.Adam(model.policy.parameters(), lr=3e-3)
    away, error = torch.tensor(contexts).repeat(32, 1).T[..., None]
    batch = {"data": M + away, "coarse": M + away + error}
    for step in range(60):
        optimizer.zero_grad()
        at(model, step).policy_loss(batch).backward()
        optimizer.step()
    levels = model.actions.tolist()
    chosen = [levels.index(t) for t in model.product().levels({"coarse": batch["coarse"][:3]}).tolist()]
    errors = f64(*([missed(level, *context) for level in levels] for context in contexts))  # [3, 3, 2]
    normal = torch.special.ndtri((torch.arange(10_000).double() + 0.5) / 10_000)
    rewards = -(errors[..., :1] + errors[..., 1:] * normal).square().log().mean(-1)
    assert chosen == rewards.argmax(1).tolist() == [2, 1, 0]


def test_the_policy_learns_from_its_own_draws():
    """Rows in proportion to its probabilities, the same in one place of a run, others elsewhere."""
    model, _ = leaping(actions=3, draws=2)
    del model.randn
    model.student = FlowMap()
    with torch.no_grad():
        model.policy.out.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    data = M + S * torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    batch, seen = {"data": data, "coarse": data + DELTA}, []
    model.rewards = lambda batch, cond, actions: seen.append(actions) or torch.zeros(actions.shape)
    for step in (0, 0, 1):
        at(model, step).policy_loss(batch)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    shares = seen[0].flatten().bincount() / seen[0].numel()
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.02)


def test_where_all_levels_are_worth_the_same_the_policy_becomes_indifferent():
    """The gradient is that of the entropy, `dH / dl_k = -pi_k (log pi_k + H)`."""
    model, batch = leaping(actions=3, entropy=0.2)
    pi = torch.tensor([0.5, 0.3, 0.2])
    with torch.no_grad():
        model.policy.out.bias.copy_(pi.log())
    model.rewards = lambda batch, cond, actions: torch.ones(actions.shape)
    (found,) = torch.autograd.grad(model.policy_loss(batch), model.policy.out.bias)
    torch.testing.assert_close(found, 0.2 * pi * (pi.log() - (pi * pi.log()).sum()))


def test_a_policy_sees_frames_as_channels_and_starts_indifferent():
    clip = torch.randn(2, 3, 8, 16, 12, generator=torch.Generator().manual_seed(0))
    policy = Policy([3, 8, 16, 12], 5)
    assert policy.layers[0].in_channels == 24 and not policy(clip).any()
    wake(policy.out)
    assert policy(clip).shape == (2, 5)
    torch.testing.assert_close(policy(clip)[1:], policy(clip[1:]))
    assert not torch.allclose(policy(clip), policy(clip.flip(2)))  # the order of frames is seen


# What a policy sees where frames are known

KNOWN = {"first": [0, -1]}


def clips(num=16):
    """Clips [num, 1, 4, 4, 4]; every second coarse one is wrong, by 0.5 up or down."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(num, 1, 4, 4, 4, generator=generator)
    sign = torch.randn(data.shape, generator=generator).sign()
    wrong = torch.arange(num) % 2
    return {"data": data, "first": data[:, :, [0, -1]], "coarse": data + 0.5 * wrong[:, None, None, None, None] * sign}


def filming(**settings):
    """A model of clips whose two end frames are known."""
    network = VideoUNet((1, 4, 4, 4), channels=8, multipliers=(1,), heads=0, given=2)
    teacher = Teacher(Denoiser(network, PROCESSES["flow"], "x0"), (1, 4, 4, 4), context=("first", "coarse"))
    settings = {"hops": Grid(4), "actions": 3, "ema_halflife": 0, "known": KNOWN, **settings}
    return VideoScene(teacher, Leap("coarse", TOP), **settings)


def test_a_state_is_how_wrong_known_frames_are():
    """Of each known frame in its place, up or down; of nothing else."""
    batch = clips(2)
    batch["coarse"] = batch["data"].clone()
    batch["coarse"][:, :, 0] -= 0.25
    batch["coarse"][:, :, 3, 1, 2] += 2.0
    batch["coarse"][:, :, 1:3] = 9.0
    expected = torch.zeros(2, 1, 2, 4, 4)
    expected[:, :, 0], expected[:, :, 1, 1, 2] = 0.25, 2.0
    torch.testing.assert_close(state(batch["coarse"], batch, KNOWN), expected)
    assert [*expected.shape[1:]] == state_shape((1, 4, 4, 4), ("first", "coarse"), KNOWN)
    assert state(batch["coarse"], batch, None) is batch["coarse"]


def test_a_policy_tells_approximations_apart_by_their_known_frames():
    """The least level is best for those that are right, the largest for the others."""
    torch.manual_seed(0)
    model, batch = filming(), clips()
    wrong = (batch["coarse"] != batch["data"]).flatten(1).any(1)
    model.rewards = lambda batch, cond, actions: torch.where(wrong[:, None], -actions, actions).float()
    optimizer = torch.optim.Adam(model.policy.parameters(), lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        at(model, step).policy_loss(batch).backward()
        optimizer.step()
    made, low, high = model.product().eval(), float(model.actions[-1]), float(model.actions[0])
    with torch.no_grad():
        found = made.levels({name: batch[name] for name in made.context})
    assert found.tolist() == pytest.approx(torch.where(wrong, high, low).tolist())


def test_a_student_comes_back_with_what_it_knows(tmp_path):
    model, batch = filming(), clips(4)
    wake(model.policy, 3)
    cond = {name: batch[name] for name in ("first", "coarse")}
    student = load_student(model.product().save(tmp_path / "s", examples=cond))
    assert student.known == KNOWN and torch.equal(student.levels(cond), model.product().levels(cond))
    assert torch.equal(student.sample(4, cond, seed=3), model.product().eval().sample(4, cond, seed=3))
    path = tmp_path / "s" / "student.yaml"
    for wrong, says in (
        ("first", "known cannot be"),
        ({"first": []}, "known cannot be"),
        ({"first": [0.5]}, "known cannot be"),
        ({"last": [0, -1]}, "known names 'last'"),
        ({"first": [0]}, "the policy looks at states of shape"),
    ):
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"known": wrong}))
        with pytest.raises(ValueError, match=says):
            load_student(tmp_path / "s")


def test_known_frames_that_there_are_not_are_refused():
    for wrong, says in (
        ({"last": [0]}, r"known names 'last', which is not among the conditions \['first', 'coarse'\]"),
        ({"first": [0, 4]}, "known must name frames of samples, which have 4, got"),
    ):
        with pytest.raises(ValueError, match=says):
            filming(known=wrong)
    with pytest.raises(ValueError, match="which have 0"):  # points in the plane
        neural_model(known={"coarse": [0]})
    with pytest.raises(ValueError, match=r"cond\['first'\] must hold frames \[0\] of the samples"):
        filming(known={"first": [0]}).policy_loss(clips(2))


def test_a_wrong_name_of_known_frames_is_refused_in_a_sentence(capsys):
    assert front.main(["fit", "domain=scene", "method=videoscene", "model.known={last: [0, -1]}"]) == 2
    assert "known names 'last', which is not among the conditions ['first', 'coarse']" in capsys.readouterr().err


# Who learns from what


def neural_model(**settings):
    """A model with networks in the plane."""
    teacher = neural(PROCESSES["flow"], context=("coarse",))
    settings = {"hops": Grid(8), "actions": 3, "student": Adam(lr=1e-2, updates=2), "ema_halflife": 0, **settings}
    model = VideoScene(teacher, Leap("coarse", TOP), **settings)
    for module in (model.student, model.policy):
        wake(module, 3)
    return model


CLIP = {**BATCH, "coarse": BATCH["data"] + 0.3}


@pytest.mark.parametrize("role, other", [("student", "policy"), ("policy", "student")])
def test_no_role_learns_from_the_other_s_loss(role, other):
    model = neural_model(lambda_gt=1.0)
    loss = getattr(model, f"{role}_loss")(CLIP)
    own, others = ([*getattr(model, name).parameters()] for name in (role, other))
    found = torch.autograd.grad(loss, own + others, allow_unused=True)
    assert all(g is not None and g.isfinite().all() for g in found[: len(own)])
    assert any(g.any() for g in found[: len(own)])
    assert all(g is None for g in found[len(own) :])


class Coarse(Pairs):
    """Points with approximations."""

    context, provides = ("coarse",), Pairs.provides | {"approximation"}

    def load(self):
        made = super().load()[0]
        return (TensorData({**made.tensors, "coarse": made.tensors["data"] + 0.3}),) * 3


def test_the_student_takes_its_turns_and_then_the_policy():
    model = neural_model()
    assert list(model.roles) == ["student", "policy"]
    trainer(6).fit(model, Coarse(batch_size=8))
    assert [model.turn(step) for step in range(6)] == ["student", "student", "policy"] * 2
    assert {"policy/reward", "policy/level", "policy/entropy", "student/consistency"} <= {*model.noted}
    assert not model.bad_steps.any()


def test_data_without_approximations_are_refused():
    with pytest.raises(ValueError, match="VideoScene needs approximation, which Teacher and Pairs do not give"):
        fit(neural_model(), 1)


def test_a_student_that_is_told_kappa_is_told_it_by_the_policy_too():
    model = neural_model(kappa=[1.0, 3.0])
    told = []
    model.student.register_forward_pre_hook(lambda module, args: told.append(args[2]["kappa"]))
    at(model).policy_loss(CLIP)
    assert len(told) == model.draws and all(bool(((k >= 1) & (k <= 3)).all()) for k in told)
    made = model.product().eval()
    cond = {"label": CLIP["label"], "coarse": CLIP["coarse"]}
    assert not torch.equal(made.sample(8, cond, kappa=1.0), made.sample(8, cond, kappa=3.0))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="starts from an approximation of the sample: say student=leap"):
        VideoScene(neural(PROCESSES["flow"], context=("coarse",)))
    for wrong in ({"actions": 1}, {"draws": 1}, {"lambda_gt": -1.0}, {"entropy": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
            neural_model(**wrong)


def test_another_maker_is_refused_in_a_sentence(capsys):
    assert front.main(["fit", "domain=scene", "method=videoscene", "student=copy"]) == 2
    assert "say student=leap" in capsys.readouterr().err


# Its student


SPREAD = {"label": CLIP["label"], "coarse": torch.linspace(-3, 3, 8)[:, None] * torch.tensor([1.0, -1.0])}


@pytest.fixture
def folder(tmp_path):
    return neural_model().product().save(tmp_path / "s", examples=SPREAD)


def test_it_comes_back_with_its_policy(folder):
    student, made = load_student(folder), neural_model().product().eval()
    assert isinstance(student, LeapStudent) and student.num_steps == 1 and student.times == [pytest.approx(TOP)]
    assert torch.equal(student.levels(SPREAD), made.levels(SPREAD)) and len(student.levels(SPREAD).unique()) > 1
    assert torch.equal(student.sample(8, seed=3), made.sample(8, SPREAD, seed=3))


def test_each_sample_starts_from_its_own_level():
    """And a fixed level is a student like any other."""
    student, cond = neural_model().product().eval(), SPREAD
    levels = student.levels(cond)
    seen = []
    hook = student.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[:2]))
    made = student.sample(8, cond, seed=3)
    hook.remove()
    ((x, t),) = seen
    (noise,) = student.noise(8, cond, 3)
    t_B = levels.float()[:, None]
    torch.testing.assert_close(x, (1 - t_B) * cond["coarse"] + t_B * noise)
    assert torch.equal(t, levels)
    for level in levels.unique().tolist():
        fixed = student.with_level(level)
        assert type(fixed) is FewStepStudent and fixed.times == [level]
        here = levels == level
        torch.testing.assert_close(fixed.sample(8, cond, seed=3)[here], made[here])
        assert not torch.allclose(fixed.sample(8, cond, seed=3)[~here], made[~here])


def test_it_takes_one_step(folder):
    student = load_student(folder)
    assert student.with_steps(1) is student
    with pytest.raises(ValueError, match="takes one step, from a level that it chooses"):
        student.with_steps(2)


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("policy", None, "policy cannot be"),
        (
            "policy",
            {"class_path": "distillkit.networks.mlp.MLP", "init_args": {"event_shape": [2]}},
            "policy cannot be",
        ),
        (
            "policy",
            {"class_path": "distillkit.networks.policy.Policy", "init_args": {"event_shape": [3, 8, 4], "num": 3}},
            "the policy looks at states of shape",
        ),
        ("actions", "all", "actions cannot be"),
        ("actions", [0.2, 0.4], "a policy of 3 actions chooses"),
        ("actions", [0.2, 0.4, 7.0], "actions must lie in"),
        ("times", [0.6, 0.3], "2 steps"),
    ],
)
def test_a_damaged_folder_is_refused(folder, key, value, says):
    path = folder / "student.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=says):
        load_student(folder)


def test_it_is_exported_with_its_policy(folder, tmp_path, capsys):
    out = tmp_path / "student.safetensors"
    assert front.main(["export", str(folder), "--out", str(out)]) == 0
    assert "largest difference from the student 0.0e+00" in capsys.readouterr().out


def test_its_graph_chooses_levels(folder, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert front.main(["export", str(folder), "--format", "onnx", "--out", str(tmp_path / "student.onnx")]) == 0


# Going on


def test_a_student_from_a_folder_keeps_its_policy_and_its_levels(folder):
    teacher, old = neural(PROCESSES["flow"], context=("coarse",)), load_student(folder)
    model = VideoScene(teacher, FromFolder(folder), hops=Grid(8), actions=3)
    assert model.actions.tolist() == old.actions and model.top == pytest.approx(TOP)
    state = model.policy.state_dict()
    assert all(torch.equal(state[name], value) for name, value in old.policy.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.policy.parameters()) and model.policy.training
    with pytest.raises(ValueError, match=r"chooses among 3 levels: say model.actions=3"):
        VideoScene(teacher, FromFolder(folder), hops=Grid(8), actions=4)


def test_a_method_without_a_policy_says_that_it_drops_it(folder, recwarn):
    teacher = neural(PROCESSES["flow"], context=("coarse",))
    DMD(teacher, student_maker=Leap("coarse", TOP))
    assert not recwarn
    with pytest.warns(UserWarning, match=r"which DMD does not keep: all samples start at 0.6 now; method=videoscene"):
        model = DMD(teacher, student_maker=FromFolder(folder))
    assert model.step_times.tolist() == [pytest.approx(TOP)] and type(model.product()) is FewStepStudent


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"t_init": 0.3}, r"starts at 0.6, and model.t_init at 0.3: say student.level=0.3 in its place"),
        ({"times": [0.3]}, r"starts at 0.6, and model.times at 0.3: say student.level=0.3 in its place"),
        ({"t_init": TOP}, None),
        ({"times": [TOP, 0.2]}, None),
        ({}, None),
    ],
)
def test_two_levels_to_start_from_are_refused(settings, said):
    teacher = neural(PROCESSES["flow"], context=("coarse",))
    with pytest.raises(ValueError, match=said) if said else nullcontext():
        assert DMD(teacher, student_maker=Leap("coarse", TOP), **settings).step_times[0] == TOP


@pytest.mark.parametrize(
    ("level", "actions", "said"),
    [
        (0.8, 3, r"3 levels from 0.6 down, here there are 3 from 0.8 down: say student.level=0.6 model.actions=3"),
        (TOP, 4, r"3 levels from 0.6 down, here there are 4 from 0.6 down: say student.level=0.6 model.actions=3"),
        (TOP, 3, None),
    ],
)
def test_a_checkpoint_is_not_gone_on_with_among_other_levels(level, actions, said):
    """The policy's actions would mean something else."""
    made = {}
    neural_model().on_save_checkpoint(made)
    teacher = neural(PROCESSES["flow"], context=("coarse",))
    model = VideoScene(teacher, Leap("coarse", level), hops=Grid(8), actions=actions)
    with pytest.raises(ValueError, match=said) if said else nullcontext():
        model.on_load_checkpoint(made)
    del made["distillkit"]["actions"]  # of an earlier version
    model.on_load_checkpoint(made)


# Faults

# ruff: noqa: E501 (a fault is a row of a table)


chain = partial(test_a_step_from_a_coarse_sample_is_the_teacher_s_sampler_from_there, "ddim")
regression = partial(test_the_true_sample_draws_the_student_to_its_regression, 0.5)
climbs = partial(bandit.test_its_expectation_is_the_gradient_of_the_mean_reward, 2)
baselines = bandit.test_the_baseline_of_a_draw_is_the_mean_of_the_others

finds = test_the_policy_finds_the_best_level_of_each_context
rewarded, states = (
    test_rewards_are_the_negative_squared_errors_of_the_student,
    test_states_are_noised_coarse_samples_at_levels_up_to_the_start,
)
indifferent = test_where_all_levels_are_worth_the_same_the_policy_becomes_indifferent
wrong_ends, apart = (
    test_a_state_is_how_wrong_known_frames_are,
    test_a_policy_tells_approximations_apart_by_their_known_frames,
)
own_draws, own_level = test_the_policy_learns_from_its_own_draws, test_each_sample_starts_from_its_own_level

FAULTS = [
    (reinforce, "descent of the reward", "return -(", "return (", climbs),
    (reinforce, "the baseline added", "rewards - baseline)", "rewards + baseline)", baselines),
    (
        reinforce,
        "no baseline",
        "rewards - baseline)",
        "rewards)",
        baselines,
    ),
    (reinforce, "its own reward in the baseline", "- rewards) / (num - 1)", ") / num", climbs),
    (reinforce, "the sum of the others for their mean", "/ (num - 1)", "/ 1", baselines),
    (reinforce, "rewards with gradients", "rewards.detach()", "rewards", bandit.test_rewards_are_constants),
    (VideoScene.origin, "the data for the coarse sample", "cond[self.start.base]", 'batch["data"]', states),
    (
        VideoScene.student_loss,
        "the true sample's weight squared",
        "self.lambda_gt * truth",
        "self.lambda_gt**2 * truth",
        regression,
    ),
    (VideoScene.student_loss, "the true sample's sign", "loss + self", "loss - self", regression),
    (
        VideoScene.student_loss,
        "the coarse sample as the true one",
        "self.teacher.codec.encode(batch)",
        "self.origin(batch, ends.cond)",
        regression,
    ),
    (VideoScene.rewards, "errors for rewards", "-errors if", "errors if", rewarded),
    (VideoScene.rewards, "the next level's reward", "[actions].unbind", "[(actions + 1) % 3].unbind", rewarded),
    (VideoScene.rewards, "the data noised", "add_noise(x_r,", "add_noise(x_0,", rewarded),
    (VideoScene.rewards, "near the coarse sample", "(x_g - x_0)", "(x_g - x_r)", rewarded),
    (VideoScene.policy_loss, "descent of the reward", "return reinforce", "return -reinforce", finds),
    (VideoScene.policy_loss, "certainty rewarded", "- self.entropy", "+ self.entropy", indifferent),
    (VideoScene.policy_loss, "the entropy's weight squared", "self.entropy *", "self.entropy**2 *", indifferent),
    (VideoScene.policy_loss, "no action twice", "self.draws, True", "self.draws, False", own_draws),
    (VideoScene.policy_loss, "every action as likely", "detach().exp()", "detach().exp() * 0 + 1", own_draws),
    (state, "up and down apart", "(guessed - cond[name]).abs()", "guessed - cond[name]", wrong_ends),
    (state, "squared errors", "(guessed - cond[name]).abs()", "(guessed - cond[name]).square()", wrong_ends),
    (state, "the approximation's frames", "(guessed - cond[name])", "guessed", wrong_ends),
    (state, "the next frame", "base[:, :, list(frames)]", "base.roll(-1, 2)[:, :, list(frames)]", wrong_ends),
    (state, "the frames the other way round", "torch.cat(wrong, 2)", "torch.cat(wrong, 2).flip(2)", wrong_ends),
    (
        VideoScene.policy_loss,
        "another state than the student's",
        "state(self.origin(batch, cond), cond",
        "state(batch['data'], cond",
        apart,
    ),
    (
        LeapStudent.levels,
        "another state than the policy's",
        "state(base, cond, self.known)",
        "1 - state(base, cond, self.known)",
        apart,
    ),
    (LeapStudent.levels, "the worst level", "argmax", "argmin", finds),
    (LeapStudent.levels, "the next level", "argmax(1)]", "argmax(1) - 1]", finds),
    (
        LeapStudent.solve,
        "the largest level",
        "t = self.levels(cond)",
        "t = self.levels(cond) * 0 + self.times[0]",
        own_level,
    ),
    (
        LeapStudent.solve,
        "from pure noise",
        "self.start(self.denoiser.process, noise, t, cond, self.noise_scale)",
        "noise",
        own_level,
    ),
]


@pytest.mark.parametrize("fault", [Mutation(says, function, *rest) for function, says, *rest in FAULTS], ids=str)
def test_faults_are_noticed(fault):
    prove(fault)
