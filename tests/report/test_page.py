import base64
import io
import json
import os
import re
import xml.etree.ElementTree as ET
from copy import deepcopy
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

from distillkit.report.card import facts_of, write_card
from distillkit.report.curves import axis, curve, smooth, thin
from distillkit.report.numbers import number, pretty, times
from distillkit.report.page import write_report
from distillkit.report.quality import evaluation_table, quality_table, strip
from distillkit.report.verdict import verdict

EVALUATION = {
    "protocol": {"num_samples": 2000, "seed": 1234, "evaluator": {"features": "digits"}, "teacher": {"id": "digits-8"}},
    "headline": "frechet",
    "better": {"recall": "higher", "frechet": "lower", "ink": "target"},
    "rows": [
        {
            "name": "student",
            "steps": 1,
            "network_passes": 1,
            "ms_per_sample": 0.1,
            "metrics": {"recall": 0.5, "frechet": 0.41, "ink": 0.30},
        },
        {
            "name": "teacher at its best",
            "steps": 18,
            "network_passes": 35,
            "ms_per_sample": 3.1,
            "metrics": {"recall": 0.6, "frechet": 0.38, "ink": 0.35},
        },
        {
            "name": "teacher at 1 step",
            "steps": 1,
            "network_passes": 1,
            "ms_per_sample": 0.1,
            "metrics": {"recall": 0.1, "frechet": 2.9, "ink": 0.10},
        },
        {"name": "real data", "metrics": {"recall": 0.9, "frechet": 0.02, "ink": 0.31}},
    ],
}
CONFIG = """\
seed_everything: 0
trainer: {max_steps: 400}
model:
  class_path: distillkit.methods.dmd.DMD
  init_args: {teacher: {class_path: domains.image.teacher.Digits}}
data: {class_path: domains.image.data.Digits, init_args: {batch_size: 128}}
note: "</pre><script>alert(1)</script><img src='http://example.com/x.png'>"
"""


def changed(row, **metrics):
    evaluation = deepcopy(EVALUATION)
    evaluation["rows"][row]["metrics"].update(metrics)
    return evaluation


def without(*names):
    return EVALUATION | {"rows": [row for row in EVALUATION["rows"] if row["name"] not in names]}


@pytest.fixture
def run(tmp_path):
    lines = ["step,seconds,student/loss,fake_score/loss,val/frechet"]
    for step in range(9, 400, 10):
        lines.append(
            f"{step},{step / 20},{-1 + step / 100},{2.0 ** (-step / 40)},{3 / step if step % 100 == 99 else ''}"
        )
    lines.append("400,20,nan,,")
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "student.yaml").write_text("{domain: image, num_steps: 1}")
    (tmp_path / "samples").mkdir()
    for i, name in enumerate(["student", "teacher_best", "teacher_same_steps", "comparison", "step_000200"]):
        Image.new("L", (16 if i < 4 else 900, 8), 50 * i).save(tmp_path / "samples" / f"{name}.png")
    return tmp_path


class Page(HTMLParser):
    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []  # every element is closed, in order

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.words.append(" ".join(data.split()))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(run):
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_domain_is_what_the_run_recorded():
    measured = {"protocol": {"evaluator": {"domain": "sound"}}}
    assert facts_of({}, {"domain": "music"}, measured)["domain"] == "music"
    assert facts_of({}, {}, measured)["domain"] == "sound"
    assert facts_of({"data": {"class_path": "domains.image.data.Digits"}}, {}, {})["domain"] is None


