"""Folders as sources: the one rule by which files count, and what is said of the others."""

import json
import os
import warnings
from pathlib import Path

import pytest

from distillkit import sources
from distillkit.sources import NAMED, Source, drawn, first_whole, listed


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    return root


def source(root, *suffixes, **settings):
    return Source(root, suffixes or (".png", ".jpg"), "image", **settings)


def names(found, files=None):
    return [found.name(file) for file in (found.files if files is None else files)]


def test_hidden_files_and_folders_are_none(tmp_path):
    debris = (".a.png", "._b.png", ".git/c.png", "cat/.ipynb_checkpoints/d.png", "__MACOSX/cat/._e.png", "@eaDir/f.png")
    found = source(put(tmp_path / ".cache", "cat/1.png", "cat/Thumbs.db", ".DS_Store", *debris))
    assert names(found) == ["cat/1.png"] and found.unread == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found.classes(found.without({})) == (["cat"], [0])


def test_suffixes_count_in_either_case_and_may_have_two_parts(tmp_path):
    put(tmp_path, "a.PNG", "b.Jpg", "c.pdb.gz", "D.PDB.GZ", "e.gz", "png", "f.png.bak")
    assert names(source(tmp_path)) == ["a.PNG", "b.Jpg"]
    assert names(source(tmp_path, ".pdb.gz")) == ["D.PDB.GZ", "c.pdb.gz"]


def test_a_folder_named_like_a_file_is_a_folder(tmp_path):
    found = source(put(tmp_path, "x.png/1.png", "x.png/y.jpg/2.png"))
    assert names(found) == ["x.png/1.png", "x.png/y.jpg/2.png"] and found.classes(found.files) == (["x.png"], [0, 0])


