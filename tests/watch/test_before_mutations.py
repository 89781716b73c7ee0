"""Tests of the tests of what is said before the first step: each fault must be noticed."""

# ruff: noqa: E501 (a fault is a row of a table)

from functools import partial

import pytest
from mutations import Mutation, prove
from watch import test_before as tests

from distillkit.diffusion.process import RectifiedFlow
from distillkit.discrete.process import Absorbing
from distillkit.watch import before
from distillkit.watch.likeness import Judge, deviation


def patched(test, *args):
    """A test that asks for `monkeypatch`, which is undone when it ends."""

    def check():
        with pytest.MonkeyPatch.context() as monkeypatch:
            test(monkeypatch, *args)

    return check


gaussian = partial(tests.test_likeness_of_gaussian_data, RectifiedFlow(), 3.0, 0.5)
wide = partial(tests.test_likeness_of_gaussian_data, RectifiedFlow(), 1.0, 1.5)
tokens = partial(tests.test_likeness_of_tokens, Absorbing(2))
share, old, short = (
    tests.test_share_of_the_first_student,
    tests.test_averages_that_are_too_old,
    tests.test_runs_that_are_too_short,
)
trained, ignored = tests.test_teacher_that_knows_its_classes, patched(tests.test_teacher_that_ignores_its_classes)
null = patched(tests.test_null_branch_that_was_never_trained, 3.0)
plain = patched(tests.test_null_branch_that_was_never_trained, 1.0)
zero_snr = partial(tests.test_first_step_without_signal, "eps", RectifiedFlow(), 1.0, True)
velocity = partial(tests.test_first_step_without_signal, "v", RectifiedFlow(), 1.0, False)

FAULTS = [
    Mutation("error not squared", Judge.squared, "wrong.square()", "wrong.abs()", gaussian),
    Mutation("error from x_t", Judge.squared, "(x_t, t, cond) - x_0", "(x_t, t, cond) - x_t", gaussian),
    Mutation(
        "noise of other rows", Judge.squared, "eps[rows]", "eps[: len(x_0)]", tests.test_noise_does_not_depend_on_chunks
    ),
    Mutation("level in the noise's own unit", Judge.gaussian_levels, "ratio * std", "ratio", gaussian),
    Mutation("upside down", Judge.likeness, "a / b", "b / a", gaussian),
    Mutation("guess without what x_t says", Judge.guesses, "variance * level / (variance + level)", "variance", wide),
    Mutation(
        "deviation for variance",
        Judge.guesses,
        '(x_0, self.cond.get("mask"))) ** 2',
        '(x_0, self.cond.get("mask")))',
        wide,
    ),
    Mutation("noise not squared", Judge.guesses, "float64))) ** 2", "float64)))", wide),
    Mutation("certain tokens count", Judge.nats, "count.sum().clamp_min(1)", "x_0.numel()", tokens),
    Mutation("likelihood for nats", Judge.nats, "-reading", "reading", tokens),
    Mutation(
        "padding counts",
        deviation,
        "torch.where(seen, x.double() - mean, 0)",
        "(x.double() - mean)",
        tests.test_padding_of_sets_does_not_count,
    ),
    Mutation("one update less", before.kept, "updates + 1", "updates", share),
    Mutation("batch counted twice", before.kept, "(batch / halflives)", "(batch**2 / halflives)", share),
    Mutation("the later of the two ages", before.kept, ".clamp(1e-8, halflife)", ".clamp_min(halflife)", share),
    Mutation("age the wrong way", before.in_training, 'facts["kept"] > KEPT', 'facts["kept"] < KEPT', old),
    Mutation("one step too strict", before.in_training, "each < model.enough", "each <= model.enough", short),
    Mutation(
        "same classes", before.wrong, "torch.randint(1,", "torch.randint(0,", tests.test_wrong_classes_differ_everywhere
    ),
    Mutation("null judged without guidance", before.guidance, "if guides and dropped", "if dropped", plain),
    Mutation("never dropped", before.guidance, "dropped == 0", "dropped == 1", null),
    Mutation(
        "ignored with either", before.guidance, 'facts["wrong"] < SAID and', 'facts["wrong"] < SAID and not', ignored
    ),
    Mutation(
        "known classes are ignored",
        before.guidance,
        'if facts["wrong"] < SAID and',
        'if facts["wrong"] > SAID or',
        trained,
    ),
    Mutation(
        "farther than held-out data",
        before.repeated,
        "near / there",
        "there / near",
        partial(tests.test_teacher_that_repeats_its_training_data, True),
    ),
    Mutation("noise upside down", before.start, "noise < NOISE", "noise > NOISE", zero_snr),
    Mutation("any prediction", before.start, '!= "eps"', '== "x0"', velocity),
    Mutation(
        "scale upside down",
        before.scale,
        "off < math.log",
        "off > math.log",
        partial(tests.test_scale_of_data, 4.0, True),
    ),
    Mutation(
        "only too large",
        before.scale,
        "abs(math.log(std",
        "(math.log(std",
        partial(tests.test_scale_of_data, 0.25, True),
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_noticed(fault):
    prove(fault)