@pytest.mark.parametrize(
    ("config", "student", "method", "mechanism"),
    [
        ({"method": "asd", "model": {"class_path": "distillkit.methods.sds.SDS"}}, {}, "asd", "SDS"),
        ({}, {"method": "asd", "mechanism": "SDS"}, "asd", "SDS"),
        ({}, {"method": "mdt_dist", "mechanism": "MDTDist"}, "mdt_dist", None),
        ({"method": None, "model": {"class_path": "mine.Mine"}}, {"method": "Mine"}, "Mine", None),
        ({}, {"method": "SiD"}, "SiD", None),
        ({}, {}, None, None),
    ],
)
def test_a_method_is_called_by_the_word_that_was_typed_beside_its_class(config, student, method, mechanism):
    found = facts_of(config, student, {})
    assert (found["method"], found["mechanism"]) == (method, mechanism)


def test_the_report_says_what_was_measured(run):
    page = page_of(run)
    assert "image · DMD" in page.words
    assert "distilled from digits-8" in " ".join(page.words)
    assert verdict(EVALUATION) in page.words
    assert "More than a tenth behind the teacher in variety: Recall 0.500 against 0.600." in page.words
    at = page.words.index("student/loss")
    assert page.words[at + 1] == "last 2.99, 1 not finite"
    assert page.words.index("val/frechet ↓") < at  # the headline comes first
    costs = dict(zip(page.words, page.words[1:], strict=False))
    assert costs["Optimiser steps"] == "400" and costs["Batch size"] == "128"
    assert (
        costs["Wall time"] == "20 s" and costs["A sample costs"] == "1 network pass, 35 network passes for the teacher"
    )
    assert len(page.all("svg")) == 3 and len(page.all("details")) == 3


def test_the_report_needs_nothing_from_outside(run):
    page = page_of(run)
    assert page.all("script") == [] and page.all("link") == [] and page.all("iframe") == []
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith(("data:image/png;base64,", "#")), (name, value)
            assert "http" not in (value or "")
            assert not name.startswith("on")
    style = re.search(r"<style>(.*)</style>", (run / "report.html").read_text(), re.DOTALL)[1]
    assert "@import" not in style and "url(" not in style and "prefers-color-scheme: dark" in style


def test_a_page_among_the_samples_is_shown_in_a_box_of_its_own(run):
    """Chains that turn with the mouse, for example; their script cannot reach the report."""
    text = "<!doctype html><script>const a = [[1, 2]], b = `x ${a}` && 'y < z';</script><p>\"turn\"</p>"
    (run / "samples" / "backbones.html").write_text(text)
    page = page_of(run)
    assert page.all("iframe") == [{"sandbox": "allow-scripts", "title": "Backbones", "srcdoc": text}]
    assert page.all("script") == [] and page_of(run).all("iframe") == page.all("iframe")


def test_the_table_has_a_column_for_each_model_and_a_row_for_each_number(run):
    """Numbers are many and models few: no page is too narrow for it."""
    page = page_of(run)
    heads = ["student", "teacher at its best", "teacher at 1 step", "real data"]
    at = page.words.index("Quality and cost of a sample")
    table = page.words[page.words.index("student", page.words.index("steps") - 5) :]
    assert at and table[: len(heads)] == heads
    rows = {table[i]: table[i + 1 : i + 5] for i in range(len(heads), len(heads) + 5 * 7, 5)}
    assert rows["Frechet ↓"] == ["0.410", "0.380", "2.90", "0.0200"]
    assert rows["Ink → real"] == ["0.300", "0.350", "0.100", "0.310"]
    assert [cell["class"] for cell in page.all("td")[:4]] == ["student", "teacher", "teacher", "real"]
    assert [cell.get("class") for cell in page.all("td")].count("teacher best") == 2


def test_a_picture_says_what_it_hides(run):
    (run / "evaluation.json").write_text(json.dumps(changed(0, outside=0.4)))
    captions = [image["alt"] for image in page_of(run).all("img")]
    assert captions[1] == "Student, 1 network pass, 40.0% of its values cut to the range"
    assert sum("cut" in caption for caption in captions) == 1


def test_the_strip_of_training_says_what_it_is(run):
    (run / "samples" / "step_000200.png").rename(run / "samples" / "progress.png")
    captions = [image["alt"] for image in page_of(run).all("img")]
    assert "In training: the same samples at the start, at validations and of the teacher or the data" in captions


