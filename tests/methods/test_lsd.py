"""LSD and LSD+: exact numbers on small token worlds, solvers on the plane, guard, folder."""

import itertools
import json
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from helpers import BATCH, distil, gaussian, neural, trainer
from torch import nn

from distillkit.cli import front
from distillkit.data import DistillData, TensorData
from distillkit.diffusion.learned import LearnedSolver, LearnedTimes
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding
from distillkit.discrete.denoiser import Mean
from distillkit.discrete.elbo import cheapest_times, step_costs
from distillkit.discrete.exact import Table, mini_countdown, potts
from distillkit.discrete.jump import jump_your_steps, split_gain
from distillkit.discrete.laws import kl, law, total_variation
from distillkit.discrete.learned import LearnedSampler, tempered
from distillkit.discrete.matching import match_powers, matching_power, regress_scales, sharpness
from distillkit.discrete.noise import fresh
from distillkit.discrete.process import Absorbing, Uniform
from distillkit.discrete.teacher import DiscreteTeacher
from distillkit.discrete.worlds import outer, positions, push, sequences
from distillkit.methods.lsd import LSD
from distillkit.methods.lsd_tokens import LSDTokens
from distillkit.spec import Recorded
from distillkit.students.base import load_student

torch.set_num_threads(1)


class World(DistillData):
    """Samples of a table; the headline is the total variation of a histogram."""

    domain = "world"

    def __init__(self, teacher: DiscreteTeacher, batch_size: int = 4096):
        super().__init__(batch_size)
        self.teacher, self.event_shape, self.classes = teacher, teacher.event_shape, {}

    def load(self):
        draw = self.teacher.denoiser.draw
        return tuple(TensorData({"data": draw(n, torch.Generator().manual_seed(n))}) for n in (4096, 64, 64))

    def build_evaluator(self, held_out):
        return Histogram(self.teacher.denoiser.probabilities)


class Histogram:
    headline, better = "tv", {"tv": "lower"}

    def __init__(self, table):
        self.table = table

    def __call__(self, samples, cond):
        counts = torch.bincount(positions(samples, self.table.shape[0]), minlength=self.table.numel())
        return {"tv": float((counts / len(samples) - self.table.flatten()).abs().sum() / 2)}

    def describe(self):
        return {}

    def floor(self, num):
        return {"tv": 0.0}


def world(table, process) -> DiscreteTeacher:
    return DiscreteTeacher(Table(table, process(table.shape[0])), (table.ndim,))


def exact(teacher, sampler) -> tuple[float, float]:
    """`(TV, KL(p_0 || q))` of a learned sampler."""
    with torch.no_grad():
        q = law(teacher.denoiser, teacher.event_shape[0], sampler.times(), sampler.steps())
    p = teacher.denoiser.probabilities
    return float(total_variation(p, q)), float(kl(p, q))


def fitted(cls, teacher, steps, **settings):
    torch.manual_seed(0)
    model = cls(teacher, **settings)
    trainer(max_steps=steps).fit(model, World(teacher))
    model.conclude()
    return model


def test_a_solution_that_is_no_number_is_skipped_and_counts_in_no_mean():
    """The optimiser for tokens skips bad steps too, and averages over the other solutions."""
    solutions = [float("nan"), 1.0, float("nan"), 4.0]

    class Told(LSDTokens):
        def distance_from_solution(self, x_0, cond):
            return (self.student.log_power - solutions[self.global_step]).square().sum() / 2

    model = fitted(Told, world(potts(3, 5, 1.5), Uniform), 4, num_steps=4, num_pairs=4096, guard=0)
    assert model.skipped() == {"student": {"skipped": 2, "steps": 4}}
    torch.testing.assert_close(model.student.log_power.data, torch.full_like(model.student.log_power, 2.5))


# Tokens: matched powers


