"""What is measured at validations, on laws whose answers are known, and what it means."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import neural

from distillkit.data import TensorData
from distillkit.methods.dmd import DMD
from distillkit.watch import during
from distillkit.watch.during import (
    APART,
    AWAY,
    BANDS,
    FALLEN,
    FROZEN,
    LAGS,
    MOVED,
    NARROW,
    OFF,
    RUINED,
    SKIPPED,
    STRAYED,
    WIDE,
    WORSE,
    begin,
    centred,
    classes,
    compare,
    diagnose,
    distance,
    fake_errors,
    lasting,
    measure,
    varied,
)
from distillkit.watch.reference import Reference as Whole
from distillkit.watch.reference import evenly

METHOD = SimpleNamespace(roles={"fake_score": (), "student": ()}, proof={"gaussian": {}})
LAWLESS = SimpleNamespace(roles={"student": ()}, proof={})


def unit(num=20_000, dims=3, seed=0):
    """Samples with mean zero and deviation one, exactly."""
    x = torch.randn(num, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x -= x.mean(0)
    return x / x.var(0, unbiased=False).mean().sqrt()


def test_spread_shift_and_share_beyond_the_range_are_those_of_the_laws():
    target = 2 * unit() + 5
    facts = compare(3 * unit(seed=1) + torch.tensor([6.0, 5.0, 5.0]), target)
    assert facts["spread"] == pytest.approx(1.5)
    assert facts["shift"] == pytest.approx(math.sqrt(1 / 3) / 2, abs=1e-3)
    assert facts.keys() == {"spread", "shift", "beyond"}
    line = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]  # the room beyond it is 0.05
    for moved, share in ((0.0, 0), (0.045, 0), (0.055, 1), (-0.055, 1), (-0.045, 0)):
        assert compare(line + moved, line)["beyond"] == pytest.approx(share / 101)


def test_held_out_samples_are_taken_evenly_apart():
    """Files of a folder are sorted by class: the first ones would be of one alone."""
    assert evenly(4, 10).tolist() == [0, 2, 5, 7] and evenly(5, 5).tolist() == [*range(5)]
    known = TensorData({"data": torch.arange(600.0)[:, None].expand(-1, 256), "label": torch.arange(600) // 60})
    data = SimpleNamespace(event_shape=(256,), val=known)
    model = SimpleNamespace(device="cpu", condition=lambda batch: {"label": batch["label"]}, training=False)
    model.eval, model.train, model.shown = lambda: None, lambda training: None, lambda batch: batch
    model.sample = lambda cond, num, seed: torch.zeros(num, 256)
    reference = Whole(model, data)
    assert reference.num == 16 and reference.cond["label"].unique().tolist() == [*range(10)]
    assert torch.equal(reference.real[:, 0] // 60, reference.cond["label"])


def test_chance_alone_is_no_shift():
    """Means of 16 samples of one law are sqrt(2 / 16) deviations apart."""
    one, other = (torch.randn(16, 1000, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    raw = float((one.mean(0) - other.mean(0)).square().mean().sqrt())
    assert raw == pytest.approx(math.sqrt(2 / 16), rel=0.05)
    assert compare(one, other)["shift"] < raw / 3
    assert compare(one + 1, other)["shift"] == pytest.approx(1, rel=0.05)


def test_the_chance_of_a_shift_is_that_of_both_laws():
    """Samples that are all alike have none of their own; means of the target are 1/4 and -1/4."""
    column = torch.tensor([1.0] * 10 + [-1.0] * 6)
    other = torch.stack([column, -column], 1)
    expected = math.sqrt(0.5**2 + 0.25**2 - (1 - 0.25**2) / 16) / math.sqrt(1 - 0.25**2)
    assert compare(torch.full((16, 2), 0.5), other)["shift"] == pytest.approx(expected)


def test_within_is_told_where_half_of_the_samples_have_company():
    x = unit(6, 2)
    for label, told in (([0, 0, 1, 1, 2, 3], True), ([0, 0, 0, 1, 2, 3], True), ([0, 0, 1, 2, 3, 4], False)):
        assert ("within" in compare(x, x, {"label": torch.tensor(label)})) == told


def test_within_is_the_spread_about_the_means_of_classes():
    noise, label = unit(1000, 2), torch.arange(1000) % 4
    places = 10 * torch.eye(4, 2, dtype=torch.float64)[label]
    wide, narrow = places + noise, places + noise / 5
    assert compare(narrow, wide, {"label": label})["within"] == pytest.approx(0.2)
    assert compare(narrow, wide, {"label": label})["spread"] > 0.9
    assert "within" not in compare(narrow, wide, {"label": torch.arange(1000)})  # alone in their classes
    assert "within" not in compare(narrow, wide, {"camera": torch.rand(1000)})
    assert "within" not in compare(narrow, places, {"label": label})  # nothing to be within


def test_classes_are_those_of_all_conditions_together():
    cond = {"a": torch.tensor([0, 0, 1, 1]), "b": torch.tensor([0, 1, 0, 0]), "kappa": torch.rand(4)}
    groups = classes(cond)
    assert groups[2] == groups[3] and len(groups.unique()) == 3 and classes({"kappa": torch.rand(4)}) is None
    left = centred(torch.tensor([[1.0], [2.0], [5.0], [7.0]]), groups)
    assert left.tolist() == [[-1.0], [1.0]]  # those alone are left out


def test_tokens_are_compared_by_their_frequencies():
    uniform = torch.cartesian_prod(torch.arange(4), torch.arange(4))  # all sixteen pairs
    assert compare(uniform, uniform) == {"spread": pytest.approx(1), "shift": 0}
    alike = torch.zeros(16, 2, dtype=torch.int64)
    assert compare(alike, uniform) == {"spread": pytest.approx(1 / 16), "shift": pytest.approx(0.75)}
    assert compare(uniform[:8], uniform)["spread"] == pytest.approx(0.5)
    assert compare(uniform + 4, uniform)["shift"] == 1  # tokens that the target has not


def test_distances_are_in_deviations_of_the_target():
    target = 4 * unit()
    assert distance(target + 2, target, target) == pytest.approx(0.5)
    tokens = torch.tensor([[1, 2], [3, 4]])
    assert distance(tokens, torch.tensor([[1, 0], [3, 4]]), tokens) == 0.25


class Reference(SimpleNamespace):
    """As much of a reference as `fake_errors` asks for."""


def scored(**settings):
    """A method whose fake score is the teacher, and what it is asked about."""
    return DMD(neural(), **settings), Reference(batch={"data": torch.zeros(64, 2), "label": torch.arange(64) % 2})


def test_a_fake_score_that_is_the_teacher_errs_as_the_teacher():
    for steps in (1, 3):
        facts = fake_errors(*scored(num_steps=steps, times=None))
        assert [facts[f"fake_{band}"] for band in BANDS] == pytest.approx([1.0] * 3) and facts["lag"] == pytest.approx(
            1
        )


def test_errors_of_the_fake_score_are_measured_in_thirds_of_its_levels():
    """One that answers zero errs by the samples themselves, at every level."""
    model, reference = scored()
    x_0 = model.rollout(reference.batch, "watch", step=0)[0].detach()
    seen = []

    class Nought(torch.nn.Module):
        told: dict = {}

        def forward(self, x_t, t, cond):
            seen.append(t)
            return torch.zeros_like(x_t)

    true, denoise = [], model.teacher.denoiser
    denoise.register_forward_hook(lambda module, inputs, x: true.append(float((x - x_0).square().mean())))
    model.fake_score = Nought()
    facts = fake_errors(model, reference)
    for error, band in zip(true, BANDS, strict=True):
        assert facts[f"fake_{band}"] == pytest.approx(float(x_0.square().mean()) / error, rel=1e-5)
    assert facts["lag"] == max(facts[f"fake_{band}"] for band in BANDS)
    assert len(seen) == 3 and all(low.max() < high.min() for low, high in zip(seen, seen[1:], strict=False))
    u = (torch.arange(192) + 0.5) / 192  # the middles of as many parts as there are samples in all bands
    assert torch.allclose(torch.cat(seen), model.fake_times(u, model.teacher.process, None), rtol=1e-5)
    ratios = model.teacher.process.ratio(torch.cat(seen))
    assert (facts["noise_from"], facts["noise_to"]) == pytest.approx((float(ratios.min()), float(ratios.max())))


def test_the_fake_score_is_asked_about_samples_of_the_last_step(monkeypatch):
    model, reference = scored(num_steps=3, times=None)
    asked, own = [], model.rollout
    monkeypatch.setattr(model, "rollout", lambda *args, step: asked.append(step) or own(*args, step=step))
    assert fake_errors(model, reference) and asked == [2]
    monkeypatch.setattr(model.fake_score, "told", {"jump": None})
    assert fake_errors(model, reference) == {}  # samples do not say it


def test_what_is_measured_of_a_run():
    """Distances are in deviations of the target, shares those of the role's own steps."""
    target = 2 * unit()
    reference = SimpleNamespace(target=target, first=target - 1, cond={}, samples=lambda model: target + 1)
    reference.raw = lambda model: target + 4
    model = SimpleNamespace(roles={"fake_score": (), "student": ()}, bad_steps=torch.tensor([[1, 3], [0, 1]]))
    model.updates_before, model.global_step = lambda role, step: {"fake_score": 8, "student": 2}[role], 10
    model.ema, model.done = object(), 0.25
    facts, samples = measure(model, reference)
    assert torch.equal(samples, target + 1)
    assert facts == pytest.approx(
        compare(target + 1, target)
        | {"moved": 1, "raw": 1.5, "skipped_fake_score": 3 / 8, "skipped_student": 0.5, "done": 0.25}
    )
    assert begin(reference) == compare(target - 1, target) | {"done": 0}
    model.ema = None
    for reference.target in (None, torch.zeros(4, 3), torch.linspace(-1, 1, 3).expand(4, 3)):  # one sample repeated
        assert measure(model, reference)[0].keys() == {"skipped_fake_score", "skipped_student", "done"}
        assert begin(reference) == {"done": 0}
    assert varied(torch.tensor([[1.0], [1.001]])) and varied(torch.tensor([[0], [0]]))


