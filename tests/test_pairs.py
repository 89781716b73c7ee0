"""Pairs of a teacher: equal in memory and on disk, made once, repaired, and refused if foreign."""

import math
import multiprocessing
import os
import shutil
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
import yaml
from filelock import FileLock
from helpers import CLASSES, gaussian, neural, same, trainer, wake
from helpers import Pairs as Plane
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import save_file

from distillkit import cache, progress
from distillkit import pairs as store
from distillkit.data import TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow
from distillkit.discrete.exact import Table, potts
from distillkit.discrete.process import Absorbing
from distillkit.discrete.teacher import DiscreteTeacher
from distillkit.errors import Failure, UsageError
from distillkit.files import read_yaml, write_yaml
from distillkit.methods.dmd import DMD
from distillkit.methods.lsd import LSD
from distillkit.networks.mlp import MLP
from distillkit.pairs import Pairs, shard_seed
from distillkit.teachers.base import Teacher

LABELS = TensorData({"label": torch.arange(48) % 2})
STEPS = {"steps": 3}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Shards of 16 pairs."""
    monkeypatch.setattr(store, "SHARD", 16)


class Counting(Teacher):
    """The small neural teacher; counts what it makes."""

    def __init__(self, seed=0, **settings):
        network = wake(MLP([2], width=8, depth=1, classes=CLASSES), seed)
        super().__init__(Denoiser(network, RectifiedFlow(), "edm", 1.0), (2,), CLASSES)
        self.made = 0

    def generate(self, num, *rest, **options):
        self.made += num
        return super().generate(num, *rest, **options)


def made(teacher, num=40, path=None, seed=3, data=LABELS, **settings):
    pairs = Pairs(teacher, num, path, **(STEPS | settings))
    pairs.make(data, seed)
    return pairs


def every(pairs):
    """All its pairs."""
    return list(pairs.draw(torch.arange(pairs.num)))


def numbers(folder):
    return sorted(path.name for path in folder.glob("pairs-*"))


# The definition of pairs


def test_a_pair_is_the_teachers_own_sample_from_the_noise_for_the_condition():
    teacher = neural()
    noise, y, cond = every(made(teacher, 10, kappa=2.0))
    assert torch.equal(noise, teacher.noise(10, cond, 3)) and cond["label"].tolist() == [0, 1] * 5
    assert torch.equal(y, teacher.sample(noise, cond, 3, kappa=2.0))
    assert torch.equal(every(made(teacher, 10, solver="ddim"))[1], teacher.sample(noise, cond, 3, "ddim"))


def test_up_to_a_shard_they_are_what_the_teacher_makes_in_one_call(monkeypatch):
    """At the shard's real size pairs of noise and of tokens are one call's samples, bit for bit."""
    monkeypatch.undo()
    teacher = neural()
    assert store.SHARD == 4096
    noise, y, cond = every(made(teacher, 1100, steps=None, kappa=1.5))
    assert torch.equal(noise, teacher.noise(1100, cond, 3))
    assert torch.equal(y, teacher.generate(1100, cond, 3, kappa=1.5))
    model = LSD(teacher, num_pairs=512, kappa=1.5, guard=0)
    model.seed = 3
    model._trainer = SimpleNamespace(datamodule=SimpleNamespace(train=LABELS), strategy=None, global_step=2)
    model._trainer.world_size = model._trainer.accumulate_grad_batches = 1
    model._trainer.global_rank = 0
    model.on_fit_start()
    rows = (model.rand(20, "pairs") * 512).long()
    noise = teacher.noise(512, {}, 3)
    cond = {"label": torch.arange(512) % 48 % 2}
    expected = noise[rows], teacher.generate(512, cond, 3, kappa=1.5)[rows], {"label": cond["label"][rows]}
    assert same(list(model.pairs.random(20, model.generator("pairs"))), list(expected))
    tokens = DiscreteTeacher(Table(potts(3, 4, 1.5), Absorbing(3)), (4,))
    pairs = Pairs(tokens, 100)
    pairs.make(TensorData({"data": torch.zeros(5)}), 3)
    noise, y, cond = every(pairs)
    assert noise is None and cond == {} and torch.equal(y, tokens.clean_samples(100, {}, 3))


def test_shards_have_noise_of_their_own_and_conditions_go_on_in_order():
    noise, _, cond = every(made(neural(), 60))
    assert len(set(noise[:, 0].tolist())) == 60
    assert cond["label"].tolist() == [i % 48 % 2 for i in range(60)]
    assert torch.equal(noise[16:32], neural().noise(16, {}, shard_seed(3, 1)))
    assert len({shard_seed(seed, k) for seed in range(20) for k in range(1, 50)}) == 20 * 49


def test_shards_in_memory_are_kept_and_their_progress_ends_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "WORTH", 0.0)
    make, asked, ended = Teacher.make, [], []
    monkeypatch.setattr(Teacher, "make", lambda self, num, *rest: asked.append(num) or make(self, num, *rest))
    close = progress.Activity.advance
    monkeypatch.setattr(progress.Activity, "advance", lambda self, *n: close(self, *n) or ended.append(self))
    plain = every(made(neural(), 40, steps=5))
    with cache.using(cache.SampleCache(tmp_path)):
        first, again = every(made(neural(), 40, steps=5)), every(made(neural(), 40, steps=5))
        assert same(first, plain) and same(again, plain) and asked == [16, 16, 8] * 2
        shown = ended[-1]
        assert shown.what.startswith("making 40 pairs") and shown.done == shown.total > 0
        more = every(made(neural(), 50, steps=5))  # whole shards are the same
        assert same([part[:32] for part in more[:2]], [part[:32] for part in plain[:2]]) and asked[6:] == [16, 2]
        made(neural(), 20, tmp_path / "own", steps=4)
        assert len(cache.current().entries()) == 5  # a folder keeps its pairs itself


def test_the_seed_decides():
    one, again, other = (every(made(neural(), seed=seed)) for seed in (3, 3, 4))
    assert same(one, again) and not torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])


def test_sets_of_other_sizes_are_padded_to_the_longest(tmp_path):
    """Later shards may be longer or shorter than the first, up to the longest training sample."""

    class Sets:
        lengths = torch.tensor([2] * 16 + [5] * 16 + [3] * 8)

        def __len__(self):
            return 40

        def __getitem__(self, rows):
            lengths = self.lengths[rows]
            return {"mask": torch.arange(int(lengths.max())) < lengths[:, None]}

    class Halves(Denoiser):
        def forward(self, x_t, t, cond=None):
            return torch.where(cond["mask"][..., None], x_t / 2, 0)

    class Halving(Teacher):
        def fingerprint(self):
            return "halves"

    teacher = Halving(Halves(torch.nn.Identity(), RectifiedFlow(), "x0", 1.0), (6, 2), context=("mask",))
    pairs = made(teacher, 40, data=Sets())
    noise, y, cond = pairs.draw(torch.tensor([0, 20, 35, 1]))
    assert cond["mask"].sum(1).tolist() == [2, 5, 3, 2] and noise.shape == y.shape == (4, 5, 2)
    assert torch.equal(noise[1], pairs.shards[1]["noise"][4]) and (noise[0, 2:] == 0).all()
    assert (y[~cond["mask"]] == 0).all() and (y[cond["mask"]] != 0).all()
    assert same(every(made(teacher, 40, tmp_path / "p", data=Sets())), every(pairs))


# On disk


def test_on_disk_they_are_the_same_and_the_teacher_is_asked_once(tmp_path):
    teacher = Counting()
    memory, disk = made(teacher), made(teacher, path=str(tmp_path / "deep" / "p"))
    assert same(every(memory), every(disk)) and teacher.made == 80
    assert numbers(tmp_path / "deep" / "p") == [f"pairs-{k:05}.safetensors" for k in range(3)]
    again = made(teacher, path=tmp_path / "deep" / "p")
    assert same(every(disk), every(again)) and teacher.made == 80
    fewer = made(teacher, 20, path=tmp_path / "deep" / "p")
    assert same(every(fewer), list(disk.draw(torch.arange(20)))) and teacher.made == 80
    rows = torch.tensor([33, 2, 2, 17])
    assert same(list(disk.draw(rows)), [memory.draw(rows)[0], memory.draw(rows)[1], memory.draw(rows)[2]])


def test_random_rows_are_those_of_the_methods_own_generator(tmp_path):
    pairs = made(neural(), 40, tmp_path)
    rows = (torch.rand(25, generator=torch.Generator().manual_seed(9)) * 40).long()
    assert same(list(pairs.random(25, torch.Generator().manual_seed(9))), list(pairs.draw(rows)))


def test_files_are_mapped_and_only_the_rows_asked_for_are_read(tmp_path, monkeypatch):
    monkeypatch.undo()

    class Big(Counting):
        def generate(self, num, *rest, **options):
            return torch.zeros(num, *self.event_shape)

    teacher = Big()
    teacher.event_shape = (2**17,)
    made(teacher, 64, tmp_path)  # 64 MiB
    before = resident()
    pairs = made(teacher, 64, tmp_path)
    noise, y, _ = pairs.draw(torch.tensor([3, 50]))
    assert noise.shape == y.shape == (2, 2**17) and resident() - before < 16 * 2**20
    with open("/proc/self/maps") as maps:
        assert str(tmp_path / "pairs-00000.safetensors") in maps.read()


def resident():
    if not sys.platform.startswith("linux"):
        pytest.skip("asks Linux how much memory is in use")
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def test_an_interrupted_run_goes_on_with_the_shards_that_are_whole(tmp_path):
    class Dies(Counting):
        def generate(self, num, *rest, **options):
            if self.made >= 32:
                raise KeyboardInterrupt
            return super().generate(num, *rest, **options)

    with pytest.raises(KeyboardInterrupt):
        made(Dies(), 60, tmp_path)
    assert numbers(tmp_path) == ["pairs-00000.safetensors", "pairs-00001.safetensors"]
    (tmp_path / ".partial-123-pairs-00002.safetensors").write_bytes(b"half")
    teacher = Counting()
    pairs = made(teacher, 60, tmp_path)
    assert teacher.made == 28 and same(every(pairs), every(made(Counting(), 60)))
    assert not list(tmp_path.glob(".partial*"))


def test_growing_makes_what_is_missing(tmp_path):
    made(Counting(), 32, tmp_path)
    teacher = Counting()
    assert same(every(made(teacher, 70, tmp_path)), every(made(Counting(), 70))) and teacher.made == 38
    made(teacher, 80, tmp_path)  # the last shard of 6 becomes one of 16
    assert teacher.made == 38 + 16


@pytest.mark.parametrize(
    "harm, said",
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-5]), "is no whole safetensors file"),
        (lambda file: file.write_bytes(b""), "is no whole safetensors file"),
        (lambda file: save_file({"noise": torch.zeros(16, 2)}, file), "holds noise instead of cond.label,"),
        (
            lambda file: save_file(pair(noise=torch.zeros(16, 3), sample=torch.zeros(16, 3)), file),
            "holds samples of another shape than [2]",
        ),
        (lambda file: save_file(pair(sample=torch.zeros(15, 2)), file), "holds 15 pairs instead of 16"),
    ],
)
def test_a_damaged_shard_is_made_anew_with_a_line(harm, said, tmp_path, capsys):
    before = every(made(Counting(), path=tmp_path))
    harm(tmp_path / "pairs-00001.safetensors")
    capsys.readouterr()
    teacher = Counting()
    pairs = made(teacher, path=tmp_path)
    assert teacher.made == 16 and same(every(pairs), before)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and said in lines[0] and lines[0].endswith("it is made anew")


def pair(**others):
    return {"noise": torch.zeros(16, 2), "sample": torch.zeros(16, 2), "cond.label": torch.zeros(16).long()} | others


@pytest.mark.parametrize(
    "changed, name",
    [
        ({"teacher": Counting(seed=1)}, "teacher_hash"),
        ({"solver": "ddim"}, "solver 'heun', here 'ddim'"),
        ({"steps": 4}, "steps 3, here 4"),
        ({"kappa": 2.0}, "kappa 1.0, here 2.0"),
        ({"seed": 4}, "seed 3, here 4"),
        ({"data": TensorData({"label": (torch.arange(48) + 1) % 2})}, "conditions"),
        ({"data": TensorData({"label": torch.arange(46) % 2})}, "conditions"),
    ],
)
def test_pairs_of_others_are_refused(changed, name, tmp_path):
    made(Counting(), path=tmp_path)
    files = {file: file.read_bytes() for file in tmp_path.glob("pairs*")}
    with pytest.raises(UsageError, match="give another folder as model.pairs_path") as caught:
        made(**({"teacher": Counting(), "path": tmp_path} | changed))
    assert name in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).count(", here") == 1
    assert files == {file: file.read_bytes() for file in tmp_path.glob("pairs*")}


class Late(Counting):
    """Guided near the data alone."""

    def guidance(self, t, kappa):
        return kappa if t < 0.7 else 1.0


@pytest.mark.parametrize("first, second", [(Counting, Late), (Late, Counting)])
def test_pairs_of_a_teacher_that_is_guided_elsewhere_are_refused(first, second, tmp_path):
    guided = {"path": tmp_path, "kappa": 2.0}
    made(first(), **guided)
    with pytest.raises(UsageError, match="guidance .*, here "):
        made(second(), **guided)
    again = first()
    made(again, **guided)
    assert again.made == 0


def test_pairs_that_know_of_no_guidance_serve_where_it_is_kappa_throughout(tmp_path):
    made(Counting(), path=tmp_path, kappa=2.0)
    said = read_yaml(tmp_path / "pairs.yaml")
    assert said.pop("guidance") is None
    write_yaml(tmp_path / "pairs.yaml", said)  # as earlier versions wrote it
    teacher = Counting()
    made(teacher, path=tmp_path, kappa=2.0)
    assert teacher.made == 0


def test_a_teacher_without_conditions_makes_the_same_from_any_data(tmp_path):
    made(gaussian(0.0, 1.0), path=tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.glob("pairs*")}
    made(gaussian(0.0, 1.0), path=tmp_path, data=TensorData({"data": torch.zeros(7, 1)}))
    assert before == {file: file.read_bytes() for file in tmp_path.glob("pairs*")}


def test_the_folder_says_whose_pairs_it_holds(tmp_path):
    made(Counting(), path=tmp_path)
    said = read_yaml(tmp_path / "pairs.yaml")
    expected = {
        "teacher": "Counting",
        "solver": "heun",
        "steps": 3,
        "kappa": 1.0,
        "seed": 3,
        "event_shape": [2],
        "shard": 16,
    }
    assert {name: said[name] for name in expected} == expected
    assert said["teacher_hash"] == Counting().fingerprint() and {"distillkit", "conditions"} < said.keys()


# Folders of strangers


@pytest.mark.parametrize(
    "text, said",
    [
        ("!!python/object/apply:os.mkdir [sprung]", "not readable as yaml"),
        ("- 1\n- 2", "should hold a mapping"),
        ("a: [", "not readable as yaml"),
        ("teacher_hash: {class_path: stranger.Trap}", "holds other pairs than this run needs"),
    ],
)
def test_nonsense_is_one_sentence_and_runs_nothing(text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(Counting(), path=tmp_path / "p")
    (tmp_path / "p" / "pairs.yaml").write_text(text)
    with pytest.raises(UsageError, match="pairs_path") as caught:
        made(Counting(), path=tmp_path / "p")
    assert said in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "sprung").exists()


def test_a_pickle_is_not_opened(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    made(Counting(), path=tmp_path)
    torch.save({"noise": Trap()}, tmp_path / "pairs-00000.safetensors")
    made(Counting(), path=tmp_path)
    assert "is no whole safetensors file" in capsys.readouterr().out and not (tmp_path / "sprung").exists()


def test_shards_without_a_name_are_not_written_over(tmp_path):
    made(Counting(), path=tmp_path)
    (tmp_path / "pairs.yaml").unlink()
    with pytest.raises(UsageError, match="does not say whose pairs it holds"):
        made(Counting(), path=tmp_path)


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file, not a folder of pairs"):
        made(Counting(), path=tmp_path / "file")
    with pytest.raises(UsageError, match="cannot write pairs to"):
        made(Counting(), path=tmp_path / "file" / "below")
    with pytest.raises(ValueError, match="pairs_path is empty"):
        Pairs(Counting(), 3, " ")


@pytest.mark.parametrize("wrong, said", [({"num": 0}, "num_pairs must be at least 1"), ({"steps": 0}, "steps must be")])
def test_numbers_are_checked(wrong, said):
    with pytest.raises(ValueError, match=said):
        made(Counting(), **wrong)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(path, write):
        raise OSError(28, "No space left on device")

    pairs = Pairs(Counting(), 5, str(tmp_path))
    monkeypatch.setattr(store, "write_atomic", full)
    with pytest.raises(Failure, match="No space left on device"):
        pairs.make(LABELS, 0)


def test_samples_that_are_no_numbers_are_refused(tmp_path):
    class Lost(Counting):
        def generate(self, *rest, **options):
            return super().generate(*rest, **options) * torch.nan

    with pytest.raises(ValueError, match="makes samples with NaN"):
        made(Lost(), path=tmp_path)
    assert numbers(tmp_path) == []


# Several runs and processes


def test_two_runs_make_one_folder_in_turn(tmp_path, capsys):
    lock = FileLock(tmp_path / ".lock")
    lock.acquire()
    teacher, found = Counting(), []
    other = threading.Thread(target=lambda: found.append(every(made(teacher, path=tmp_path))))
    other.start()
    other.join(0.5)
    assert other.is_alive() and numbers(tmp_path) == [] and not (tmp_path / "pairs.yaml").exists()
    lock.release()
    other.join(60)
    assert same(found[0], every(made(Counting()))) and capsys.readouterr().out.count("made in turn") == 1


@pytest.mark.parametrize("first", [True, False])
def test_what_fails_in_the_first_process_is_raised_in_all(first, tmp_path):
    """Nobody waits for a shard that never comes."""

    class Broken(Counting):
        def generate(self, num, *args, **kwargs):
            return super().generate(num, *args, **kwargs) * math.nan

    told = []

    def broadcast(value):
        told.append(value)
        return ValueError("told by the first") if not first and len(told) == 2 else value

    strategy = SimpleNamespace(is_global_zero=first, broadcast=broadcast)
    with pytest.raises(ValueError, match="NaN or infinity" if first else "told by the first"):
        Pairs(Broken(), 40, str(tmp_path), **STEPS).make(LABELS, 3, strategy)
    assert len(told) == 2 and isinstance(told[1], ValueError) == first


def test_the_first_process_writes_and_the_others_read(tmp_path):
    context = multiprocessing.get_context("fork")
    results, barrier, told = context.Queue(), context.Barrier(2), context.Queue()

    class Strategy:
        def __init__(self, rank):
            self.is_global_zero = rank == 0

        def barrier(self):
            barrier.wait(30)

        def broadcast(self, value):
            if self.is_global_zero:
                told.put(value)
                return value
            return told.get(timeout=30)

    def run(rank, seed):
        torch.set_num_threads(1)
        teacher = Counting()
        pairs = Pairs(teacher, 40, str(tmp_path), **STEPS)
        try:
            pairs.make(LABELS, seed, Strategy(rank))
            results.put((rank, teacher.made, [x.tolist() for x in every(pairs)[:2]]))
        except UsageError as error:
            results.put((rank, teacher.made, str(error)))

    def both(seed):
        processes = [context.Process(target=run, args=(rank, seed)) for rank in (1, 0)]
        for process in processes:
            process.start()
        got = sorted(results.get(timeout=60) for _ in processes)
        for process in processes:
            process.join(30)
        return got

    expected = [x.tolist() for x in every(made(Counting()))[:2]]
    assert both(3) == [(0, 40, expected), (1, 0, expected)]
    refused = both(4)
    assert [made for _, made, _ in refused] == [0, 0] and refused[0][2] == refused[1][2] and "seed" in refused[0][2]


# In a run


@pytest.mark.parametrize("method", ["dmd", "lsd"])
def test_a_run_from_disk_is_the_run_from_memory(method, tmp_path):
    def fitted(path, **settings):
        torch.manual_seed(0)
        if method == "dmd":
            model = DMD(Counting(), regression=0.25, num_pairs=40, pairs_path=path)
        else:
            model = LSD(Counting(), num_steps=3, num_pairs=40, pairs_path=path, guard=0)
        trainer(max_steps=7, **settings).fit(model, Plane(batch_size=8))
        return model

    memory, disk, again = fitted(None), fitted(str(tmp_path / "p")), fitted(str(tmp_path / "p"))
    assert memory.teacher.made == disk.teacher.made == 40 and again.teacher.made == 0
    for one in (disk, again):
        assert all(map(torch.equal, one.student.parameters(), memory.student.parameters()))
    shutil.rmtree(tmp_path / "p")
    strategy = DDPStrategy(start_method="fork", find_unused_parameters=True, process_group_backend="gloo")
    fitted(str(tmp_path / "p"), devices=2, strategy=strategy)
    assert numbers(tmp_path / "p") == [f"pairs-{k:05}.safetensors" for k in range(3)]


def test_a_yaml_from_another_version_still_serves(tmp_path):
    made(Counting(), path=tmp_path)
    write_yaml(
        tmp_path / "pairs.yaml", read_yaml(tmp_path / "pairs.yaml") | {"distillkit": "0.0", "teacher": "renamed"}
    )
    assert yaml.safe_load((tmp_path / "pairs.yaml").read_text())["teacher"] == "renamed"
    teacher = Counting()
    made(teacher, path=tmp_path)
    assert teacher.made == 0