@pytest.mark.parametrize(
    "process, num, rule, published",
    [(Uniform, 4, "tau_leap", (0.1211, 0.0507)), (Uniform, 8, "tau_leap", (0.0440, 0.0090))],
)
def test_matched_powers_in_exact_expectation(process, num, rule, published):
    """With both laws enumerated exactly, bisection gives the published numbers."""
    teacher = world(potts(3, 5, 1.5), process)
    den, times = teacher.denoiser, teacher.grid(num)
    sampler = LearnedSampler(den.process, times.tolist(), rule)
    every = sequences(den.process.num_states, den.length)
    weights = outer(den.process.prior().expand(1, den.length, -1))[0]
    with torch.no_grad():
        for k in range(num - 1):
            t, s = times[k], times[k + 1]
            g, reached = sharpness(den(every, s)), weights > 0
            reading = den(every[reached], t)

            def after(power, k=k, s=s, reading=reading, reached=reached, weights=weights):
                step = sampler.steps()[k]
                step.power = torch.tensor(power)
                return push(weights[reached], step.law(reading, s))

            target = float((den.marginal(float(s)).flatten() * g).sum())
            power = matching_power(
                lambda p, g=g, after=after: (after(p) * g).sum()[None], torch.tensor([target]), rounds=30
            )
            sampler.log_power[k] = torch.tensor(power).log() if k else 0.0  # the first does not react
            weights = after(power if k else 1.0)
    assert exact(teacher, sampler) == pytest.approx(published, abs=1e-3)


def test_training_finds_the_powers_and_improves_the_exact_law():
    """Uniform Potts, eight calls: plain KL 0.0268; exact powers 1, 2.58, 1.55 ... give 0.0087."""
    teacher = world(potts(3, 5, 1.5), Uniform)
    model = fitted(LSDTokens, teacher, 2, num_steps=8, num_pairs=8192, guard=4096)
    assert model.verdict["kept"] == "learned" and model.student.log_scale.abs().max() == 0
    powers = model.student.log_power.exp()
    assert powers[0] == 1 and 1.9 < powers[1] < 3 and 1.2 < powers[2] < 1.9
    assert exact(teacher, model.student)[1] < 0.0268 / 2


def test_under_absorbing_noise_the_teachers_states_have_the_students_masks():
    """Potts, four calls: exact powers 1, 2.23, 1.22; without shared masks a batch may give 3."""
    teacher = world(potts(3, 5, 1.5), Absorbing)
    sampler = LearnedSampler(teacher.process, teacher.grid(4).tolist())
    x_0 = teacher.denoiser.draw(32_768, torch.Generator().manual_seed(0))
    powers = match_powers(teacher.denoiser, sampler, x_0, fresh(0, 32_768, 5))
    assert powers[0] == 1 and powers[1:].tolist() == pytest.approx([2.23, 1.22], rel=0.15)


@pytest.mark.parametrize("process, plain", [(Uniform, 0.1458), pytest.param(Absorbing, 0.0668, marks=pytest.mark.slow)])
def test_learned_times_help_as_well(process, plain):
    teacher = world(potts(3, 5, 1.5), process)
    model = fitted(LSDTokens, teacher, 4, num_steps=4, learn_times=True, num_pairs=16_384)
    times = model.student.times()
    assert times[0] == 1 and (times.diff() < 0).all() and times[-1] > 0
    assert exact(teacher, model.student)[1] < plain / 3
    assert model.verdict["times"] in ("even", "squared", "bound", "jumps")


def test_on_a_hard_constraint_the_guard_has_the_last_word():
    """Powers hit their bounds where a step can break a rule; the plain sampler's law is kept."""
    teacher = world(mini_countdown(4, 4), Absorbing)
    model = fitted(LSDTokens, teacher, 6, num_steps=4)
    plain = exact(teacher, LearnedSampler(teacher.process, teacher.grid(4).tolist()))
    assert exact(teacher, model.student)[0] <= plain[0] + 0.02