def test_real_data_are_shown_beside_the_samples(run):
    Image.new("L", (16, 8)).save(run / "samples" / "real.png")
    assert [image["alt"] for image in page_of(run).all("img")][3] == "Real data"


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("method", ["sid.SiD", "mdt_dist.MDTDist", "pretrain.Pretrain"])
def test_the_report_speaks_of_validation_only_where_there_was_some(tmp_path, method, validation):
    column, cells = (",val/frechet", (",2", ",1")) if validation else ("", ("", ""))
    losses = "step,seconds,student/loss" + (",fake_score/loss" if method == "sid.SiD" else "")
    one, two = ((line + (",1" if method == "sid.SiD" else "")) for line in ("0,1,2.0", "9,2,1.0"))
    (tmp_path / "metrics.csv").write_text(f"{losses}{column}\n{one}{cells[0]}\n{two}{cells[1]}\n")
    (tmp_path / "config.yaml").write_text(f"{{model: {{class_path: distillkit.methods.{method}}}}}")
    assert ("validation" in " ".join(page_of(tmp_path).words)) == validation


def test_skipped_steps_stand_in_the_report_and_the_card(run):
    made = {"domain": "image", "num_steps": 1, "skipped": {"student": {"skipped": 3, "steps": 100}}}
    (run / "student" / "student.yaml").write_text(json.dumps(made))
    said = "Skipped were 3 of 100 steps of the student"
    assert said in " ".join(page_of(run).words)
    write_card(run / "student", "student", made, EVALUATION, None)
    assert said in (run / "student" / "README.md").read_text()
    os.remove(run / "evaluation.json")
    words = " ".join(page_of(run).words)
    assert said in words and "No evaluation yet" in words


def test_the_card_says_what_a_student_is_asked_and_names_metrics_that_were_measured(run):
    made = {"domain": "image", "num_steps": 1, "asks": {"low": "the small photographs"}}
    for better, said in (
        ({"frechet": "lower", "recall": "higher"}, "before they cost quality: check recall, not only"),
        ({"frechet": "lower"}, "before they cost quality.\n"),
    ):
        write_card(run / "student", "student", made, EVALUATION | {"better": better}, None)
        card = (run / "student" / "README.md").read_text()
        assert said in card and "- `low`: the small photographs\n" in card


def test_a_teachers_report_quotes_its_yaml(run):
    (run / "teacher").mkdir()
    (run / "teacher" / "teacher.yaml").write_text("{event_shape: [7, 7]}")
    page = page_of(run)
    assert "Teacher" in page.words and "{event_shape: [7, 7]}" in page.words and "Student" not in page.words
    assert "distilled from" not in " ".join(page.words)


def test_what_the_config_says_is_text(run):
    page = page_of(run)
    assert "</pre><script>alert(1)</script><img src='http://example.com/x.png'>" in " ".join(page.words)


def test_pictures_stand_with_the_student_between_its_comparisons(run):
    page = page_of(run)
    assert [image["alt"] for image in page.all("img")] == [
        "Teacher at its best, 35 network passes",
        "Student, 1 network pass",
        "Teacher at 1 step, 1 network pass",
        "Side by side",
        "step 200",
    ]
    assert [image.get("class") for image in page.all("img")] == ["small"] * 4 + [None]


@pytest.mark.parametrize("missing", ["metrics.csv", "evaluation.json", "config.yaml", "samples", "student"])
def test_what_is_missing_is_left_out(run, missing):
    os.rename(run / missing, run.parent / f"{run.name}-{missing}")
    page = page_of(run)
    heads = {"metrics.csv": "Curves", "evaluation.json": "Quality and cost of a sample", "samples": "Samples"}
    for piece, head in heads.items():
        assert (head in page.words) == (piece != missing)
    assert ("No evaluation yet" in " ".join(page.words)) == (missing == "evaluation.json")


