"""From evaluation.json to sentences: what is praised, what is not, and within which noise."""

import io
import json
from copy import deepcopy

import pytest
from rich.console import Console

from distillkit.report.card import write_card
from distillkit.report.page import write_report
from distillkit.report.quality import evaluation_table, quality_table, strip
from distillkit.report.shortfalls import behind, group_of, shortfalls
from distillkit.report.verdict import verdict
from distillkit.report.warned import read_warnings
from distillkit.watch.causes import Finding
from tests.report.test_page import EVALUATION, Page, changed, run, with_baseline, without  # noqa: F401

FAILED, NOTHING = "the training has failed", "nothing is distilled yet"
FLOOR = 0.02


def table(student, best=0.38, same=2.9, before=None, margins=None, **facts):
    """An evaluation by its headlines; `facts` join the student's row, `margins` are by row."""
    rows = deepcopy(EVALUATION["rows"])
    for row, value in zip(rows, (student, best, same), strict=False):
        row["metrics"] = {"frechet": value}
    rows[3]["metrics"] = {"frechet": FLOOR}
    rows[0] |= facts
    if before is not None:
        rows.insert(3, {"name": "untrained student", "kind": "before", "metrics": {"frechet": before}})
    for row in rows:
        if row["name"] in (margins or {}):
            kind = "margins" if row["name"] == "student" else "margins_to_student"
            row[kind] = {"frechet": margins[row["name"]]}
    return EVALUATION | {"better": {"frechet": "lower"}, "rows": [row for row in rows if row["metrics"]["frechet"]]}


def test_verdict_of_a_student():
    assert verdict(EVALUATION) == (
        "1 network pass instead of 35: Frechet 0.410 against the teacher's 0.380 (1.08×), 2.90 for the "
        "teacher at 1 step and 0.0200 for real data; 31× faster per sample."
    )


def test_verdict_of_a_teacher():
    assert verdict(without("student")) == (
        "Frechet 0.380 with 35 network passes and 2.90 with 1 network pass; real data scores 0.0200."
    )


@pytest.mark.parametrize(
    "case, said, unsaid",
    [
        # good, worse, better than the teacher: a ratio and a speed
        (table(0.41), ("(1.08×)", "31× faster per sample"), ("far", "no better", "noise")),
        (table(0.80), ("(2.11×)", "31× faster"), ("far", "no better")),
        (table(0.30), ("(0.79×)", "31× faster"), ("far", "no better")),
        # a wreck beside a wreck, with the same few steps and with far worse ones
        (table(2.85, 2.8), ("both far from real data: Frechet 2.85 and 2.80 against 0.0200.",), ("(1.0",)),
        (table(2.85, 2.8, None), ("both far from real data",), ("(1.0", "faster")),
        # one of them is far
        (table(2.0), ("The student is far from real data: Frechet 2.00 against 0.0200.", "faster"), ("both", "5.3×")),
        (table(0.05, 2.8), ("The teacher itself is far from real data", "faster"), ("both", "0.02×")),
        # half way from the few steps, or near the floor, is not far
        (table(1.45), ("(3.8×)",), ("far",)),
        (table(1.47), ("far",), ("(3",)),
        (table(0.059, 0.05, 0.06), ("(1.18×)",), ("far",)),
        # no better than where it began
        (table(2.9), (f"no better than its teacher at the same cost: {NOTHING}",), ("faster", "×")),
        (table(0.06, 0.05, 0.055), (NOTHING,), ("1.20×", "faster", "far")),
        (table(29.0), (f"10× worse than its teacher at the same cost: {FAILED}",), ("faster", "yet", "(76")),
    ],
)
def test_what_is_praised(case, said, unsaid):
    sentence = verdict(case)
    assert all(text in sentence for text in said), sentence
    assert not any(text in sentence for text in unsaid), sentence