def test_links_are_followed_and_every_file_counts_once(tmp_path):
    outside = put(tmp_path / "outside", "1.png", "2.png")
    root = put(tmp_path / "data", "b/own.png")
    links = {
        "a/outer": outside,
        "a/again.png": root / "b/own.png",
        "b/loop": root,
        "c": outside,
        "d/1.png": outside / "1.png",
    }
    links |= {"e/nowhere.png": root / "nothing", "e/self.png": root / "e/self.png"}
    for name, goal in links.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(goal)
    found = source(root)
    # links in the order of their names, those of the first level before: class c is the folder, and
    # has it
    assert names(found) == ["b/own.png", "c/1.png", "c/2.png"]
    faults = {found.name(path): why for path, why in found.faults.items()}
    twice = dict.fromkeys(("a/again.png", "a/outer", "b/loop", "d/1.png"), "is a link to what is there already")
    assert faults == twice | dict.fromkeys(("e/nowhere.png", "e/self.png"), "is no file")
    with pytest.warns(UserWarning, match=r"left out: a/again.png \(is a link to what is there already\), "):
        found.without({})


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(put(tmp_path, "1.png") / "pipe.png")
    found = source(tmp_path)
    assert names(found) == ["1.png"] and found.faults == {tmp_path / "pipe.png": "is no file"}


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    put(tmp_path, "a/1.png", "b/2.png")
    real = os.listdir

    def listdir(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.warns(UserWarning, match=r"left out: b \(cannot be opened: Permission denied\)"):
        assert len(source(tmp_path).without({})) == 1


def test_unread_types_faults_and_empty_classes_are_said_by_name(tmp_path):
    put(tmp_path, "a/1.png", "a/2.png", "b/1.tif", "b/2.TIF", "c/README", "captions.csv")
    (tmp_path / "d").mkdir()
    found = source(tmp_path, beside=["captions.csv"])
    with pytest.warns(UserWarning) as said:
        kept = found.without({tmp_path / "a/2.png": "ends early"})
        assert found.classes(kept) == (["a"], [0])
    first, second = (str(warning.message) for warning in said)
    assert first == (
        f"{tmp_path}: left out: a/2.png (ends early); passed over, for .png, .jpg are read: 2 .tif (b/1.tif, b/2.TIF), 1 "
        f"without a suffix (c/README)"
    )
    assert second == f"{tmp_path}: no image in b, c, d, which are no classes therefore; the classes are, from 0 on, a"


def test_a_folder_without_anything_usable_is_refused_with_the_reasons(tmp_path):
    with pytest.raises(ValueError, match=r"is not a folder; give the path of one with .png, .jpg files"):
        source(tmp_path / "nowhere")
    put(tmp_path, "1.png", "2.tif")
    with pytest.raises(
        ValueError, match=r"holds no image .* left out: 1.png \(is cut\); passed over, for .png, .jpg are read: 1 .tif"
    ):
        source(tmp_path).without({tmp_path / "1.png": "is cut"})


def test_flat_files_beside_class_folders_are_refused_by_name(tmp_path):
    found = source(put(tmp_path, "a/1.png", "2.png"))
    with pytest.raises(ValueError, match="both flat and in class folders.*: 2.png"):
        found.classes(found.files)
    assert found.classes([tmp_path / "2.png"]) == ([], None)


def sizes(found):
    """Every file's facts, and the names of those that were looked at for them."""
    looked = []

    def look(path):
        looked.append(path.name)
        return {"size": len(path.read_text())}

    return {found.name(path): facts["size"] for path, facts in found.facts(look).items()}, sorted(looked)


def test_a_folder_keeps_what_was_found_until_a_file_changes(tmp_path):
    put(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    assert sizes(source(tmp_path)) == ({"a/1.png": 1, "a/2.png": 1, "b/3.png": 1}, ["1.png", "2.png", "3.png"])
    assert sizes(source(tmp_path)) == ({"a/1.png": 1, "a/2.png": 1, "b/3.png": 1}, [])
    (tmp_path / "a/1.png").write_text("longer")
    (tmp_path / "b/3.png").rename(tmp_path / "b/4.png")
    assert sizes(source(tmp_path)) == ({"a/1.png": 6, "a/2.png": 1, "b/4.png": 1}, ["1.png", "4.png"])
    index = tmp_path / ".distillkit-images.json"
    assert sorted(json.loads(index.read_text())["files"]) == ["a/1.png", "a/2.png", "b/4.png"]
    for damage in ("", "{", "[]", "null", '{"format": 1}', '{"format": 1, "files": [1]}', '{"format": 0, "files": {}}'):
        index.write_text(damage)
        assert sizes(source(tmp_path))[1] == ["1.png", "2.png", "4.png"]
    index.write_text(json.dumps({"format": sources.FORMAT, "files": {"a/1.png": 3, "a/2.png": {"stamp": None}}}))
    assert sizes(source(tmp_path))[1] == ["1.png", "2.png", "4.png"]
    assert sizes(source(tmp_path))[1] == []


def test_a_folder_that_may_not_be_written_to_is_looked_at_anew(tmp_path, monkeypatch):
    put(tmp_path, "1.png")

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sources, "write_text", refused)
    for _ in range(2):
        with pytest.warns(
            UserWarning, match="cannot be written .*Permission denied.*, so every run has to look at all"
        ):
            assert sizes(source(tmp_path)) == ({"1.png": 1}, ["1.png"])


def test_a_long_look_says_how_far_it_is_and_keeps_what_it_has(tmp_path, monkeypatch, capsys):
    put(tmp_path, *(f"{i:02}.png" for i in range(40)))
    monkeypatch.setattr(sources, "PAUSE", 0.0)
    for name in ("PAUSE", "FIRST", "AGAIN"):
        monkeypatch.setattr(f"distillkit.progress.{name}", 0.0)
    found = source(tmp_path)

    def look(path):
        if path.name == "39.png":
            raise KeyboardInterrupt
        return {"size": 1}

    with pytest.raises(KeyboardInterrupt):
        found.facts(look)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"looking at {tmp_path}, once  98%  0:0")
    assert sizes(found)[1] == ["39.png"]


def test_a_file_that_vanishes_is_left_to_the_look(tmp_path):
    found = source(put(tmp_path, "1.png", "2.png"))
    (tmp_path / "1.png").unlink()
    assert [facts["there"] for facts in found.facts(lambda path: {"there": path.exists()}).values()] == [False, True]


def test_the_next_that_can_be_read_stands_in_and_the_others_are_named():
    def read(row):
        if row in (2, 3):
            raise ValueError(f"{row}.png is cut")
        return row * 10

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert first_whole(1, 4, read) == (1, 10)
    with pytest.warns(UserWarning, match="2.png is cut, 3.png is cut: the next one that can be read stands in"):
        assert first_whole(2, 4, read) == (0, 0)
    with pytest.raises(ValueError, match="none of 2 can be read: 3.png is cut and 1 more"):
        first_whole(1, 2, lambda row: read(row + 2))


def test_long_lists_end_with_how_many_more():
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(i) for i in range(NAMED + 3)]).endswith(f"{NAMED - 1} and 3 more")


def test_the_draw_is_each_names_own():
    few, many = ["a", "c"], ["a", "b", "c", "d", "\udcff"]  # the last as Linux gives names that are no UTF-8
    order = [many[i] for i in drawn(many, 0)]
    assert sorted(order) == sorted(many) and [name for name in order if name in few] == [few[i] for i in drawn(few, 0)]
    assert any(drawn(many, 0) != drawn(many, seed) for seed in range(1, 5))
