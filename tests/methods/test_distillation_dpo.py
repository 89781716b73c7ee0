"""Distillation-DPO in closed form: where each form moves the student, what fake scores learn."""

# ruff: noqa: E501 (a fault is a row of a table)

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import BATCH, PROCESSES, UNMEASURED, Affine, at, distil, gaussian, neural, wake
from methods.test_score import on_a_line
from mutations import Mutation, prove
from torch import nn

import distillkit.methods.distillation_dpo as dpo_module
from distillkit import checks, load_student
from distillkit.codec import Codec
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.methods.distillation_dpo import DistillationDPO
from distillkit.methods.dmd import DMD
from distillkit.teachers.base import Teacher

M, S, RATIO = 0.4, 0.8, 0.9
MORE, NEAR = (lambda x, batch: x[:, 0]), (lambda x, batch: -x[:, 0].abs())  # what samples are preferred
FORMS = pytest.mark.parametrize("form", ["guidance", "published"])
EACH = pytest.mark.parametrize("process", [PROCESSES[name] for name in ("ve", "vp", "flow")], ids=["ve", "vp", "flow"])


class Fakes(nn.Module):
    """Fake scores N(mean, std^2) by kind, which have learnt what they should and learn no more."""

    def __init__(self, kinds, process, **laws):
        super().__init__()
        self.denoisers = [gaussian(*laws[kind], process).denoiser for kind in kinds]

    def forward(self, x_t, t, cond):
        (kind,) = set(cond["kind"].tolist())
        return self.denoisers[kind](x_t, t, {})


def ranking(reward):
    """Data with this reward, of which the model asks nothing else."""
    return SimpleNamespace(reward=reward)


def preferring(model, reward, step=0):
    """The model at this step of a run on data with this reward."""
    at(model, step)._trainer.datamodule = ranking(reward)
    return model


def every_pair(num=200):
    """(z_1, z_2, eps), [2 num^2, 1] each: all pairs of quantiles of noise, eps of both signs."""
    z = torch.special.ndtri((torch.arange(num, dtype=torch.float64) + 0.5) / num)
    z_1, z_2 = torch.cartesian_prod(z, z).repeat(2, 1).split(1, dim=1)
    return z_1, z_2, torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(num**2)[:, None]


def on_pairs(mu, s, reward, laws, process=None, m=M, S=S, ratio=RATIO, **settings):
    """The method where everything is exact: student `mu + s z`, all pairs of its samples."""
    process = process or VarianceExploding()
    settings = {"second": "fresh"} | settings
    model, line = on_a_line(DistillationDPO, mu, s, process, m, S, ratio, **settings)
    model.fake_score = Fakes(model.kinds, process, **laws)
    z_1, z_2, eps = every_pair()
    known = {"student noise 0": z_1, "student again noise 0": z_2, "student eps": eps}
    model.randn = lambda shape, purpose: known[purpose]
    return preferring(model, reward), line, {"data": torch.zeros(len(z_1), 1)}


# Winners and losers of two unit Gaussians. The larger one has the mean 1 / sqrt(pi), and either has
# the variance 1 - 1 / pi. Of the one nearer to zero the variance is 1 - 2 / pi, of the other one
# 1 + 2 / pi.
ROOT = 1 / math.sqrt(math.pi)
OF_MORE = {"winner": (ROOT, math.sqrt(1 - ROOT**2)), "loser": (-ROOT, math.sqrt(1 - ROOT**2))}
OF_NEAR = {"winner": (0, math.sqrt(1 - 2 * ROOT**2)), "loser": (0, math.sqrt(1 + 2 * ROOT**2))}


