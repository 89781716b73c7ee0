"""Students with a context: examples in their folder, errors in the words of the domain."""

import numpy as np
import pytest
import torch
from helpers import UNMEASURED

from distillkit import load_student, runs
from distillkit.cli import front
from distillkit.students.base import EXAMPLES
from domains.protein.data import ProteinData, lengths
from domains.threed.data import FeaturesData
from domains.video.data import MovingDigits

ASKED = "domains.protein.data.lengths([80, 120]) says 80 and 120 residues"
SMALL = ["trainer.max_steps=2", *UNMEASURED]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", runs.OUT):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def proteins(tmp_path_factory):
    """A run on chains in a file (random walks of 40 residues of 3.8 angstrom), with its teacher."""
    at, generator = tmp_path_factory.mktemp("proteins"), np.random.RandomState(0)
    steps = generator.randn(12, 40, 3)
    coords = (3.8 * steps / np.linalg.norm(steps, axis=-1, keepdims=True)).cumsum(1)
    np.savez(at / "chains.npz", coords=coords.reshape(-1, 3), offsets=np.arange(13) * 40)
    words = [
        "fit",
        "domain=protein",
        "data=chain_file",
        f"data.chains.path={at}/chains.npz",
        "data.batch_size=2",
        *SMALL,
    ]
    slow = ["method=pretrain", "network.width=8", "network.depth=1", "network.heads=2", "--out", str(at / "slow")]
    fast = [
        "method=dmd",
        "model.num_steps=1",
        "model.times=null",
        "teacher=folder",
        f"teacher.path={at}/slow/teacher",
        "--out",
        str(at / "run"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(at)
        for own in (slow, fast):
            patch.delenv(runs.OUT, raising=False)
            assert front.main([*words, *own]) == 0
    return at


def test_every_context_is_asked_for_in_words():
    for kind, context in ((ProteinData, ProteinData.context), (FeaturesData, FeaturesData.context)):
        assert kind.asks.keys() == set(context)
    video = MovingDigits(given=2)
    assert video.asks.keys() == set(video.context) == {"first"}


def test_a_student_samples_in_one_line(proteins):
    student = load_student(proteins / "run")
    mask = student.examples["mask"]
    assert 0 < len(mask) <= 16 and mask.sum(1).unique().tolist() == [40]
    chains = student.sample(5, seed=1)
    assert chains.shape == (5, *mask.shape[1:], 3) and chains.isfinite().all() and (chains[:, 40:] == 0).all()
    assert student.sample(2, lengths([40, 50], [0, 1])).shape == (2, 50, 3)


def test_what_is_missing_is_said_in_the_domains_words(proteins, tmp_path):
    student = load_student(proteins / "run")
    for cond in ({"label": [0, 1]}, {"label": [0, 1], **lengths([40])}):
        with pytest.raises(ValueError) as error:
            student.sample(2, cond)
        assert str(error.value) == f"this student needs cond['mask'] for 2 samples: the length of each chain; {ASKED}"
    with pytest.raises(
        ValueError, match=r"must hold true or false for each place of 2 sets, got int64 \[2\]: .*length of"
    ):
        student.sample(2, {"label": [0, 1], "mask": [40, 50]})
    with pytest.raises(ValueError, match=r"cond\['mask'\] must hold numbers"):
        student.sample(2, {"label": [0, 1], "mask": [[True], [True, False]]})
    student.examples = {}
    with pytest.raises(ValueError, match="this student needs cond.*the length of each chain"):
        student.sample(2)


def test_the_command_needs_neither_the_data_nor_trust(proteins, tmp_path, capsys):
    kept = proteins / "chains.npz"
    assert front.main(["sample", str(proteins / "run"), "-n", "2", "--out", "unread"]) == 0
    assert "no picture: " in capsys.readouterr().out  # the file is there, and may not be read
    kept.rename(proteins / "away.npz")
    try:
        assert front.main(["sample", str(proteins / "run"), "-n", "20", "--out", "gone"]) == 0
    finally:
        (proteins / "away.npz").rename(kept)
    found = np.load(tmp_path / "gone" / "samples.npz")
    assert found["samples"].shape == (20, 64, 3) and found["mask"].sum(1).tolist() == [40] * 20
    assert (tmp_path / "gone" / "samples.png").is_file() and not (tmp_path / "unread" / "samples.png").exists()


def test_a_folder_without_examples_asks_for_its_data(proteins, tmp_path, capsys):
    examples = proteins / "run" / "student" / EXAMPLES
    content = examples.read_bytes()
    examples.unlink()
    try:
        assert front.main(["sample", str(proteins / "run"), "-n", "2", "--out", "a"]) == 2
        assert f"--trust {proteins}/chains.npz" in capsys.readouterr().err
        assert front.main(["sample", str(proteins / "run"), "-n", "2", "--out", "a", "--trust", str(proteins)]) == 0
    finally:
        examples.write_bytes(content)


def test_a_large_condition_is_carried_once_and_a_huge_one_not(proteins, tmp_path):
    student = load_student(proteins / "run")
    label, student.event_shape = torch.arange(16) % 3, (2**21, 3)
    for places, num in ((64, 16), (2**18, 3), (2**21, 1)):
        student.save(
            tmp_path / str(places), examples={"label": label, "mask": torch.ones(16, places, dtype=torch.bool)}
        )
        assert len(student.examples["mask"]) == num
    student.examples = {}
    huge = torch.ones(1, 1, dtype=torch.bool).expand(16, 2**27)
    student.save(tmp_path / "huge", examples={"label": label, "mask": huge})
    assert not student.examples and not (tmp_path / "huge" / EXAMPLES).exists()