# The diagnosis: each cause just inside its bounds, and each near miss


def facts(done=1.0, fake=0.9, **more):
    own = {f"fake_{band}": fake for band in BANDS}
    healthy = {"spread": 1.0, "shift": 0.0, "beyond": 0.0, "moved": 1.0, "raw": 0.1}
    own |= {"noise_from": 0.0123, "noise_to": 79.6}
    return healthy | own | {"skipped_fake_score": 0.0, "skipped_student": 0.0, "done": done} | more


def plain(**more):
    """Facts of a method without a fake score."""
    return {name: value for name, value in facts(**more).items() if not name.startswith(("fake_", "noise_"))}


def names(*history, model=METHOD):
    return [finding.name for finding in diagnose([*history], model)]


EPS, START = 1e-6, {"spread": 0.3, "shift": 0.0, "done": 0.0}
CASES = {
    "healthy": ([facts()], []),
    "no fake score": ([{"spread": 1.0, "moved": 1.0, "skipped_student": 0.0, "done": 1.0}], []),
    "lag, narrow": ([facts(fake=LAGS + EPS, spread=NARROW - EPS)], ["lagging_fake_score"]),
    "lag, wide": ([facts(fake=1.0, spread=WIDE + EPS)], ["lagging_fake_score"]),
    "lag, off": ([facts(fake=1.0, shift=OFF + EPS)], ["lagging_fake_score"]),
    "lag, collapsed": ([facts(spread=1.0, done=0.5), facts(fake=1.0, spread=0.1)], ["lagging_fake_score"]),
    "fake score follows": ([facts(fake=LAGS - EPS, shift=0.9)], []),
    "both alike": ([facts(fake=1.0, spread=NARROW + EPS, shift=OFF - EPS)], []),
    "both alike, wider": ([facts(fake=1.0, spread=WIDE - EPS)], []),
    "lag, narrow within classes": ([facts(fake=1.0, within=NARROW - EPS)], ["lagging_fake_score"]),
    "both alike, within classes too": ([facts(fake=1.0, within=NARROW + EPS)], []),
    "fake score follows classes": ([facts(fake=LAGS - EPS, within=0.1)], []),
    "one level known": ([facts(fake=1.0, shift=0.9, fake_high=LAGS - EPS)], []),
    "one level worse than the teacher": ([facts(fake=1.0, shift=0.9, fake_high=WORSE + EPS)], ["high_rate"]),
    "lag, moved": ([facts(fake=1.0, shift=0.9, moved=MOVED + EPS)], ["lagging_fake_score"]),
    "not yet moved": ([facts(fake=1.0, shift=0.9, moved=MOVED)], []),
    "lag, at first": ([facts(done=0.1, fake=1.0, shift=0.9)], []),
    "lag, twice": (
        [facts(done=0.1, fake=1.0, shift=0.9), facts(done=0.2, fake=1.0, shift=0.9)],
        ["lagging_fake_score"],
    ),
    "lag, over": ([facts(done=0.1, fake=1.0, shift=0.9), facts(done=0.2)], []),
    "fake score runs away": ([facts(fake=WORSE + EPS)], ["high_rate"]),
    "fake score is ruined": ([facts(done=0.1, fake=RUINED + EPS)], ["high_rate"]),
    "fake score errs for once": ([facts(done=0.1, fake=RUINED - EPS)], []),
    "fake score is ruined at two levels": ([facts(done=0.1, fake=99.0, fake_low=RUINED - EPS)], []),
    "fake score errs a little": ([facts(fake=WORSE - EPS)], []),
    "fake score errs at one level": ([facts(fake_high=99.0)], []),
    "fake score errs at one level, on odd samples": ([facts(fake_high=WORSE, shift=OFF + EPS)], ["high_rate"]),
    "the same, on narrow ones": ([facts(fake_high=WORSE, spread=NARROW)], ["high_rate"]),
    "the same, at first": ([facts(done=0.1, fake_high=WORSE, shift=0.9)], []),
    "the same, of a student that has not moved": ([facts(fake_high=99.0, shift=0.9, moved=MOVED)], []),
    "it errs a little at one level, on odd samples": ([facts(fake_high=WORSE - EPS, shift=0.9)], []),
    "student runs away": ([facts(done=0.1, raw=APART + EPS)], ["high_rate"]),
    "student swings": ([facts(raw=APART - EPS)], []),
    "student runs away from a blind judge": ([facts(raw=2.0, fake=1.0, shift=0.9)], ["lagging_fake_score"]),
    "student strays": ([START, facts(shift=AWAY + EPS)], ["high_rate"]),
    "student strays, at first": ([START, facts(done=0.1, shift=9.0)], []),
    "student off a little": ([START, facts(shift=AWAY - EPS)], []),
    "student comes from afar": ([{"shift": 3.0, "done": 0.0}, facts(shift=2.9)], []),
    "student goes further": ([{"shift": 3.0, "done": 0.0}, facts(shift=3.1)], ["high_rate"]),
    "student strays under a blind judge": ([START, facts(shift=9.0, fake=1.0)], ["lagging_fake_score"]),
    "average stands still": ([facts(raw=0.4, moved=0.4 / FROZEN - EPS)], ["long_ema"]),
    "average stands still, early": ([facts(done=0.49, raw=0.4, moved=0.01)], []),
    "average stands still, at half": ([facts(done=0.5, raw=0.4, moved=0.01)], ["long_ema"]),
    "average follows": ([facts(raw=0.4, moved=0.4 / FROZEN + EPS)], []),
    "skipped": ([facts(skipped_student=SKIPPED + EPS)], ["diverged_role"]),
    "skipped, for the student runs away": ([facts(raw=2.0, skipped_fake_score=0.5)], ["high_rate"]),
    "skipped, for it ran away": ([facts(raw=2.0, done=0.5), facts(skipped_fake_score=0.5)], []),
    "few skipped": ([facts(skipped_student=SKIPPED)], []),
    "no numbers": ([facts(spread=math.nan)], ["diverged_role"]),
    "collapse": ([facts(spread=1.0, done=0.5), facts(spread=FALLEN - EPS)], ["high_rate"]),
    "collapse by degrees": ([facts(spread=x) for x in (1.0, 0.55, FALLEN - EPS)], ["high_rate"]),
    "collapse within classes": ([facts(within=1.0, done=0.5), facts(within=FALLEN - EPS)], ["high_rate"]),
    "narrow": ([facts(spread=2.0, done=0.5), facts(spread=FALLEN)], []),
    "narrow from the start": ([{"spread": 0.3, "done": 0.0}, facts(spread=0.2)], []),
    "narrow from a wide start": ([{"spread": 3.0, "done": 0.0}, facts(spread=0.6)], []),
    "strayed": ([START, plain(spread=0.29, shift=STRAYED + EPS)], ["high_rate"]),
    "strayed, wide": ([START, plain(spread=1 / 0.29, shift=STRAYED + EPS)], ["high_rate"]),
    "strayed, early": ([START, plain(done=0.49, spread=0.29, shift=0.9)], []),
    "strayed, at half": ([START, plain(done=0.5, spread=0.29, shift=0.9)], ["high_rate"]),
    "strayed from afar": ([{**START, "shift": 0.5}, plain(spread=0.29, shift=0.5 + STRAYED)], []),
    "strayed, as narrow as ever": ([START, plain(spread=0.3, shift=0.9)], []),
    "strayed, less wide than it was narrow": ([START, plain(spread=1 / 0.31, shift=0.9)], []),
    "strayed a little": ([START, plain(spread=0.29, shift=STRAYED)], []),
    "strayed, not in its spread": ([START, plain(spread=0.31, shift=0.9)], []),
    "strayed, with a fake score": ([START, facts(spread=0.29, shift=0.9)], []),
    "collapse by a known cause": (
        [facts(fake=1.0, shift=9.0, done=0.5), facts(fake=1.0, spread=0.1)],
        ["lagging_fake_score"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_cause_and_each_near_miss(case):
    history, named = CASES[case]
    assert names(*history) == named


def test_samples_that_need_only_be_likely_may_be_alike():
    history = [facts(spread=1.0, done=0.5), facts(spread=0.1)]
    blind = SimpleNamespace(**vars(METHOD), student=SimpleNamespace(network=SimpleNamespace(blind=True)))
    assert names(*history) == ["high_rate"]
    for model in (LAWLESS, blind):
        assert names(*history, model=model) == []
        for odd in (facts(fake=1.0, shift=9.0), facts(raw=9.0), facts(raw=0.9, moved=0.0)):
            assert names(START, odd) != [] and names(START, odd, model=model) == []
        assert names(facts(skipped_student=0.5), model=model) == ["diverged_role"]


def test_mends_name_the_role_to_blame():
    said = {
        "model.fake_score.updates": facts(fake=1.0, shift=0.9),
        "of the teacher's error at noise 0.012 to 80": facts(fake=1.0, shift=0.9),
        "0.9 of its spread (0.2 within classes)": facts(fake=1.0, spread=0.9, within=0.2),
        "model.fake_score.lr": facts(fake=9.0),
        "model.student.lr": facts(raw=9.0),
        "up to 9 times the teacher's error, on samples with 0.2 of its spread": facts(fake_high=9.0, spread=0.2),
        "lower model.student.lr or model.fake_score.lr": facts(fake_high=9.0, shift=0.9),
        "lower model.fake_score.lr": facts(skipped_fake_score=0.5, skipped_student=0.1),
        "lower model.student.lr": facts(skipped_fake_score=0.1, skipped_student=0.5),
        "the fake score's error is infinite): lower model.fake_score.lr": facts(fake_high=math.inf, lag=math.inf),
        "samples are no numbers): lower model.student.lr": facts(spread=math.nan, fake_high=math.inf),
    }
    for words, history in said.items():
        assert words in str(*diagnose([history], METHOD))
    adversarial = SimpleNamespace(**vars(METHOD), gan=0.1)
    for history in (START, facts(shift=9.0)), (START, facts(raw=9.0)), (facts(spread=1.0), facts(spread=0.1)):
        assert str(*diagnose([*history], METHOD)).endswith("): lower model.student.lr")
        assert str(*diagnose([*history], adversarial)).endswith("): lower model.student.lr, or model.gan")


def test_evidence_is_readable_however_large_it_is():
    huge = 2.349245e20
    for odd in (
        facts(raw=huge),
        facts(fake=huge),
        facts(shift=huge),
        facts(fake=1.0, spread=huge, shift=huge),
        facts(raw=0.9, moved=0.9 / huge),
    ):
        (finding,) = diagnose([START, odd], METHOD)
        assert "2.35e+20" in finding.measured or "9e+11" in finding.measured
        assert len(finding.measured) < 150


def test_what_lasts():
    def holds(fact):
        return fact["x"]

    one, none = {"x": True, "done": 0.1}, {"x": False, "done": 0.2}
    assert not lasting([one], holds) and lasting([one, one], holds) and not lasting([one, none, one], holds)
    assert lasting([{"x": True, "done": 0.5}], holds) and not lasting([one, {"x": False, "done": 1.0}], holds)


def test_bounds_are_documented():
    """Those of the page of curves are those of the code."""
    page = (Path(__file__).parents[2] / "docs" / "read_your_curves.md").read_text()
    for name in (
        "LAGS",
        "NARROW",
        "WIDE",
        "OFF",
        "MOVED",
        "WORSE",
        "RUINED",
        "APART",
        "AWAY",
        "FROZEN",
        "FALLEN",
        "SKIPPED",
    ):
        assert f"`{name}` | {getattr(during, name):g} |" in page, name