def test_what_is_no_picture_is_left_out(run):
    """What a broken disk or another program left among the samples costs nobody the report."""
    before = write_report(run).read_text()
    (run / "samples" / "other.png").write_text("no picture")
    (run / "samples" / "student.gif").write_bytes(b"GIF89a")
    (run / "samples" / "folder.png").mkdir()
    assert write_report(run).read_text() == before


def test_an_interrupted_run_is_said_to_be_one(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,seconds,student/loss\n0,1,2.0\n49,2,1.0\n99")  # cut in a line
    (tmp_path / "config.yaml").write_text("{trainer: {max_steps: 400}, model: {_target_: distillkit.methods.sid.SiD}}")
    page = page_of(tmp_path)
    assert "100 of 400 planned" in page.words and "SiD" in page.words


@pytest.mark.parametrize(
    "seconds, said",
    [(0.4, "0 s"), (59.7, "1 min 0 s"), (110, "1 min 50 s"), (119.7, "2 min 0 s"), (3599.6, "1 h 0 min 0 s")],
)
def test_wall_time_is_rounded_once(tmp_path, seconds, said):
    (tmp_path / "metrics.csv").write_text(f"step,seconds,student/loss\n0,0.1,2.0\n99,{seconds},1.0\n")
    words = page_of(tmp_path).words
    assert words[words.index("Wall time") + 1] == said


@pytest.mark.parametrize("planned, said", [(110, "110"), (120, "100 of 120 planned"), (-1, "100")])
def test_a_last_step_between_two_logged_ones_is_no_interruption(tmp_path, planned, said):
    (tmp_path / "metrics.csv").write_text("step,seconds,student/loss\n0,1,2.0\n99,2,1.0\n")
    (tmp_path / "config.yaml").write_text(f"trainer: {{max_steps: {planned}, log_every_n_steps: 20}}")
    words = page_of(tmp_path).words
    assert words[words.index("Optimiser steps") + 1] == said


def test_what_moves_is_shown_moving(run):
    frames = [Image.new("L", (600, 8), 90 * i) for i in range(3)]
    frames[0].save(run / "samples" / "student.gif", save_all=True, append_images=frames[1:])
    images = {tag["alt"]: tag for tag in page_of(run).all("img")}
    student = images["Student, 1 network pass"]
    assert student["src"].startswith("data:image/gif;base64,") and "class" not in student
    assert base64.b64decode(student["src"].partition(",")[2]) == (run / "samples" / "student.gif").read_bytes()
    assert images["Side by side"]["src"].startswith("data:image/png;base64,")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no metrics.csv, evaluation.json, config.yaml, student or teacher"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_report(run, monkeypatch):
    (run / "report.html").write_text("old")

    def fail(*args):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(run)
    assert (run / "report.html").read_text() == "old"
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_the_same_run_gives_the_same_report(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


# The table


def test_table_puts_the_headline_first_and_marks_the_best():
    table = quality_table(EVALUATION)
    labels = [column["label"] for column in table["columns"]]
    assert labels == ["", "steps", "passes", "ms per sample", "faster", "Frechet ↓", "Recall ↑", "Ink → real"]
    cells = {row["cells"][0]["text"]: row["cells"] for row in table["rows"]}
    assert [cell["text"] for cell in cells["student"][1:]] == ["1", "1", "0.100", "31×", "0.410", "0.500", "0.300"]
    assert [cell["text"] for cell in cells["real data"][1:]] == ["–", "–", "–", "–", "0.0200", "0.900", "0.310"]
    best = {
        (name, label) for name, row in cells.items() for label, cell in zip(labels, row, strict=True) if cell["best"]
    }
    assert best == {
        ("teacher at its best", "Frechet ↓"),
        ("teacher at its best", "Recall ↑"),
        ("student", "Ink → real"),
    }


def test_sounds_say_how_many_times_faster_than_they_play_they_are_made():
    sounds = deepcopy(EVALUATION)
    for row, plays in zip(sounds["rows"][:2], (24.0, 0.75), strict=True):
        row["real_time"] = plays
    table = quality_table(sounds)
    place = [column["label"] for column in table["columns"]].index("real time")
    assert [row["cells"][place]["text"] for row in table["rows"]] == ["24×", "0.75×", *"–" * (len(table["rows"]) - 2)]
    assert verdict(sounds) == verdict(EVALUATION)[:-1] + "; 24× real time."
    worse = deepcopy(sounds)
    worse["rows"][0]["metrics"]["frechet"] = 1e6
    assert "failed" in verdict(worse) and "real time" not in verdict(worse)


def test_real_data_comes_last_and_ragged_rows_are_fine():
    evaluation = {
        "headline": "frechet",
        "rows": [{"name": "real data"}, {"name": "student", "metrics": {"frechet": 1}}],
    }
    table = quality_table(evaluation)
    assert [row["kind"] for row in table["rows"]] == ["student", "real"]
    assert [cell["text"] for cell in table["rows"][1]["cells"]] == ["real data", "–"]


def with_baseline(frechet: float) -> dict:
    evaluation = deepcopy(EVALUATION)
    metrics = {"recall": 0.99, "frechet": frechet, "ink": 0.31}
    evaluation["rows"].insert(3, {"name": "bicubic", "kind": "baseline", "metrics": metrics})
    return evaluation


def test_a_baseline_stands_between_models_and_real_data_and_takes_no_part():
    evaluation = with_baseline(0.01)
    table, plain = quality_table(evaluation), quality_table(EVALUATION)
    assert [row["kind"] for row in table["rows"]] == ["student", "teacher", "teacher", "baseline", "real"]
    (baseline,) = [row for row in table["rows"] if row["kind"] == "baseline"]
    assert [cell["text"] for cell in baseline["cells"]] == ["bicubic", *"––––", "0.0100", "0.990", "0.310"]
    assert [row for row in table["rows"] if row is not baseline] == plain["rows"]  # with the same best in each column
    assert {dot["name"]: dot["kind"] for dot in strip(evaluation)["dots"]}["bicubic"] == "baseline"


def test_strip_is_logarithmic_when_values_spread():
    dots = strip(EVALUATION)["dots"]
    assert [dot["name"] for dot in dots] == ["real data", "teacher at its best", "student", "teacher at 1 step"]
    assert dots[0]["at"] == 0 and dots[-1]["at"] == pytest.approx(100)
    assert dots[2]["at"] == pytest.approx(100 * np.log(0.41 / 0.02) / np.log(2.9 / 0.02))
    near = strip(without("real data", "teacher at 1 step"))  # 0.38 and 0.41: linear from zero, no exaggeration
    assert not near["log"] and near["dots"][0]["at"] == pytest.approx(100 * 0.38 / 0.41)


def test_table_in_the_terminal():
    text = io.StringIO()
    Console(file=text, width=80).print(evaluation_table(EVALUATION))
    shown = text.getvalue()
    assert verdict(EVALUATION) in " ".join(shown.split())
    header = next(line for line in shown.splitlines() if line.lstrip().startswith("student"))
    assert header.split()[0] == "student" and header.rstrip().endswith("real data")
    assert re.search(r"Frechet ↓ +0\.410 ", shown) and re.search(r"faster +31× ", shown)
    assert "Ink → real" in shown and "…" not in shown


def test_names_of_metrics():
    names = {"frechet": "Frechet", "mmd": "MMD", "sliced_w2": "Sliced w2", "psnr_y": "PSNR y", "": ""}
    assert {name: pretty(name) for name in names} == names
    assert pretty("teacher_psnr_y") == "Teacher PSNR y"


def test_numbers():
    assert [number(x) for x in (0.41, 12.34, 123.4, 1234.5, 3.1e-5, 0.0, 7, 2000, None, float("nan"))] == [
        *("0.410", "12.3", "123", "1,234", "3.10e-05", "0.00", "7", "2,000", "–", "nan")
    ]
    assert [times(x) for x in (1.0789, 4.04, 31.3, 1234.0, None)] == ["1.08×", "4.0×", "31×", "1,234×", "–"]


# The curves


def test_smoothing_keeps_a_constant_and_follows_a_slope_without_lag():
    assert np.allclose(smooth(np.full(300, 2.0)), 2.0)
    ramp = np.arange(300.0)
    assert np.allclose(smooth(ramp)[30:-30], ramp[30:-30])
    noise = np.random.default_rng(0).normal(size=2000)
    assert (
        smooth(noise).std() < 0.12 * noise.std()
    )  # Gaussian of width 50: 1 / sqrt(2 sqrt(pi) 50) = 0.075, at the ends more


def test_axis_is_logarithmic_for_decades_and_deaf_to_spikes():
    assert axis(np.geomspace(0.1, 10, 100))[0] == "log"
    assert axis(np.linspace(1, 5, 100))[0] == "linear"
    assert axis(np.linspace(-1, 50, 100))[0] == "linear"
    spike = np.concatenate([np.linspace(1, 2, 999), [1e6]])
    scale, (low, high) = axis(spike)
    assert scale == "linear" and 0.9 < low < 1.1 and 1.9 < high < 2.2
    low, high = axis(np.zeros(10))[1]
    assert low < 0 < high


def test_thinning_keeps_every_extreme():
    values = np.random.default_rng(0).normal(size=10_000)
    values[[1234, 8765]] = 50, -50
    steps, kept = thin(np.arange(10_000), values)
    assert len(kept) <= 600 and kept.max() == 50 and kept.min() == -50
    assert (values[steps] == kept).all() and (np.diff(steps) > 0).all()


@pytest.mark.parametrize("num", [2, 30, 3000])
def test_curves_are_valid_svg_in_the_colours_of_the_page(num):
    svg = curve(np.arange(num), np.geomspace(5, 0.01, num), num - 1)
    root = ET.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
    assert root.get("viewBox") and not root.get("width")
    assert "var(--line)" in svg and "var(--rule)" in svg and "currentColor" in svg and "#0a0b0" not in svg
    assert "http" not in svg and "<style" not in svg and len(svg) < 60_000
    assert "0.01" in [text.text for text in root.iter("text")]  # plain numbers on the logarithmic axis


# The card


def rows_of(card):
    return [line for line in card.splitlines() if line.startswith("|")]


def test_card_of_a_student(tmp_path):
    folder = tmp_path / "quick"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "samples.png")
    config = {"domain": "image", "num_steps": 1, "data_license": "CC BY 4.0", "teacher": {"id": "a|b"}}
    write_card(folder, "student", config, changed(0, ink=0.3), "python -m distillkit fit method=dmd")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# image: one-step student of digits-8\n")
    assert 'distillkit.load_student("quick")' in card and "python -m distillkit fit method=dmd" in card
    assert "![Samples](samples.png)" in card and f"**{verdict(EVALUATION)}**" in card
    assert "- The data: CC BY 4.0" in card and "Not stated" not in card
    assert "Measured with 2,000 samples, seed 1234." in card
    table = rows_of(card)
    assert len(table) == 6 and {line.count("|") for line in table} == {9}
    assert "| teacher at its best | 18 | 35 | 3.10 | 1.00× | **0.380** | **0.600** | 0.350 |" in table
    assert "&" not in card  # text, not HTML
    assert "\n\n\n" not in card and card.endswith("\n")


def test_card_of_a_teacher_without_evaluation(tmp_path):
    write_card(tmp_path, "teacher", {"id": "digits"}, None, None)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "SavedTeacher(" in card and "load_student" not in card
    assert "It has not been evaluated." in card and "Not stated." in card
    assert "samples.png" not in card and rows_of(card) == []


def test_card_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match='"student" or "teacher", got \'pupil\''):
        write_card(tmp_path, "pupil", {}, None, None)


NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](https://evil.example)",
    "![pixel](https://evil.example/p.png)",
    "https://evil.example www.evil.example mailto:a@evil.example",
    "a | b | c",
    "``` \n\n# Heading\n\n<b>bold</b>\n```",
    "*stars* _lines_ ~~gone~~ `code` &lt;b&gt; \\",
    '") or __import__("os").system("true") or ("',
]


def test_a_card_names_the_classes_that_can_be_given(tmp_path):
    config = {"num_steps": 1, "classes": {"label": 10, "timbre": 3}, "names": {"timbre": ["sine", "saw", "*"]}}
    write_card(tmp_path, "student", config, None, None)
    card = (tmp_path / "README.md").read_text()
    assert "By default it is asked about all classes in turn. `sample(n, cond)` takes others:\n\n- `label`" in card
    assert "- `label`: the class of each sample, a number from 0 to 9\n" in card
    assert "- `timbre`: the class of each sample, a number from 0 to 2: 0 sine, 1 saw, 2 \\*\n" in card
    many = {"num_steps": 1, "classes": {"label": 10}, "names": {"label": [f"c{i}" for i in range(10)]}}
    write_card(tmp_path, "student", many, None, None)
    assert "6 c6, 7 c7 and 2 more\n" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("text", NASTY)