@pytest.mark.parametrize("loser, shift, spread", [(0.0, 0.186, -0.089), (0.5, 0.278, -0.170), (1.0, 0.371, -0.250)])
def test_the_published_form_moves_away_from_the_winners(loser, shift, spread):
    """`d/dmu = sigma^2 / V [(mu_w - m) - loser (mu_l - m)]`, of a student that is the teacher.

    The teacher is N(0, 1) and sigma = 0.7. Where more is better `d/dmu` is positive, so descent
    lowers the mean. Where nearer to zero is better `d/ds` is negative, and the student widens.
    """
    published = {"form": "published", "loser": loser, "m": 0.0, "S": 1.0, "ratio": 0.7}
    model, line, batch = on_pairs(0.0, 1.0, MORE, OF_MORE, **published)
    assert line.gradient(model.student_loss(batch))[0] == pytest.approx(shift, abs=2e-3)
    model, line, batch = on_pairs(0.0, 1.0, NEAR, OF_NEAR, **published)
    assert line.gradient(model.student_loss(batch)) == pytest.approx([0, spread], abs=3e-3)


def test_the_published_form_has_no_rest_at_full_weight():
    """With `loser=1` the pull is `sigma^2 / V (mu_w - mu_l)`, wherever the student is."""
    pulls = []
    for mu in (-3.0, 0.0, 5.0):
        laws = {kind: (mean + mu, std) for kind, (mean, std) in OF_MORE.items()}
        model, line, batch = on_pairs(mu, 1.0, MORE, laws, m=0.0, S=1.0, form="published", loser=1.0)
        pulls.append(line.gradient(model.student_loss(batch))[0])
    assert pulls == pytest.approx([RATIO**2 / (1 + RATIO**2) * 2 * ROOT] * 3, abs=3e-3)


def test_winner_and_loser_exchanged_have_the_opposite_gradient():
    found = []
    for sign in (1, -1):
        winner, loser = sorted(OF_MORE.values(), reverse=sign > 0)
        laws = {"winner": winner, "loser": loser}
        model, line, batch = on_pairs(
            0.0, 1.0, lambda x, _, sign=sign: sign * x[:, 0], laws, form="published", loser=1.0
        )
        found.append(line.gradient(model.student_loss(batch)))
    assert found[0] == pytest.approx([-g for g in found[1]], abs=1e-9) and abs(found[0][0]) > 0.1


@pytest.mark.parametrize("loser", [0.0, 1.0])
def test_pairs_without_preference_leave_no_gradient(loser):
    """Draws everywhere, far from the teacher: both terms are large, and equal with `loser=1`."""
    alike = {"winner": (1.1, S), "loser": (1.1, S)}
    model, line, batch = on_pairs(1.1, S, lambda x, batch: 0 * x[:, 0], alike, form="published", loser=loser)
    pull = (1 - loser) * (1.1 - M) * RATIO**2 / (S**2 + RATIO**2)
    assert line.gradient(model.student_loss(batch)) == pytest.approx([pull, 0], rel=1e-3, abs=1e-9)


