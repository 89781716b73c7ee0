"""Data of point sets: streets and recordings, their parts, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import Command

from domains.lidar.crops import Crops
from domains.lidar.data import Part, Scans, Streets

SMALL = {"num_full": 64, "num_part": 16, "held_out": 4}


def drawn(data) -> dict[str, set[str]]:
    """Of each part of data that are set up, the names of its views."""
    data.setup()
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return {name: {part.views[i].name for i in range(len(part.views))} for name, part in parts.items()}


def recorded(root: Path, sequences: dict[str, int]) -> Path:
    """A tree of KITTI's: sequences of so many scans each, half a metre apart, of 16 beams."""
    for name, num in sequences.items():
        (root / "sequences" / name / "velodyne").mkdir(parents=True)
        random, lines = np.random.default_rng(len(name)), []
        for i in range(num):
            ground = random.uniform([-20, -20, -2.1], [20, 20, -1.9], (1600, 3))
            np.c_[ground, random.uniform(0, 1, 1600)].astype("<f4").tofile(
                root / "sequences" / name / "velodyne" / f"{i:06}.bin"
            )
            lines.append(f"1 0 0 {i / 2} 0 1 0 0 0 0 1 0")
        (root / "sequences" / name / "poses.txt").write_text("\n".join(lines) + "\n")
    return root


def test_the_streets_are_split_by_scene():
    data = Streets(**SMALL)
    parts = {name: {view.partition("/")[0] for view in views} for name, views in drawn(data).items()}
    assert {name: len(scenes) for name, scenes in parts.items()} == {"train": 24, "val": 4, "test": 4}
    assert not set.intersection(parts["train"], parts["val"] | parts["test"]) and not parts["val"] & parts["test"]
    batch = data.train[torch.arange(3)]
    assert batch["data"].shape == (3, 64, 3) and batch["part"].shape == (3, 16, 3)
    assert data.conditions(2).keys() == {"part"} and data.real(2)["data"].shape == (2, 64, 3)


def test_sequences_are_in_one_part_alone(tmp_path):
    root = recorded(tmp_path, {f"{i:02}": 2 for i in range(5)})
    parts = {
        name: {view.partition("/")[0] for view in views} for name, views in drawn(Scans(str(root), **SMALL)).items()
    }
    assert {name: len(each) for name, each in parts.items()} == {"train": 3, "val": 1, "test": 1}
    assert len(set.union(*parts.values())) == 5


def test_sequences_are_chosen_by_name(tmp_path):
    root = recorded(tmp_path, {"00": 2, "01": 1, "08": 2})
    named = {"val": ["08"], "test": ["08"]}
    assert drawn(Scans(str(root), **named, **SMALL)) == {
        "train": {"00/000000", "00/000001", "01/000000"},
        "val": {"08/000000", "08/000001"},
        "test": {"08/000000", "08/000001"},
    }
    assert drawn(Scans(str(root), **named, train=["01"], **SMALL))["train"] == {"01/000000"}


def test_of_one_sequence_the_last_scans_are_held_out(tmp_path):
    root = recorded(tmp_path, {"drive": 10})
    parts = drawn(Scans(str(root), val=0.2, test=0.1, **SMALL))
    assert {name: sorted(int(view[-6:]) for view in views) for name, views in parts.items()} == {
        "train": [0, 1, 2, 3, 4, 5, 6],
        "val": [7, 8],
        "test": [9],
    }


def test_the_truth_of_a_scan_has_the_points_of_its_neighbours(tmp_path):
    data = Scans(str(recorded(tmp_path, {"drive": 10})), beams=None, **SMALL)
    data.setup()
    view = data.train.views[0]
    assert len(view.truth) > 1.2 * len(view.scan.points)


@pytest.mark.parametrize("what", ["zeros", "labels"])
def test_for_a_scan_that_cannot_be_read_the_next_one_stands_in(what, tmp_path):
    home = recorded(tmp_path, {"00": 5}) / "sequences" / "00"
    if what == "zeros":
        np.zeros((1600, 4), "<f4").tofile(home / "velodyne" / "000001.bin")
    else:
        (home / "labels").mkdir()
        np.full(7, 40, "<u4").tofile(home / "labels" / "000001.label")
    data = Scans(str(tmp_path), **SMALL)
    with pytest.warns(UserWarning, match="000001.bin has .*: the next one that can be read stands in"):
        assert drawn(data)["train"] == {"00/000000", "00/000002"}
        assert torch.isfinite(data.train[torch.arange(8)]["data"]).all()


def test_a_part_without_a_scan_that_can_be_read_says_so(tmp_path):
    home = recorded(tmp_path, {"00": 3}) / "sequences" / "00"
    np.zeros((1600, 4), "<f4").tofile(home / "velodyne" / "000002.bin")
    data = Scans(str(tmp_path), **SMALL)
    data.setup()
    with pytest.raises(ValueError, match="none of 1 can be read: .*000002.bin has no return"):
        data.test.views[0]


def test_more_views_than_are_kept_are_visited_in_windows():
    """Of a window of indices only as many views are read as are kept; another window has others."""

    class Numbered(Part):
        def __init__(self):
            super().__init__(None, range(1000))

        def __getitem__(self, number):
            return number

    crops = Crops(Numbered(), Streets(**SMALL).cut, 0)
    assert crops.together == 32 * Part.kept
    seen = [{crops._view(k * crops.together + i, np.random.default_rng(i)) for i in range(400)} for k in range(2)]
    assert all(len(views) <= Part.kept for views in seen) and len(seen[0] | seen[1]) > 1.5 * Part.kept
    assert Part(None, range(Part.kept)).together is None


@pytest.mark.parametrize(
    "given, words",
    [
        ({"num_full": 100, "num_part": 30}, "num_full .* multiple of num_part, 30"),
        ({"crop": 1.0}, "crop"),
        ({"beams": 0}, "beams"),
        ({"max_range": 1.0}, "max_range"),
        ({"reward_metric": "beauty"}, "reward_metric"),
    ],
)
def test_settings_without_sense_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Streets(**given)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"val": ["08"]}, "names of the sequences of data.val and of data.test"),
        ({"train": ["00"]}, "names of the sequences of data.val and of data.test"),
        ({"val": 0.0}, "val"),
        ({"val": ["00"], "test": ["7"]}, "no sequence '7'.*00"),
        ({}, "holds 2 scans in 1 sequences, too few"),
    ],
)
def test_parts_that_cannot_be_are_refused(tmp_path, given, words):
    root = recorded(tmp_path, {"00": 2})
    with pytest.raises(ValueError, match=words):
        Scans(str(root), **given, **SMALL).setup()


def test_recordings_train_from_the_command_line(tmp_path):
    root, out = recorded(tmp_path / "tree", {"00": 2, "01": 1, "08": 1}), tmp_path / "run"
    words = ["fit", "domain=lidar", "method=pretrain", "data=scans", f"data.path={root}", 'data.val=["08"]']
    words += ['data.test=["08"]', "data.num_full=64", "data.num_part=16", "data.held_out=4", "vars.codec.repeat=4"]
    words += ["network.channels=8", "trainer.max_steps=2", "model.steps=2", "vars.callbacks.finish.num_samples=2"]
    run = Command(*words, "--out", out)
    assert run.wait(300) == 0, run.stderr
    made = yaml.safe_load((out / "teacher" / "teacher.yaml").read_text())
    assert made["start"]["init_args"]["base"] == "part" and "classes" in made["provides"]