def test_nothing_of_a_folder_becomes_markup_in_its_card(text, tmp_path):
    """The text is shown literally by a renderer with HTML, tables, strikes and bare addresses."""
    folder = tmp_path / text.replace("/", "-").replace("\n", " ")
    folder.mkdir()
    config = {
        "domain": text,
        "method": text,
        "num_steps": text,
        "license": text,
        "teacher": {"id": text},
        "distillkit": text,
        "classes": {"label": 1},
        "names": {"label": [text]},
    }
    write_card(folder, "student", config, changed(0, ink=0.3), f"python {text}")
    plain = {"domain": "x", "method": "x", "num_steps": 1, "license": "x", "teacher": {"id": "x"}, "distillkit": "x"}
    plain |= {"classes": {"label": 1}, "names": {"label": ["x"]}}
    (tmp_path / "plain").mkdir()
    write_card(tmp_path / "plain", "student", plain, changed(0, ink=0.3), "python x")

    def tokens(place):
        kinds = []
        for token in MarkdownIt("gfm-like", {"linkify": False}).parse((place / "README.md").read_text()):
            kinds += [token.type, *(inner.type for inner in token.children or () if inner.type != "text")]
        return [kind for kind in kinds if kind != "text_special"]

    assert tokens(folder) == tokens(tmp_path / "plain")
    card = (folder / "README.md").read_text()
    code = card[card.index("```python") : card.index("```\n\nBy default")]
    compile(code.removeprefix("```python"), "card", "exec")
    assert not re.search(
        r"(?<!\\)<(script|img|b)\b|https://|www\.evil", card.replace(code, "").replace(made_by(card), "")
    )


def made_by(card):
    """The command, and the teacher's name: both are shown as code."""
    return card[card.index("## Made by") : card.index("## Limits")]


@pytest.mark.parametrize("text", NASTY)
def test_nothing_of_a_folder_becomes_markup_in_the_report(text, tmp_path):
    (tmp_path / "student").mkdir()
    yaml_text = yaml.safe_dump({"domain": text, "method": text, "teacher": {"id": text}, "distillkit": text})
    (tmp_path / "student" / "student.yaml").write_text(yaml_text)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"class_path": f"a.{text}"}, "data": text}))
    page = write_report(tmp_path).read_text()
    assert "<script>alert" not in page and "<img src=x" not in page and "<b>bold" not in page
