"""Sounds on the page of a run and in a card."""

import base64

import pytest
from markdown_it import MarkdownIt
from PIL import Image

from distillkit.report import sounds
from distillkit.report.card import write_card
from distillkit.report.sounds import players, sounds_in
from tests.report.test_page import EVALUATION, Page, page_of, run  # noqa: F401

MODELS = ("student", "teacher_best", "real")


@pytest.fixture
def heard(run):  # noqa: F811
    """A run with two sounds of each model, of which the first have pictures."""
    for model in MODELS:
        folder = run / "samples" / model
        folder.mkdir()
        for i in range(2):
            (folder / f"sound_{i}.wav").write_bytes(f"{model} {i}".encode())
        Image.new("L", (300, 8)).save(folder / "sound_0.png")
    return run


def test_sounds_are_played_with_the_student_beside_its_teacher(heard):
    page = page_of(heard)
    audio = page.all("audio")
    captions = ["Teacher at its best, 35 network passes", "Student, 1 network pass", "Real data"]
    expected = [f"{caption}: sound {i}" for i in range(2) for caption in captions]
    assert [tag["aria-label"] for tag in audio] == expected
    assert all(tag.keys() == {"controls", "src", "aria-label"} for tag in audio)  # native controls, nothing by itself
    said = [base64.b64decode(tag["src"].removeprefix("data:audio/wav;base64,")).decode() for tag in audio]
    assert said == [f"{model} {i}" for i in range(2) for model in ("teacher_best", "student", "real")]
    assert [image["alt"] for image in page.all("img")][:3] == [f"Picture of {caption}" for caption in expected[:3]]
    words = " ".join(page.words)
    assert "the models' sounds of one number began as one draw" in words and "is linked" not in words
    assert page.all("a") == [] and page.all("script") == []


def test_sounds_too_large_for_the_page_are_linked(heard, monkeypatch):
    """The first three have 14, 9 and 6 bytes."""
    monkeypatch.setattr(sounds, "MOST", 29)
    page = page_of(heard)
    assert len(page.all("audio")) == 3 and "What is too large for this page is linked." in " ".join(page.words)
    assert [tag["href"] for tag in page.all("a")] == [
        f"samples/{model}/sound_1.wav" for model in ("teacher_best", "student", "real")
    ]
    monkeypatch.setattr(sounds, "MOST", 28)
    page = page_of(heard)
    assert len(page.all("audio")) == 0 and len(page.all("a")) == 6


def test_runs_without_sounds_say_nothing_of_them(run):  # noqa: F811
    page = page_of(run)
    assert page.all("audio") == [] and "sound" not in " ".join(page.words)


def test_names_of_files_are_text(heard, monkeypatch):
    strange = '" onerror="alert(1)"><b>&.mp3'
    (heard / "samples" / "student" / strange).write_bytes(b"")
    (tag,) = (tag for tag in page_of(heard).all("audio") if "onerror" in tag["aria-label"])
    assert tag.keys() == {"controls", "src", "aria-label"} and tag["src"] == "data:audio/mpeg;base64,"
    monkeypatch.setattr(sounds, "MOST", -1)
    page = page_of(heard)
    assert page.all("b") == [] and all(tag.keys() == {"href"} for tag in page.all("a"))
    assert "samples/student/%22%20onerror%3D%22alert%281%29%22%3E%3Cb%3E%26.mp3" in {
        tag["href"] for tag in page.all("a")
    }


def test_files_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("sound_10.wav", "sound_9.ogg", "sound_2.flac", "sound_2.png", "notes.txt", "a.mp3"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.wav").mkdir()
    assert [path.name for path in sounds_in(tmp_path)] == ["a.mp3", "sound_2.flac", "sound_9.ogg", "sound_10.wav"]
    assert sounds_in(tmp_path / "nowhere") == [] and players([], tmp_path) == []


def test_the_card_links_the_sounds_of_its_folder(heard):
    folder = heard / "student"
    for name in ("sound_0.wav", "a b](x)<y>.wav"):
        (folder / name).write_bytes(b"")
    write_card(folder, "student", {"domain": "image", "num_steps": 1}, EVALUATION, None)
    page = Page(MarkdownIt().render((folder / "README.md").read_text(encoding="utf-8")))
    assert [tag["href"] for tag in page.all("a")] == ["sound_0.wav", "a%20b%5D%28x%29%3Cy%3E.wav"]
    (folder / "sound_0.wav").unlink(), (folder / "a b](x)<y>.wav").unlink()
    write_card(folder, "student", {"domain": "image", "num_steps": 1}, EVALUATION, None)
    assert "To hear" not in (folder / "README.md").read_text(encoding="utf-8")