@pytest.mark.parametrize(
    "case, said, unsaid",
    [
        # within noise of the teacher, beyond it, and not known
        (
            table(0.39, margins={"teacher at its best": 0.02}),
            ("(no different within noise, ± 0.0200)", "31×"),
            ("1.0",),
        ),
        (table(0.37, margins={"teacher at its best": 0.02}), ("(no different within noise, ± 0.0200)",), ("0.97",)),
        (table(0.41, margins={"teacher at its best": 0.02}), ("(1.08×)",), ("noise",)),
        (table(0.30, margins={"teacher at its best": 0.02}), ("(0.79×)",), ("noise",)),
        (table(0.39), ("(1.03×)",), ("noise", "±")),
        (table(0.41, margins={"student": 0.0123}), ("Frechet 0.410 ± 0.0123 against",), ("noise",)),
        # within noise of where it began
        (
            table(2.7, margins={"teacher at 1 step": 0.3}),
            (f"no better, within noise, than its teacher at the same cost: {NOTHING}",),
            ("faster",),
        ),
        (table(2.5, margins={"teacher at 1 step": 0.3}), ("faster",), ("no better",)),
        (table(3.5, margins={"teacher at 1 step": 1.0}), (NOTHING,), (FAILED, "within noise")),
        (table(4.0, margins={"teacher at 1 step": 1.0}), (FAILED,), (NOTHING,)),
    ],
)
def test_what_noise_may_have_done(case, said, unsaid):
    sentence = verdict(case)
    assert all(text in sentence for text in said), sentence
    assert not any(text in sentence for text in unsaid), sentence


@pytest.mark.parametrize(
    "case, said, unsaid",
    [
        # a scene: its teacher's one step is no yardstick, itself before training is one
        (
            table(1.4, 0.4, 0.9, before=9.0, network="blind"),
            ("9.00 for the untrained student", "(3.5×)", "faster"),
            ("0.900", "failed", "no better", "far"),
        ),
        (
            table(9.9, 0.4, 0.9, before=8.0, network="blind"),
            (f"1.24× worse than before training: {FAILED}",),
            ("faster", "same cost"),
        ),
        (
            table(8.1, 0.4, 0.9, before=8.0, network="blind"),
            ("no better than before training: nothing is learned yet",),
            ("faster",),
        ),
        (table(1.4, 0.4, 0.9, network="blind"), ("far from real data",), ("failed", "no better", "0.900", "faster")),
        # another network: the teacher's step is told, but is no equal cost
        (table(1.4, 0.9, 1.3, before=9.0, network="own"), ("1.30 for the teacher at 1 step",), ("failed", "no better")),
        # the network of its teacher, which began elsewhere: both count
        (
            table(1.4, 0.9, 1.3, before=9.0),
            ("The student is no better than its teacher at the same cost.",),
            ("failed", "yet", "faster"),
        ),
        (
            table(3.4, 0.9, 1.3, before=9.0),
            ("The student is 2.62× worse than its teacher at the same cost.",),
            ("failed", "yet", "faster"),
        ),
        (table(1.2, 0.9, 1.3, before=9.0), ("faster",), ("no better",)),
    ],
)
def test_a_student_is_compared_with_where_it_began(case, said, unsaid):
    sentence = verdict(case)
    assert all(text in sentence for text in said), sentence
    assert not any(text in sentence for text in unsaid), sentence


def test_a_network_of_its_own_is_no_pass_of_the_teachers():
    assert verdict(table(0.41, network="own")).startswith(
        "1 pass of a network of its own instead of 35 of the teacher's:"
    )
    two = table(0.41, network="own", network_passes=2)
    assert verdict(two).startswith("2 passes of a network of its own instead of 35 of the teacher's:")


@pytest.mark.parametrize(
    "kappa, said", [(1, "(unguided; 1.08×)"), (7.5, "(guided, kappa 7.5; 1.08×)"), (None, "(1.08×)")]
)
def test_guidance_stands_beside_the_teacher(kappa, said):
    told = deepcopy(EVALUATION)
    for row in told["rows"][1:3] if kappa else ():
        row["kappa"] = kappa
    assert f"the teacher's 0.380 {said}, 2.90" in verdict(told)
    labels = [column["label"] for column in quality_table(told)["columns"]]
    assert ("kappa" in labels) == (kappa is not None)
    if kappa:
        cells = [row["cells"][labels.index("kappa")]["text"] for row in quality_table(told)["rows"]]
        assert cells == ["–", *[{1: "1", 7.5: "7.50"}[kappa]] * 2, "–"]
        alone = told | {"rows": told["rows"][1:]}
        assert f"35 network passes{said.split(';')[0]}) and" in verdict(alone).replace(" (", "(")
        told["rows"][0]["metrics"]["frechet"] = 29.0
        assert f"the teacher's 0.380 {said.split(';')[0]}), 2.90" in verdict(told)  # also where the ratio is no praise


def test_what_is_compared_sample_by_sample_is_told_beside_the_headline():
    told = table(1.4, 0.9, 1.3, before=9.0, network="blind") | {"beside": "psnr_to_solid"}
    assert "Sample by sample" not in verdict(told)
    for row, value in zip(told["rows"], (14.1, 12.6, 12.1, 8.0), strict=False):
        row["metrics"]["psnr_to_solid"] = value
    assert "Sample by sample: PSNR to solid 14.1 against the teacher's 12.6 and 8.00 before training." in verdict(told)


