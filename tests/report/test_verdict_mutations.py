"""The tests of the verdict notice faults of its rules."""

from collections.abc import Callable
from functools import partial

import pytest
from mutations import Mutation, prove

from distillkit.report import numbers, shortfalls, verdict
from tests.report import test_verdict as tests


def check(test: Callable) -> None:
    """All cases of a test with parameters."""
    (mark,) = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    for case in mark.args[1]:
        test(*case) if isinstance(case, tuple) else test(case)


Of = verdict.Comparison
PRAISE, NOISE, BEGAN, CUT, SHORT, GROUPS = (
    partial(check, test)
    for test in (
        tests.test_what_is_praised,
        tests.test_what_noise_may_have_done,
        tests.test_a_student_is_compared_with_where_it_began,
        tests.test_verdict_says_what_was_cut_and_how_far,
        tests.test_shortfalls_follow_the_direction_of_each_metric,
        tests.test_metrics_belong_to_groups,
    )
)
LOST, BESIDE = tests.test_a_metric_that_should_be_high_makes_a_student_far, tests.test_verdict_beside_a_baseline
BY_NOISE, RANGE = (
    tests.test_shortfalls_are_beyond_noise,
    tests.test_shortfalls_are_no_matter_of_baselines_or_of_the_range,
)
HIGH = 'self.better.get(name) == "higher" and ours < floor / 2'
AHEAD, BEHIND = (f"self.value({a}) - self.value({b})" for a, b in (("row", "self.student"), ("self.student", "row")))
FAULTS = [
    ("praise of a wreck", Of.remark, "not any(self.far.values())", "True", PRAISE),
    ("praise of a failure", Of.remark, "not self.failed", "True", PRAISE),
    ("the ratio turned", Of.remark, "s / t", "t / s", PRAISE),
    ("a ratio within noise", Of.remark, "abs(s - t) <= apart", "False", NOISE),
    ("worse alone is noise", Of.remark, "abs(s - t)", "(s - t)", NOISE),
    ("better alone is noise", Of.remark, "abs(s - t)", "(t - s)", NOISE),
    ("speed of a failure", Of.speed, "self.failed", "False", PRAISE),
    ("speed of a wreck", Of.speed, "any(self.far.values())", "False", PRAISE),
    ("half of the way forgotten", Of._far, "(start - floor) / 2", "(start - floor)", PRAISE),
    ("half of the way from 0", Of._far, "ours - floor > ", "ours > ", PRAISE),
    ("three floors forgotten", Of._far, "ours > FAR * floor", "True", PRAISE),
    ("far by the beginning of another", Of._far, "(self.before or self.same)", "self.few", BEGAN),
    ("the teacher's beginning is the scene's", Of._far, "else self.few", "else self.same", BEGAN),
    ("variety does not count", Of._far, HIGH, "False", LOST),
    ("a wreck by its share alone", Of._far, "share * by", "share", CUT),
    ("no wreck", Of._far, "share * by >= WRECK", "False", CUT),
    ("little is cut", Of._outside, "share < CUT", "share < 0.5", CUT),
    ("the beginning forgotten", Of.rivals.fget, "if self.before:", "if False:", BEGAN),
    ("another network's cost", Of.rivals.fget, "not self.network", "True", BEGAN),
    ("began as the teacher", Of.rivals.fget, '("", "") if self.before else ', "", BEGAN),
    ("ahead by noise", Of.ahead, "noise(row, self.headline)", "0", NOISE),
    ("ahead if worse", Of.ahead, AHEAD, BEHIND, PRAISE),
    ("failed by noise", Of._beaten, "s - u > noise(row, self.headline)", "True", NOISE),
    ("failed by a little", Of._beaten, "1.1 * u", "u", BEGAN),
    ("beaten by noise", Of._unworthy, "noise(row, self.headline) if self.student else 0", "0", BESIDE),
    ("short by noise", shortfalls.shortfalls, "noise(best, name)", "0", BY_NOISE),
    ("shortfalls squared", shortfalls.shortfalls, "0.1 * abs(theirs)", "0.1 * theirs ** 2", SHORT),
    ("shortfalls of the range", shortfalls.shortfalls, 'name.startswith("outside")', "False", RANGE),
    ("the shortest word", shortfalls.group_of, "max(known, key=len)", "min(known, key=len)", GROUPS),
    ("letters for words", shortfalls.group_of, 'f"_{word}_" in f"_{metric}_"', "word in metric", GROUPS),
    ("the target forgotten", numbers.loss_of, "abs(value - (target or 0.0))", "abs(value)", SHORT),
    ("the direction forgotten", numbers.loss_of, '"higher": -value', '"higher": value', SHORT),
]  # fmt: skip


@pytest.mark.parametrize("fault", [Mutation(*fault) for fault in FAULTS], ids=str)
def test_faults_are_noticed(fault):
    prove(fault)