def test_a_sampler_that_is_sharper_than_its_data_does_not_win():
    """The best headline loses if its entropy is off by a tenth more than the plain sampler's."""

    class Data:
        @staticmethod
        def evaluator(device):
            return SimpleNamespace(
                headline="tv",
                better={"tv": "lower", "entropy": "target", "volume": "target"},
                floor=lambda num: {"tv": 0.0, "entropy": 2.0, "volume": 1.0},  # samples have no volume
            )

    model = LSDTokens(world(potts(3, 3, 1.5), Absorbing), num_steps=3)
    model._trainer = SimpleNamespace(datamodule=Data)
    measured = {
        "plain": {"tv": 0.3, "entropy": 2.1},
        "learned": {"tv": 0.2, "entropy": 2.25},
        "sharp": {"tv": 0.1, "entropy": 1.6},
        "broken": {"tv": float("nan"), "entropy": 2.0},
    }
    assert model.best_of(measured, "plain") == "learned" and model.best_of(measured, "plain", margin=0.4) == "plain"
    measured["learned"]["entropy"] = 2.35
    assert model.best_of(measured, "plain") == "plain"
    measured["plain"] = {"tv": float("inf")}  # whose samples are no numbers
    assert model.best_of(measured, "plain") == "sharp"


# Tokens: the paper's regression


def regressed(table, num, batch, couple, ratio=16, rounds=4):
    """Closed-form scales, `rounds` times: the states of later steps depend on earlier scales."""
    teacher = world(table, Absorbing)
    sampler = LearnedSampler(teacher.process, teacher.grid(num).tolist())
    for i in range(rounds):
        noises = [fresh(10 * i + j, batch, table.ndim) for j in range(2)]
        scales = regress_scales(teacher.denoiser, sampler, ratio, *noises, couple)
        sampler.log_scale.data = scales.log().float()
    return teacher, sampler, scales


def test_the_regression_calls_the_model_up_to_the_last_learned_step_and_no_further():
    model, calls, ratio = Table(potts(3, 4, 1.5), Absorbing(3)), [], 4
    model.register_forward_hook(lambda *given: calls.append(given))
    sampler = LearnedSampler(model.process, model.process.grid(5).tolist())
    regress_scales(model, sampler, ratio, fresh(0, 8, 4), fresh(1, 8, 4), True)
    assert len(calls) == (3 * ratio + 1) + 4  # of the teacher and of the student


def test_the_paper_s_regression_shrinks_the_scales_and_harms():
    """Independent runs attenuate: published Phi 1, 0.6006, 0.3634; TV 0.1543 becomes 0.1853."""
    teacher, sampler, scales = regressed(potts(3, 5, 1.5), 4, 3000, couple=False, ratio=8, rounds=3)
    assert scales.tolist() == pytest.approx([1, 0.6006, 0.3634], abs=0.03)
    sampler.log_scale.data = torch.tensor([1, 0.6006, 0.3634]).log()
    assert exact(teacher, sampler) == pytest.approx((0.185335, 0.100415), abs=1e-4)


def test_shared_hitting_times_remove_the_harm():
    teacher, sampler, scales = regressed(potts(3, 5, 1.5), 8, 2000, couple=True, ratio=4, rounds=2)
    assert scales.tolist() == pytest.approx([1, 0.996, 0.993, 0.989, 0.985, 0.978, 0.966], abs=0.02)


@cache
def harmed() -> LSDTokens:
    """A sampler that the regression has made worse, after its verdict; tests only look at it."""
    settings = {"num_steps": 4, "objective": "score_l2", "couple": False, "ratio": 8}
    return fitted(LSDTokens, world(mini_countdown(4, 4), Absorbing), 3, **settings)


def test_what_regression_makes_worse_the_guard_puts_back():
    model = harmed()
    assert model.verdict["kept"] == "plain" and model.verdict["plain"] < model.verdict["learned"]
    assert all((p == 0).all() for p in model.product().sampler.parameters())
    assert any((p != 0).any() for p in model.student.parameters())  # what is trained stays, for a run that goes on


def test_the_verdict_is_in_the_checkpoint_and_falls_when_training_goes_on():
    """A run that died before its verdict, in it or after it exports the same."""
    model = harmed()
    saved = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(saved)
    again = LSDTokens(model.teacher, num_steps=4, objective="score_l2", couple=False, ratio=8)
    again.load_state_dict(saved["state_dict"])
    again.on_load_checkpoint(saved)
    assert again.verdict == model.verdict and not again.conclude()
    assert all((p == 0).all() for p in again.product().sampler.parameters())
    again.on_train_start()
    assert again.product().sampler is again.best_student
    again._trainer = model.trainer
    assert again.conclude() and again.verdict == model.verdict