def test_the_untrained_student_takes_no_part_in_the_table():
    told = table(0.41, before=0.01)
    rows = quality_table(told)["rows"]
    assert [row["kind"] for row in rows] == ["student", "teacher", "teacher", "before", "real"]
    assert [row["kind"] for row in rows if any(cell["best"] for cell in row["cells"])] == ["teacher"]
    assert {dot["kind"] for dot in strip(told)["dots"]} == {"student", "teacher", "before", "real"}


def test_a_metric_that_should_be_high_makes_a_student_far():
    """A student that has lost its variety is not praised for the distance that it has left."""
    said = verdict(changed(0, recall=0.2))
    assert "The student is far from real data: Recall 0.200 against 0.900." in said and "1.08×" not in said
    assert "far" not in verdict(changed(0, recall=0.46))
    both = changed(0, recall=0.2)
    both["rows"][1]["metrics"]["recall"] = 0.3
    assert "both far from real data: Recall 0.200 and 0.300 against 0.900." in verdict(both)
    both["rows"][1]["metrics"]["frechet"] = 2.8
    assert "The teacher is also far from real data: Frechet 2.80 against 0.0200." in verdict(both)


def test_few_metrics_are_named():
    names = [f"iou_{i}" for i in range(6)]
    far = deepcopy(EVALUATION) | {"better": dict.fromkeys(names, "higher")}
    for row, value in zip(far["rows"], (0.1, 0.9, 0.9, 1.0), strict=True):
        row["metrics"] |= dict.fromkeys(names, value)
    assert "IOU 3 0.100 against 1.00 and 2 more." in verdict(far)


def test_verdict_beside_a_broken_teacher():
    """The student is as good as a teacher that is far from real data."""
    broken = changed(1, frechet=2.8, recall=0.0)
    broken["rows"][0]["metrics"] |= {"frechet": 2.85, "recall": 0.0}
    said = verdict(broken)
    assert "both far from real data: Frechet 2.85 and 2.80 against 0.0200, Recall 0.00 and 0.00 against 0.900." in said
    assert "(1.0" not in said and "0.0200 for real data" in said
    broken["rows"] = broken["rows"][1:]  # a teacher alone, as `pretrain` leaves it
    assert verdict(broken).endswith("far from real data: Frechet 2.80 against 0.0200, Recall 0.00 against 0.900.")
    for fine in (EVALUATION, without("student"), without("real data")):
        assert "far from real data" not in verdict(fine)


@pytest.mark.parametrize("floor", [0.0, 1e-9, -0.001])
def test_a_floor_of_nothing_makes_nobody_far(floor):
    """Real data beside themselves have a distance of 0 but for rounding, which says nothing."""
    perfect = changed(3, frechet=floor)
    assert "far" not in verdict(perfect) and "(1.08×)" in verdict(perfect)


@pytest.mark.parametrize("share, by, said", [(0.04, 3.0, None), (0.4, 0.06, "0.0600"), (0.95, 1.5, "1.50")])
def test_verdict_says_what_was_cut_and_how_far(share, by, said):
    wreck = changed(0, outside=share, outside_by=by)
    wreck["rows"][3]["metrics"] |= {"outside": 0.0, "outside_by": 0.0}
    sentence = verdict(wreck)
    cut = f"{share:.1%} of the student's values lie outside the range of the data, on average by {said} of its width;"
    assert (cut in sentence) == (said is not None)
    far = share * by >= 0.1  # of all values together, a tenth of the range
    assert ("far from real data: Outside by" in sentence) == far and ("(1.08×)" in sentence) == (not far)


def test_verdict_says_what_was_left_out_before_measuring():
    assert "outside" not in verdict(changed(0, outside=0.01))
    said = verdict(changed(0, outside=0.4))  # of a version that did not measure how far
    assert said.endswith(
        "40.0% of the student's values lie outside the range of the data; they were cut before measuring."
    )
    said = verdict(EVALUATION | {"protocol": {"left_out": {"label": [2, 7]}}})
    assert said.endswith("Without held-out data, so not measured: label 2, 7.")
    said = verdict(EVALUATION | {"protocol": {"too_few": ["recall", "coverage"]}})
    assert said.endswith("Too few samples or held-out data for Recall and Coverage: not measured.")