@EACH
@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_guidance_has_the_closed_gradient(process, beta):
    """`r^2 / (S^2 + r^2) [(mu - m) - beta (mu_w - mu_l)]` of Gaussians of one width."""
    laws = {"first": (1.1, S), "winner": (1.3, S), "loser": (0.7, S)}
    model, line, batch = on_pairs(1.1, S, MORE, laws, process, beta=beta)
    expected = RATIO**2 / (S**2 + RATIO**2) * ((1.1 - M) - beta * 0.6)
    assert line.gradient(model.student_loss(batch)) == pytest.approx([expected, 0], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("shift", [-0.3, 0.0, 0.3])
def test_guidance_rests_where_the_teacher_holds_the_preference(shift):
    """At `m + beta (d_w - d_l)`, on the winners' side, and pulled back there from either side."""
    beta, mu = 0.5, M + 0.5 * (0.25 + 0.35) + shift
    laws = {"first": (mu, S), "winner": (mu + 0.25, S), "loser": (mu - 0.35, S)}
    model, line, batch = on_pairs(mu, S, MORE, laws, beta=beta)
    found = line.gradient(model.student_loss(batch))[0]
    assert (0 if abs(found) < 1e-9 else math.copysign(1, found)) == (math.copysign(1, shift) if shift else 0)


def test_the_std_rests_where_the_preference_is_a_direction():
    """Winners and losers of the student's own samples: their widths are equal, and cancel.

    They are narrower than the student, so the mean rests `(S^2 + r^2) / (V_w + r^2)` times further.
    """
    width, beta = S * OF_MORE["winner"][1], 0.25
    mu = M + beta * 2 * ROOT * S * (S**2 + RATIO**2) / (width**2 + RATIO**2)
    laws = {"first": (mu, S), "winner": (mu + ROOT * S, width), "loser": (mu - ROOT * S, width)}
    model, line, batch = on_pairs(mu, S, MORE, laws, beta=beta)
    assert line.gradient(model.student_loss(batch)) == pytest.approx([0, 0], abs=1e-9)


class Kindless(nn.Module):
    """A fake score that says of every kind what another one says of all samples."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x_t, t, cond):
        return self.denoiser(x_t, t, {name: value for name, value in cond.items() if name != "kind"})


@pytest.mark.parametrize("settings", [{}, {"num_steps": 3}, {"kappa": 2.0}, {"normalise": "batch"}], ids=str)
def test_guidance_without_weight_or_without_preference_is_dmd(settings):
    """Bit for bit, the gradient of every parameter."""
    found = []
    for kind, own in ((DMD, {}), (DistillationDPO, {"beta": 0.0}), (DistillationDPO, {"beta": 3.0})):
        model = kind(neural(), **settings, **own)
        wake(model.student, 1)
        fake = DMD(neural(), **settings).fake_score
        model.fake_score = wake(fake, 2) if kind is DMD else Kindless(wake(fake, 2))
        loss = at(model, 5).student_loss(BATCH)
        found.append([loss, *torch.autograd.grad(loss, list(model.student.parameters()))])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*found, strict=True))
    assert any(g.any() for g in found[0])


def spied(monkeypatch):
    """What the fake score is fitted to, in order: (samples, level, noise, conditions)."""
    fitted, plain = [], dpo_module.denoising_loss
    monkeypatch.setattr(dpo_module, "denoising_loss", lambda *a: fitted.append(a[1:]) or plain(*a))
    return fitted


SECOND = [
    ("guidance", None, "fake again", 1.0),
    ("published", None, "fake", 1.1),
    ("published", "fresh", "fake again", 1.0),
    ("guidance", 0.8, "fake", 0.8),
]


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("form, second, purpose, scale", SECOND)
def test_fake_scores_are_fitted_to_their_kinds(form, second, purpose, scale, num_steps, monkeypatch):
    """Winners, losers and, in `guidance`, first samples, each with level and noise of its own."""
    model = preferring(DistillationDPO(neural(), form=form, second=second, num_steps=num_steps), MORE, step=3)
    wake(model.student, 1), wake(model.fake_score, 2)
    fitted = spied(monkeypatch)
    model.fake_score_loss(BATCH)
    first, cond = model.rollout(BATCH, "fake")
    other, _ = model.rollout(BATCH, purpose, scale)
    ahead = (first[:, :1] >= other[:, :1]).expand_as(first)
    expected = [torch.where(ahead, first, other), torch.where(ahead, other, first), first]
    assert 0 < ahead.sum() < ahead.numel() or second == 0.8
    assert len(fitted) == len(model.kinds) == {"guidance": 3, "published": 2}[form]
    for number, (x_0, _, _, told) in enumerate(fitted):
        assert torch.equal(x_0, expected[number]) and not x_0.requires_grad
        assert told.keys() == {*cond, "kind"} and torch.equal(told["label"], BATCH["label"])
        assert set(told["kind"].tolist()) == {number}
    for what in (1, 2):  # levels and noises
        assert len({each[what].sum().item() for each in fitted}) == len(fitted)


def test_the_second_noise_of_a_pair_scales_the_first_one(monkeypatch):
    """All of it, that between the steps too; the student is told nothing of it."""
    model, asked = preferring(DistillationDPO(neural(), form="published", num_steps=2, t_init=3.0), MORE), []
    monkeypatch.setattr(model, "randint", lambda high, purpose: high - 1)
    model.student.register_forward_pre_hook(lambda module, args: asked.append(args[0]))
    model.pair(BATCH, "student")
    start, _, scaled, _ = asked
    torch.testing.assert_close(scaled, 1.1 * start)
    zero = torch.zeros_like(start)
    model.student.forward = lambda x, t, cond: zero  # then a later step starts from noise alone
    asked.clear()
    model.pair(BATCH, "student")
    torch.testing.assert_close(asked[3], 1.1 * asked[1])


@pytest.mark.parametrize(
    "rewards, first_wins", [((1.0, 1.0), True), ((1.0, 2.0), False), ((2.0, 1.0), True), ((1.0, math.nan), True)]
)
def test_the_first_wins_a_draw(rewards, first_wins):
    given = iter(rewards)
    model = preferring(DistillationDPO(neural()), lambda x, batch: torch.full((8,), next(given)))
    pair, _ = model.pair(BATCH, "fake")
    assert torch.equal(pair["winner" if first_wins else "loser"], pair["first"])
    assert not torch.equal(pair["winner"], pair["loser"])


@FORMS
@pytest.mark.parametrize("codec", [Codec(), Affine()], ids=["plain", "decoded"])
def test_the_reward_sees_decoded_samples_and_their_batch_without_gradient(form, codec):
    seen = []

    def reward(samples, batch):
        assert not samples.requires_grad and not torch.is_grad_enabled()
        seen.append((samples, batch))
        return samples.flatten(1).sum(1)

    model = preferring(DistillationDPO(neural(codec=codec), form=form), reward)
    pair, cond = model.pair(BATCH, "student")
    assert all(batch is BATCH for _, batch in seen) and len(seen) == 2 and pair["winner"].requires_grad
    assert torch.equal(seen[0][0], codec.decode(pair["first"], cond))


def test_a_reward_that_is_not_a_number_for_each_sample_is_refused():
    model = preferring(DistillationDPO(neural()), lambda x, batch: x)
    with pytest.raises(
        ValueError, match=r"^SimpleNamespace.reward must give one number for each of 8 samples, got \[8, 2\]$"
    ):
        model.fake_score_loss(BATCH)


@FORMS
@pytest.mark.parametrize("num_steps", [1, 3])
def test_only_the_role_in_turn_gets_gradient(form, num_steps):
    """Neither loss differentiates through the teacher, the fake score or the reward."""
    model = preferring(DistillationDPO(neural(), form=form, num_steps=num_steps), MORE)
    wake(model.student, 1), wake(model.fake_score, 2)
    asked = []
    for denoiser in (model.teacher.denoiser, model.fake_score):
        denoiser.register_forward_pre_hook(lambda module, args: asked.append(args[0].requires_grad))
    everyone = dict(model.named_parameters())
    for role in model.roles:
        model.zero_grad(set_to_none=True)
        model.focus(role)
        getattr(model, f"{role}_loss")(BATCH).backward()
        own = {id(p) for p in model.role_parameters(role)}
        for key, parameter in everyone.items():
            assert (parameter.grad is not None) == (id(parameter) in own), f"{key} in the turn of {role}"
        assert sum(p.grad.abs().sum() for p in model.role_parameters(role)) > 1e-6
    assert not any(asked)


@FORMS
def test_the_pair_of_a_turn_has_one_level_and_one_noise(form):
    model, asked = preferring(DistillationDPO(neural(), form=form), MORE), []
    model.teacher.denoiser.register_forward_pre_hook(lambda module, args: asked.append(args))
    model.student_loss(BATCH)
    assert len(asked) == {"guidance": 1, "published": 2}[form]
    if form == "published":
        pair, _ = model.pair(BATCH, "student")
        assert torch.equal(asked[0][1], asked[1][1])
        torch.testing.assert_close(asked[0][0] - asked[1][0], (pair["winner"] - pair["loser"]).detach())


@FORMS
@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_fake_score_alone_is_told_the_kind(form, num_steps, tmp_path):
    model = DistillationDPO(neural(), form=form, num_steps=num_steps)
    told = {"kind": {"categories": len(model.kinds)}} | ({"step": {"categories": 3}} if num_steps > 1 else {})
    assert model.fake_score.told == told and not model.student.told
    assert model.export(tmp_path / "student").is_dir()


class Untold(nn.Module):
    """A network without an embedding."""

    def forward(self, x, time, cond):
        return x


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"form": "dpo"}, "form must be guidance or published, got dpo"),
        ({"beta": -1.0}, r"beta must lie in \[0, 1000\], got -1.0"),
        ({"loser": 1.5}, r"loser must lie in \[0, 1\], got 1.5 \(above 1 every sample is pushed away"),
        ({"second": 1.0}, "second must not be 1, got 1.0"),
        ({"second": 0.0}, r"second must lie in \(0, 10\], got 0.0"),
        ({"second": "old"}, "second must be a finite number, got old"),
        ({"reuse": True}, "a pair is made for one condition, anew"),
        ({"kappa": [1.0, 2.0]}, "kappa of DistillationDPO is one number"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said) as error:
        DistillationDPO(neural(), **settings)
    assert isinstance(error.value, checks.Unfit) or "leave" in str(error.value) or "give one" in str(error.value)


def test_a_network_that_cannot_be_told_is_refused():
    teacher = Teacher(Denoiser(Untold(), VarianceExploding(), "edm", 1.0), (2,), {})
    with pytest.raises(
        ValueError, match="^Untold cannot be told the winners from the losers: say fake_score=fresh, or"
    ):
        DistillationDPO(teacher)


def test_data_without_a_reward_are_refused():
    data = SimpleNamespace(provides=frozenset({"data", "numbers"}), easier=())
    with pytest.raises(
        ValueError, match="^DistillationDPO needs reward, which Teacher and SimpleNamespace do not give;"
    ):
        DistillationDPO(neural()).require(data)


@pytest.mark.slow
def test_a_run_moves_the_mean_towards_the_reward_and_keeps_the_width(tmp_path):
    """On the plane, from the command line, between the rests of much and of little noise.

    With beta = 0.5 and unit width these are `beta 2 / sqrt(pi)` and, by `v = I_u(1/2, 3/2)`, 0.945.
    The second number follows along the regression line, 0.6 for 1.
    """
    words = ["domain=toy", "method=distillation_dpo", "model.beta=0.5", "data.batch_size=256", "trainer.max_steps=2000"]
    distil("fit", *words, *UNMEASURED, "--out", tmp_path / "run", timeout=900)
    made = load_student(tmp_path / "run").sample(20_000, {}, seed=1234)
    shift, aside = (made.mean(0) - torch.tensor([1.0, -1.0])).tolist()
    assert ROOT < shift < 0.945 and aside / shift == pytest.approx(0.6, abs=0.05)
    assert (made.std(0) / torch.tensor([1.0, 0.5]).sqrt() - 1).abs().max() < 0.05


def patched(test, *args):
    """A test that asks for `monkeypatch`, which is undone when it ends."""

    def check():
        with pytest.MonkeyPatch.context() as monkeypatch:
            test(*args, monkeypatch=monkeypatch)

    return check


closed = partial(test_guidance_has_the_closed_gradient, VarianceExploding(), 0.5)
away = partial(test_the_published_form_moves_away_from_the_winners, 0.5, 0.278, -0.170)
dmd = partial(test_guidance_without_weight_or_without_preference_is_dmd, {})
fits, fits_published = (patched(test_fake_scores_are_fitted_to_their_kinds, *row, 3) for row in SECOND[:2])
routed = partial(test_only_the_role_in_turn_gets_gradient, "published", 1)
drawn = partial(test_the_first_wins_a_draw, (1.0, 1.0), True)
seen_by_reward = partial(test_the_reward_sees_decoded_samples_and_their_batch_without_gradient, "guidance")
shared = partial(test_the_pair_of_a_turn_has_one_level_and_one_noise, "published")
STUDENT = [
    ("the winners' weight left out", "self.beta,", "1.0,", closed),
    ("winners and losers exchanged", 'winner, loser = (self.fake(kind, x_t, t, cond) for kind in ("winner", "loser"))', 'loser, winner = (self.fake(kind, x_t, t, cond) for kind in ("winner", "loser"))', closed),
    ("DMD alone", "self.fake(kind,", 'self.fake("first",', closed),
    ("the losers' weight left out", "self.loser,", "1.0,", away),
    ("the pairs exchanged", "published_loss(winner, loser,", "published_loss(loser, winner,", away),
    ("the fake score of winners for both", "self.judged(pair[kind], cond, kind)", 'self.judged(pair[kind], cond, "winner")', away),
    ("one sample for both", "self.judged(pair[kind],", 'self.judged(pair["first"],', away),
    ("the form ignored", 'self.form == "published"', "True", closed),
]  # fmt: skip
JUDGED = [
    ("the teacher in the fake score's place", "self.fake(kind, x_t, t, cond)", "real", closed),
    ("the fake score of all samples whatever the kind", "self.fake(kind, x_t, t, cond)", "self.fake(self.kinds[-1], x_t, t, cond)", away),
    ("the scores not stopped", "torch.no_grad()", "torch.enable_grad()", routed),
    ("the fake score's levels", "self.student_times", "self.fake_times", closed),
    ("the teacher not guided", "self.kappa)", "1)", partial(test_guidance_without_weight_or_without_preference_is_dmd, {"kappa": 2.0})),
]  # fmt: skip
PAIR = [
    ("the worse one wins", "rewards[1] > rewards[0]", "rewards[1] < rewards[0]", fits),
    ("the second wins a draw", "rewards[1] > rewards[0]", "rewards[1] >= rewards[0]", drawn),
    ("winner and loser alike", "torch.where(swap, first, second)", "torch.where(swap, second, first)", fits),
    ("one noise for both", "again", "", fits),
    ("two noises for a scaled pair", "else (purpose, self.second)", 'else (f"{purpose} again", self.second)', fits_published),
    ("the scale left out", "else (purpose, self.second)", "else (purpose, 1.05)", fits_published),
]  # fmt: skip
FAKE = [
    ("the student trained", "with torch.no_grad():\n", "with torch.enable_grad():\n", fits),
    ("trained on the data", "x_g = pair[kind]", 'x_g = batch["data"]', fits),
    ("one level for all", 'f"{kind} t"', '"t"', fits),
    ("one noise for all", 'f"{kind} eps"', '"eps"', fits),
    ("the kind not told", "self.told(kind,", "self.told(self.kinds[0],", fits),
]  # fmt: skip
REST = [
    (DistillationDPO.reward, "not decoded", "self.teacher.codec.decode(x_g, cond)", "x_g[..., None]", partial(seen_by_reward, Affine())),
    (DistillationDPO.pair, "with gradient", "x_g.detach()", "x_g", partial(seen_by_reward, Codec())),
]  # fmt: skip
MUTATIONS = [
    *(Mutation(says, DistillationDPO.student_loss, *rest) for says, *rest in STUDENT),
    *(Mutation(says, DistillationDPO.judged, *rest) for says, *rest in JUDGED),
    *(Mutation(says, DistillationDPO.pair, *rest) for says, *rest in PAIR),
    *(Mutation(says, DistillationDPO.fake_score_loss, *rest) for says, *rest in FAKE),
    *(Mutation(says, function, *rest) for function, says, *rest in REST),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)