# Tokens: pieces


@pytest.mark.parametrize("process, rule", [(Absorbing, "tweedie"), (Absorbing, "euler"), (Uniform, "tau_leap")])
def test_an_untrained_sampler_is_the_plain_one_bit_for_bit(process, rule):
    teacher = world(potts(3, 5, 1.5), process)
    sampler = LearnedSampler(teacher.process, teacher.grid(5).tolist(), rule)
    plain = teacher.generate(200, {}, 1, rule, teacher.grid(5))
    assert torch.equal(teacher.generate(200, {}, 1, sampler), plain)


def test_a_power_leaves_the_rate_of_unmasking():
    teacher = world(potts(3, 5, 1.5), Absorbing)
    x = sequences(4, 5)
    before = teacher.denoiser(x, torch.tensor(0.5)).log_score()
    after = tempered(teacher.process, before, x, torch.tensor(2.0), torch.tensor(3.0))
    legal = teacher.process.jumps(x, before.dtype) > 0
    rates = [torch.where(legal, s.exp(), 0).sum(-1) for s in (before, after)]
    torch.testing.assert_close(rates[1], 3 * rates[0])
    masked = x[:, 0] == 3
    probabilities = before[masked, 0, :3].softmax(-1) ** 2
    torch.testing.assert_close(after[masked, 0, :3].softmax(-1), probabilities / probabilities.sum(-1, keepdim=True))


def test_bisection_finds_a_root_keeps_to_its_bounds_and_leaves_what_does_not_react():
    linear = lambda power: torch.full((4,), power)  # noqa: E731
    assert matching_power(linear, torch.full((4,), 1.7)) == pytest.approx(1.7, rel=5e-3)
    assert matching_power(lambda power: -linear(power), torch.full((4,), -1.7)) == pytest.approx(1.7, rel=5e-3)
    assert [matching_power(linear, torch.full((4,), end)) for end in (9.0, 0.1)] == [3.0, 0.5]
    assert matching_power(lambda power: torch.arange(4.0), torch.ones(4)) == 1.0
    assert matching_power(linear, torch.tensor([-3.0, 1.5, 1.5, 5.0])) == 1.0  # 1 is no worse than chance would make it