def test_verdict_says_which_steps_taught_nothing():
    counts = {"student": {"skipped": 3, "steps": 100}, "fake_score": {"skipped": 0, "steps": 100}}
    said = "Skipped were 3 of 100 steps of the student, whose gradients were NaN or infinite."
    assert verdict(EVALUATION, {"skipped": counts}) == f"{verdict(EVALUATION)} {said}"
    assert verdict({}, {"skipped": counts}) == said  # also where nothing was evaluated
    counts["fake_score"]["skipped"] = 1
    assert "3 of 100 steps of the student and 1 of 100 steps of the fake score," in verdict({}, {"skipped": counts})
    assert verdict(EVALUATION, {"skipped": {"student": {"skipped": 0, "steps": 9}}}) == verdict(EVALUATION)
    for damaged in ("x", [1], {"student": 3}, {"student": {"skipped": "x", "steps": 9}}, {"student": {"skipped": 3}}):
        assert verdict({}, {"skipped": damaged}) == ""


def test_verdict_of_half_an_evaluation():
    assert verdict({}) == ""
    alone = "Frechet 0.410 with 1 network pass, without a teacher; real data scores 0.0200."
    far = " The student is far from real data: Frechet 0.410 against 0.0200."  # nothing says where it began
    assert verdict(without("teacher at its best", "teacher at 1 step")) == alone + far
    near = changed(0, frechet=0.05)
    assert verdict(near | {"rows": near["rows"][::3]}) == alone.replace("0.410", "0.0500")
    assert verdict(changed(0, frechet=float("nan"))) == ""
    assert "teacher at 1 step" not in verdict(without("teacher at 1 step"))
    assert "slower" in verdict(
        EVALUATION | {"rows": [EVALUATION["rows"][0] | {"ms_per_sample": 6.2}, *EVALUATION["rows"][1:]]}
    )
    assert verdict(changed(0, frechet=0.0)).startswith("1 network pass instead of 35: Frechet 0.00 against")
    perfect = changed(0, frechet=0.0)
    perfect["rows"] = [perfect["rows"][0], perfect["rows"][3]]
    assert verdict(perfect).startswith("Frechet 0.00 with 1 network pass, without a teacher")


def test_verdict_beside_a_baseline():
    beaten = "no better than bicubic (0.410), which needs no model."
    assert verdict(with_baseline(0.42)) == verdict(EVALUATION)
    assert verdict(with_baseline(0.41)) == f"{verdict(EVALUATION)} The student is {beaten}"
    near = with_baseline(0.42)
    near["rows"][3]["margins_to_student"] = {"frechet": 0.02}
    assert "no better than bicubic (0.420)" in verdict(near)
    alone = with_baseline(0.41)
    alone["rows"].pop(0)
    assert verdict(alone) == verdict(without("student"))
    alone["rows"][0]["metrics"]["frechet"] = 0.5
    assert verdict(alone).endswith(f"The teacher is {beaten}")


# Shortfalls


@pytest.mark.parametrize(
    "metrics, found",
    [
        ({"recall": 0.55}, {}),  # 8 % less
        ({"recall": 0.53}, {"variety": ["Recall 0.530 against 0.600"]}),  # 12 % less
        ({"recall": 0.9, "frechet": 0.41}, {}),
        ({"recall": 0.9, "frechet": 0.43}, {"looks": ["Frechet 0.430 against 0.380"]}),
        ({"recall": 0.9, "ink": 0.27}, {}),  # the teacher is 0.04 from real data, 0.31
        ({"recall": 0.9, "ink": 0.36}, {"looks": ["Ink 0.360 against 0.350 (real data 0.310)"]}),
        (
            {"recall": 0.3, "frechet": 0.43},
            {"looks": ["Frechet 0.430 against 0.380"], "variety": ["Recall 0.300 against 0.600"]},
        ),
    ],
)
def test_shortfalls_follow_the_direction_of_each_metric(metrics, found):
    assert shortfalls(changed(0, **metrics)) == found


def test_shortfalls_are_beyond_noise():
    short = changed(0, recall=0.9, frechet=0.43)
    short["rows"][1]["margins_to_student"] = {"frechet": 0.06}
    assert shortfalls(short) == {}
    short["rows"][1]["margins_to_student"] = {"frechet": 0.04}
    assert [*shortfalls(short)] == ["looks"]


def test_shortfalls_are_no_matter_of_baselines_or_of_the_range():
    assert shortfalls(with_baseline(0.01)) == shortfalls(EVALUATION)
    cut = changed(0, outside=0.02, outside_by=0.1)
    cut["better"] = {"outside": "lower", "outside_by": "lower"}
    cut["rows"][1]["metrics"] |= {"outside": 0.001, "outside_by": 0.01}
    assert shortfalls(cut) == {}


