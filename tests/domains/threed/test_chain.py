"""The two stages in a row, from students to files."""

import pytest
import torch
from torch import nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow
from distillkit.networks.dit import DiT
from distillkit.networks.set_dit import SetDiT
from distillkit.spec import Recorded
from distillkit.students.base import Student
from distillkit.students.few_step import FewStepStudent
from domains.threed import chain
from domains.threed.lattice import shell, voxel_sets

CLASSES = {"label": 5}


class Blocks(Recorded, nn.Module):
    """A structure that can be foretold: class k occupies the first 2 k layers along x."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x, time, cond):
        layer = torch.arange(16)[:, None, None] < 2 * cond["label"][:, None, None, None]
        return layer[:, None].expand_as(x).float() * 2 - 1


def student(network: nn.Module, event_shape, context=(), prediction="x0", classes=CLASSES) -> Student:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    denoiser = Denoiser(network, RectifiedFlow(), prediction)
    return FewStepStudent(denoiser, [1.0, 0.5], event_shape, classes, context=context).eval()


def structure() -> Student:
    return student(Blocks(), (1, 16, 16, 16))


def features(classes=CLASSES) -> Student:
    network = SetDiT((640, 11), width=8, depth=1, heads=2, classes=classes)
    return student(network, (640, 11), ("coords", "mask"), "edm", classes)


def test_the_second_stage_lives_on_the_shell_of_the_first():
    first, second = structure(), features()
    samples, cond = chain.sample_chain(first, second, 4, seed=3)
    solid = first.sample(4, seed=3)[:, 0] > 0
    coords, mask = voxel_sets(shell(solid))
    assert torch.equal(cond["coords"], coords) and torch.equal(cond["mask"], mask)
    assert cond["label"].tolist() == [0, 1, 2, 3]
    assert mask.sum(1).tolist() == [0, 2 * 16**2, 4 * 16**2 - 2 * 14**2, 6 * 16**2 - 4 * 14**2]
    assert samples.shape == (*mask.shape, 11) and samples.isfinite().all()
    assert (samples[~mask] == 0).all() and (samples[mask] != 0).all()
    again, _ = chain.sample_chain(first, second, 4, {"label": torch.arange(4)}, seed=3)
    other, _ = chain.sample_chain(first, second, 4, seed=4)
    assert torch.equal(again, samples) and not torch.equal(other, samples)


def test_the_stages_do_not_share_their_noise(monkeypatch):
    seeds = []
    sample = FewStepStudent.sample
    monkeypatch.setattr(FewStepStudent, "sample", lambda s, n, c, seed: seeds.append(seed) or sample(s, n, c, seed))
    chain.sample_chain(structure(), features(), 2, seed=5)
    assert seeds[0] == 5 and seeds[1] != 5


def test_what_is_no_pair_is_refused():
    with pytest.raises(ValueError, match="first student must make volumes"):
        chain.sample_chain(features(), features(), 2)
    with pytest.raises(ValueError, match="second student must make features"):
        chain.sample_chain(structure(), structure(), 2)
    with pytest.raises(ValueError, match="know different classes"):
        chain.sample_chain(structure(), features({"label": 4}), 2)


@pytest.fixture
def folders(tmp_path):
    """Student folders of both stages.

    They have a small DiT, because the command line does not trust networks of the tests.
    """
    first = student(DiT((1, 16, 16, 16), 8, 1, 2, 4, CLASSES), (1, 16, 16, 16), prediction="edm")
    first.save(tmp_path / "structure")
    features().save(tmp_path / "features")
    return tmp_path


def test_the_command_line_writes_files(folders, capsys, monkeypatch):
    monkeypatch.setattr(chain.media, "FRAMES", 2)  # noise has many faces
    command = ["sample", str(folders / "structure"), str(folders / "features"), "-n", "2", "--label", "3"]
    assert chain.main([*command, "--out", str(folders / "out")]) == 0
    assert "2 shapes in" in capsys.readouterr().out
    names = {path.suffix for path in (folders / "out").iterdir()}
    assert {".png", ".ply"} <= names
    assert chain.main([*command, "--out", str(folders / "out")]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "say `python -m domains.threed.chain"),
        (["sample", "nowhere", "features"], "there is no student folder nowhere"),
        (["sample", "structure", "features", "--label", "9"], "0 to 4"),
        (["sample", "structure", "features", "-n", "0"], "-n must be at least 1"),
        (["fit", "stage=features"], "set for you"),
    ],
)
def test_wrong_commands_are_one_sentence(words, message, folders, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    assert chain.main(words) == 2
    assert message in capsys.readouterr().err


def test_fit_distils_both_stages_with_the_same_words(monkeypatch, tmp_path):
    ran = []

    def run(command, check):
        ran.append(command[1:])
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(chain.subprocess, "run", run)
    monkeypatch.setattr(chain, "sample", lambda argv: ran.append(argv))
    assert chain.main(["fit", "method=sid", "--out", str(tmp_path), "model.num_steps=2", "-n", "3"]) == 0
    for command, stage in zip(ran, chain.STAGES, strict=False):
        words = ["domain=threed", f"stage={stage}", "method=sid", "model.num_steps=2", "--out", str(tmp_path / stage)]
        assert command == ["-m", "distillkit", "fit", *words]
    folders = [str(tmp_path / stage) for stage in chain.STAGES]
    assert ran[2] == [*folders, "-n", "3", "--out", str(tmp_path / "shapes")]


def test_a_stage_that_fails_ends_the_chain(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(chain.subprocess, "run", lambda command, check: type("Done", (), {"returncode": 1}))
    assert chain.main(["fit", "--out", str(tmp_path)]) == 1
    assert "stage structure was not distilled" in capsys.readouterr().err