def test_a_tokens_run_resumes_bit_equal(tmp_path):
    teacher = world(potts(3, 3, 1.5), Uniform)
    settings = {"num_steps": 4, "num_pairs": 512, "guard": 0, "learn_times": True}
    data = World(teacher, batch_size=512)
    torch.manual_seed(0)
    whole, first, again = (LSDTokens(teacher, **settings) for _ in range(3))
    trainer(max_steps=5).fit(whole, data)
    run = trainer(max_steps=2)
    run.fit(first, data)
    run.save_checkpoint(tmp_path / "cut.ckpt")
    trainer(max_steps=5).fit(again, data, ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    for name, parameter in whole.student.named_parameters():
        assert torch.equal(parameter, dict(again.student.named_parameters())[name]), name


# Times


def test_one_call_costs_the_entropy_of_the_marginals():
    """From all masks to clean tokens in one step: minus the log of each token's marginal."""
    teacher = world(potts(3, 4, 1.5), Absorbing)
    x_0 = teacher.clean_samples(64, {}, 0)
    noise = fresh(0, 64, 4)(0)
    costs = step_costs(teacher.denoiser, x_0, torch.tensor([1.0, 0.5], dtype=torch.float64), noise)
    assert costs[0, 2].item() == pytest.approx(4 * torch.tensor(3.0).log().item(), rel=1e-6)  # marginals are even
    assert costs[0, 1] > 0 and costs[1, 2] > 0 and costs[0, 0].isinf() and costs[1, 1].isinf()


@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_dynamic_programming_finds_what_enumeration_finds(num):
    """The last step's cost included, which one set of costs alone may not need."""
    times = torch.linspace(1, 0.1, 7, dtype=torch.float64)
    paths = [(0, *middle, 7) for middle in itertools.combinations(range(1, 7), num - 1)]
    for seed in range(20):
        costs = torch.rand(7, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        costs = torch.where(torch.arange(8) > torch.arange(7)[:, None], costs, torch.inf)
        best = min(paths, key=lambda path: sum(float(costs[a, b]) for a, b in itertools.pairwise(path)))
        assert torch.equal(cheapest_times(costs, times, num), times[list(best[:-1])])


def test_jump_your_steps_splits_where_the_gain_is_largest():
    teacher = world(mini_countdown(4, 4), Absorbing)
    x_0, noise = teacher.clean_samples(64, {}, 0), fresh(0, 64, 4)(0)
    times = jump_your_steps(teacher.denoiser, x_0, 6, noise)
    assert len(times) == 6 and times[0] == 1 and (times.diff() < 0).all() and times[-1] > 0
    middle = jump_your_steps(teacher.denoiser, x_0, 2, noise)[1].item()
    gains = {m: split_gain(teacher.denoiser, x_0, 1.0, m, 0.0, noise) for m in (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)}
    assert split_gain(teacher.denoiser, x_0, 1.0, middle, 0.0, noise) >= max(gains.values()) - 0.05


@pytest.mark.parametrize("t_min, times", [(0.0, [1.0, 0.6, 0.2, 0.05]), (0.002, [80.0, 9.0, 1.0, 0.1])])
def test_learned_times_start_where_they_are_told_and_always_fall(t_min, times):
    made = LearnedTimes(times, t_min, learn=True)
    assert made().tolist() == pytest.approx(times, rel=1e-6)
    other = torch.tensor([times[0], *(0.7 * t for t in times[1:])], dtype=torch.float64)
    made.move_to(other)
    assert made().tolist() == pytest.approx(other.tolist(), rel=1e-5)
    made.shrink.data = torch.tensor([9.0, -9.0, 5.0])
    assert (made().diff() < 0).all() and made()[-1] > t_min
    with pytest.raises(ValueError, match="must fall"):
        LearnedTimes([1.0, 1.0], 0.0, learn=True)


# Continuous teachers


@pytest.mark.parametrize("process", [VarianceExploding(), RectifiedFlow()])
def test_a_learned_solver_starts_as_ddim_and_contains_dpm_solver(process):
    teacher = gaussian(1.0, 0.5, process)
    times, z = process.grid(5)[:-1], torch.randn(16, 1, generator=torch.Generator().manual_seed(0)).double()
    solver = LearnedSolver(process, times.tolist())
    assert torch.equal(teacher.sample(z, {}, solver=solver), teacher.sample(z, {}, solver="ddim", times=times))
    lam = -process.ratio(times).log()
    for k in range(1, 3):
        r = ((lam[k + 1] - lam[k]) / (2 * (lam[k] - lam[k - 1]))).float()
        solver.change.data[k, k - 1 : k + 1] = torch.stack([-r, r])
    expected = teacher.sample(z, {}, solver="dpm_solver", times=times)
    torch.testing.assert_close(teacher.sample(z, {}, solver=solver), expected, rtol=1e-4, atol=1e-5)


def test_a_solver_reaches_its_teacher_s_samples(tmp_path):
    """One dimension, three calls: DDIM's spread is far off, the learned solver's is exact."""
    from domains.toy.data import ToyData

    teacher = gaussian(1.0, 0.5)
    torch.manual_seed(0)
    model = LSD(teacher, num_steps=3, learn_times=True, num_pairs=256, schedule="cosine", ema_halflife=0)
    trainer(max_steps=300).fit(model, ToyData(teacher, 512, batch_size=64))
    plain = teacher.generate(4096, {}, 5, "ddim", teacher.grid(4)[:-1])
    assert abs(plain.std() / 0.5 - 1) > 0.3
    assert abs(model.sample({}, 4096, 5).std() / 0.5 - 1) < 0.03
    assert model.conclude() and model.verdict["kept"] == "learned"
    student, noise = model.product(), teacher.noise(10, {}, 5)
    assert torch.equal(student(noise), student.sample(10, seed=5))


def test_where_the_best_solver_draws_noise_the_samples_are_those_of_ddim():
    """Samples that their noise does not decide would teach the solver their mean."""
    teacher = gaussian(1.0, 0.5)
    teacher.best = {"solver": "ancestral", "steps": 9}
    model = LSD(teacher, num_steps=3, num_pairs=32)
    model.pairs.make(TensorData(BATCH), seed=0)
    noise, sample, _ = model.pairs.draw(torch.arange(32))
    torch.testing.assert_close(sample, teacher.sample(noise, {}, steps=9, solver="ddim"))


def test_the_guard_puts_back_what_has_diverged(tmp_path):
    from domains.toy.data import ToyData

    teacher = gaussian(1.0, 0.5)
    torch.manual_seed(0)
    model = LSD(teacher, num_steps=3, num_pairs=64, guard=200, ema_halflife=0)
    trainer(max_steps=1).fit(model, ToyData(teacher, 512, batch_size=64))
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.fill_(torch.nan)
    assert model.conclude() and model.verdict["kept"] == "plain" and model.verdict["learned"] == float("inf")
    assert model.product().sample(20).isfinite().all()


def test_one_step_has_nothing_to_learn():
    with pytest.raises(ValueError, match="at least 2 steps"):
        LSD(gaussian(0.0, 1.0), num_steps=1)


# The pairs


class Labelled(Recorded, nn.Module):
    """Logits of tokens that depend on the class alone."""

    def __init__(self):
        super().__init__()
        self.label = nn.Embedding(3, 4)

    def forward(self, x_t, t, cond):
        return self.label(cond["label"])[:, None].expand(*x_t.shape, -1)


class Parted(DistillData):
    """Training samples are of class 0, held-out ones of class 1."""

    classes, media = {"label": 2}, None

    def __init__(self, teacher):
        super().__init__(batch_size=8)
        self.event_shape = teacher.event_shape

    def load(self):
        data = torch.zeros(48, *self.event_shape, dtype=torch.long)
        train, held_out = (TensorData({"data": data, "label": torch.full((48,), label)}) for label in (0, 1))
        return train, held_out, held_out

    def build_evaluator(self, held_out):
        return None


@pytest.mark.parametrize("method", [LSD, LSDTokens])
def test_pairs_are_of_the_run_s_seed_and_of_the_training_data_s_conditions(method):
    torch.manual_seed(3)
    teacher = neural() if method is LSD else DiscreteTeacher(Mean(Labelled(), Absorbing(3)), (5,), {"label": 2})
    torch.manual_seed(3)
    model = method(teacher, num_steps=2, num_pairs=30, guard=0)
    assert model.seed == 3
    trainer(max_steps=1).fit(model, Parted(teacher))
    _, samples, cond = model.pairs.draw(torch.arange(30))
    assert cond["label"].tolist() == [0] * 30
    assert torch.equal(samples, teacher.generate(30, cond, 3))
    assert not torch.equal(samples, teacher.generate(30, cond, 0))


def test_each_kind_refuses_the_other_s_teacher_by_its_name():
    with pytest.raises(ValueError, match=r"distillkit.methods.lsd_tokens.LSDTokens, LSD takes no DiscreteTeacher"):
        LSD(world(potts(3, 3, 1.5), Absorbing))


@pytest.mark.parametrize("word", ["objective=mean_match", "rule=tweedie", "couple=true", "ratio=16", "fine=64"])
def test_the_settings_for_tokens_are_told_apart(word, capsys, tmp_path):
    """Runs of earlier versions have recorded all of them, whatever their world."""
    assert front.main(["fit", "domain=toy", "method=lsd", f"model.{word}", "--out", str(tmp_path / "run")]) == 2
    said = "any more: objective, rule, couple, ratio and fine are of LSDTokens alone"
    assert capsys.readouterr().err == f"error: no key model.{word.partition('=')[0]} {said}\n"


@pytest.mark.parametrize(
    "word", ["student.lr=1e-3", "ema_halflife=5", "schedule=linear", "warmup=3", "optimizer=adamw8bit"]
)
def test_of_tokens_settings_of_an_optimiser_are_refused_where_they_would_change_nothing(word, capsys, tmp_path):
    assert front.main(["fit", "domain=discrete", "method=lsd", f"model.{word}", "--out", str(tmp_path / "run")]) == 2
    assert f"error: no key model.{word.partition('=')[0]} any more: of tokens " in capsys.readouterr().err


# The folder


def test_a_folder_holds_the_numbers_and_brings_its_teacher(tmp_path):
    teacher = world(potts(3, 5, 1.5), Uniform)
    model = fitted(LSDTokens, teacher, 3, num_steps=4, num_pairs=256, guard=0)
    model.export(tmp_path / "student", domain="world")
    student = load_student(tmp_path / "student")
    assert torch.equal(student.sample(100, seed=3), model.sample({}, 100, 3))
    assert student.num_steps == 4 and student.config["powers"] == model.student.log_power.exp().tolist()
    assert sum(file.stat().st_size for file in (tmp_path / "student").glob("*.safetensors")) < 1000
    assert torch.equal(student.sample(40, seed=3, batch_size=16), student.sample(40, seed=3))
    other = world(potts(3, 5, 1.4), Uniform)
    with pytest.raises(ValueError, match="another hash"):
        load_student(tmp_path / "student", teacher=other)
    assert torch.equal(load_student(tmp_path / "student", teacher=teacher).sample(5), student.sample(5))


def test_a_teacher_that_is_gone_is_asked_for(tmp_path):
    from distillkit.files import read_yaml, write_yaml

    model = fitted(LSDTokens, world(potts(3, 3, 1.5), Uniform), 1, num_steps=3, num_pairs=64, guard=0)
    model.export(tmp_path)
    config = read_yaml(tmp_path / "student.yaml")
    config["teacher"] |= {
        "class_path": "distillkit.discrete.teacher.DiscreteFolderTeacher",
        "init_args": {"path": str(tmp_path / "gone")},
    }
    write_yaml(tmp_path / "student.yaml", config)
    with pytest.raises(ValueError, match="pass it as load_student"):
        load_student(tmp_path)
    assert load_student(tmp_path, teacher=model.teacher).sample(3).shape == (3, 3)


def test_a_sampler_is_not_exported(tmp_path):
    from distillkit.cli.exports import export
    from distillkit.errors import UsageError

    fitted(LSDTokens, world(potts(3, 3, 1.5), Uniform), 1, num_steps=3, num_pairs=64, guard=0).export(tmp_path / "s")
    with pytest.raises(UsageError, match="cannot be exported"):
        export([str(tmp_path / "s")])


@pytest.mark.slow
def test_the_command_line_samples_and_evaluates_a_sampler(tmp_path):
    run = tmp_path / "run"
    fit = ["fit", "domain=toy", "method=lsd_plus", "trainer.max_steps=5", "model.num_pairs=64", "data.num_samples=1000"]
    commands = [
        [*fit, "vars.callbacks.finish.num_samples=100", "--out", str(run)],
        ["sample", str(run), "-n", "10"],
        ["evaluate", str(run), "--num-samples", "100"],
    ]
    for command in commands:
        distil(*command)
    assert (run / "samples-0" / "samples.npz").is_file() and (run / "student" / "README.md").is_file()
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    assert [row.get("network_passes") for row in rows[:3]] == [6, 79, 6]
    assert {row["solver"] for row in rows[2]["tried"]} == {"ddim", "euler", "dpm_solver"}


def test_guidance_of_a_teacher_without_a_null_class_is_refused():
    assert LSD.needs({"kappa": 3.0}) == {"classes", "denoiser"} and LSD.needs({}) == {"denoiser"}
    assert LSDTokens.needs({"kappa": 3.0}) == {"classes", "log_probs"}
    with pytest.raises(ValueError, match="kappa=3.0 has nothing to guide"):
        LSD(gaussian(0.4, 0.8), kappa=3.0)