def test_shortfalls_are_one_sentence_everywhere(tmp_path, run):  # noqa: F811
    short = changed(0, recall=0.3, frechet=0.43)
    said = "More than a tenth behind the teacher in looks: Frechet 0.430 against 0.380; in variety: Recall 0.300 against 0.600."
    assert behind(short) == said and behind(changed(0, recall=0.6)) == ""
    shown = io.StringIO()
    Console(file=shown, width=80).print(evaluation_table(short))
    assert said in " ".join(shown.getvalue().split())
    write_card(run / "student", "student", {}, short, None)
    assert said in (run / "student" / "README.md").read_text()
    (run / "evaluation.json").write_text(json.dumps(short))
    assert said in " ".join(Page(write_report(run).read_text()).words)


@pytest.mark.parametrize(
    "group, names",
    [
        (
            "looks",
            "frechet kernel clipped_share precision density psnr_y nearest_accuracy hit_accuracy bond_spread chamfer motion nll",
        ),
        ("variety", "recall coverage diversity gapless_diversity_tm gapless_clusters distinct entropy modes_found"),
        ("copies", "nearest_train copied gapless_novelty_tm"),
        ("obedience", "class_agreement rank solid_rank r_precision clip_r_precision clip consistency clap_score"),
    ],
)
def test_metrics_belong_to_groups(group, names):
    assert {name: group_of(name) for name in names.split()} == dict.fromkeys(names.split(), group)


# Warnings of a run


WARNED = [
    {"name": "lagging_fake_score", "step": 1200, "said": "the fake score lags (0.99): raise it"},
    {"name": "over_guided", "step": 7, "said": ""},
]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "3",
        "{}",
        "null",
        '[1, "x", null, {}]',
        '[{"name": 3, "step": 1}]',
        '[{"name": "x", "step": true}]',
    ]
    + ["[" * 100_000, '[{"name": " ", "step": 1}]', '[{"name": "x", "step": "1"}]', "\udcff"],
)
def test_no_or_damaged_warnings_are_none(tmp_path, text):
    if text is not None:
        (tmp_path / "warnings.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_warnings(tmp_path) == () and verdict(EVALUATION, {}, read_warnings(tmp_path)) == verdict(EVALUATION)


def test_warnings_are_named_in_the_verdict_and_told_in_report_and_card(run):  # noqa: F811
    (run / "warnings.json").write_text(json.dumps([*WARNED, {"step": 1}]))
    warned, said = read_warnings(run), "Warned: lagging fake score (step 1,200) and over guided (step 7)."
    assert verdict(EVALUATION, {}, warned) == f"{verdict(EVALUATION)} {said}" and verdict({}, {}, warned) == said
    words = Page(write_report(run).read_text()).words
    assert f"{verdict(EVALUATION)} {said}" in words and "At step 1,200: the fake score lags (0.99): raise it" in words
    assert not any(text.startswith("At step 7") for text in words)
    write_card(run / "student", "student", {}, EVALUATION, None, warned)
    card = (run / "student" / "README.md").read_text()
    assert said in card and "- At step 1200: the fake score lags (0.99): raise it\n" in card
    shown = io.StringIO()
    Console(file=shown, width=200).print(evaluation_table(EVALUATION, {}, warned))
    assert said in " ".join(shown.getvalue().split())


def test_a_warning_is_named_by_its_title_where_it_has_one(tmp_path):
    entry = Finding("few_updates", "it makes 1", step=7).record()
    (tmp_path / "warnings.json").write_text(json.dumps([entry, entry | {"title": 3, "name": "over_guided"}]))
    said = "Warned: the student has too few steps to learn from (step 7) and over guided (step 7)."
    assert verdict({}, {}, read_warnings(tmp_path)) == said


def test_warnings_are_text(run):  # noqa: F811
    nasty = "<script>alert(1)</script>\x1b[31m[red]\n# x"
    (run / "warnings.json").write_text(json.dumps([{"name": nasty, "step": 1, "said": nasty * 100}]))
    (warned,) = read_warnings(run)
    assert "\x1b" not in warned["name"] and "\n" not in warned["said"] and len(warned["said"]) <= 500
    assert "<script>alert" not in write_report(run).read_text()
    write_card(run / "student", "student", {}, EVALUATION, None, (warned,))
    assert "<script>" not in (run / "student" / "README.md").read_text().replace("\\<", "")
    shown = io.StringIO()
    Console(file=shown, width=300).print(evaluation_table(EVALUATION, {}, (warned,)))
    assert "[red]" in shown.getvalue()
