"""Samples are found again if nothing has changed that they depend on, and only then."""

import copy
from functools import partial

import pytest
import torch
from helpers import CLASSES, Affine, gaussian, neural, wake

from distillkit import cache
from distillkit.cache import SampleCache
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.learned import LearnedSolver
from distillkit.diffusion.process import VarianceExploding
from distillkit.diffusion.sampling import SOLVERS
from distillkit.diffusion.start import Start
from distillkit.discrete.exact import Table, potts
from distillkit.discrete.process import Absorbing
from distillkit.discrete.teacher import DiscreteTeacher
from distillkit.networks.mlp import MLP
from distillkit.teachers import key
from distillkit.teachers.base import Teacher

NUM, COND = 7, {"label": torch.arange(7) % 2}
GRID = VarianceExploding().grid(4)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A cache that keeps everything is on; the numbers of samples that teachers have made."""
    monkeypatch.setattr(cache, "WORTH", 0.0)
    numbers = []
    for kind in (Teacher, DiscreteTeacher):
        own = kind.make
        monkeypatch.setattr(kind, "make", lambda self, num, *a, own=own: numbers.append(num) or own(self, num, *a))
    with cache.using(SampleCache(tmp_path)):
        yield numbers


class Stepping(Teacher):
    """A teacher with a solver and a setting of its own."""

    strength = 1.0

    def __init__(self, **surroundings):
        network = wake(MLP([2], width=8, depth=1, classes=CLASSES))
        super().__init__(Denoiser(network, VarianceExploding(), "edm", 1.0), (2,), CLASSES, **surroundings)

    def guidance(self, t, kappa):
        return self.strength * kappa


def generate(teacher=None, **changed):
    asked = {"num": NUM, "cond": COND, "seed": 3, "solver": "ddim", "times": GRID, "kappa": 1.5} | changed
    return (teacher or Stepping(codec=Affine())).generate(**asked)


def test_the_same_question_is_answered_from_the_cache_bit_for_bit(made):
    with cache.using(None):
        plain = generate()
    first, again = generate(), generate()
    assert torch.equal(first, plain) and torch.equal(again, plain) and made == [NUM, NUM]
    assert torch.equal(generate(decode=False), neural().generate(NUM, COND, 3, "ddim", GRID, 1.5, decode=False))
    assert made == [NUM] * 3  # before they are decoded they are the same, but neural() is of another class


def test_what_is_left_out_is_what_it_stands_for(made):
    teacher = neural()
    one = teacher.generate(NUM, COND, 3)
    two = teacher.generate(NUM, COND, 3, teacher.best["solver"], teacher.grid(teacher.best["steps"]), 1, 500)
    assert torch.equal(one, two) and made == [NUM]
    assert teacher.kept(NUM, COND, 3) and not teacher.kept(NUM, COND, 4)
    with cache.using(None):
        assert not teacher.kept(NUM, COND, 3)


def test_tokens_are_kept_too(made):
    def tokens():
        return DiscreteTeacher(Table(potts(3, 4, 1.5), Absorbing(3)), (4,))

    one, two = (tokens().generate(20, {}, 5, times=tokens().grid(6)) for _ in range(2))
    assert torch.equal(one, two) and made == [20]
    tokens().generate(20, {}, 5, "euler", tokens().grid(6))
    assert made == [20, 20]
    with cache.using(None):
        assert torch.equal(one, tokens().generate(20, {}, 5, times=tokens().grid(6)))


def reweighted():
    teacher = Stepping(codec=Affine())
    next(teacher.denoiser.parameters()).view(-1)[0] += 1e-6
    return teacher


def stronger():
    teacher = Stepping(codec=Affine())
    teacher.strength = 2.0
    return teacher


class Same(Stepping):
    pass


CHANGES = {
    "weights": lambda: {"teacher": reweighted()},
    "class": lambda: {"teacher": Same(codec=Affine())},
    "attribute": lambda: {"teacher": stronger()},
    "codec": lambda: {"teacher": Stepping(codec=Affine(3.0))},
    "start": lambda: {"teacher": Stepping(codec=Affine(), start=Start(level=79.0))},
    "solver": lambda: {"solver": "euler"},
    "times": lambda: {"times": GRID * (1 + 2e-16)},
    "precision of times": lambda: {"times": GRID.float()},
    "kappa": lambda: {"kappa": 1.5 + 1e-15},
    "kappas": lambda: {"kappa": torch.full((NUM,), 1.5)},
    "cond": lambda: {"cond": {"label": 1 - COND["label"]}},
    "number": lambda: {"num": NUM - 1},
    "seed": lambda: {"seed": 4},
    "chunk": lambda: {"chunk": 5},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_question_is_not(change, made):
    generate()
    changed = change()
    assert len(generate(**changed)) == changed.get("num", NUM) and len(made) == 2
    generate()
    generate(**changed)
    assert len(made) == 2


@pytest.mark.parametrize(
    "where, what",
    [
        (torch, ("get_num_threads", lambda: 77)),
        (torch, ("get_float32_matmul_precision", lambda: "medium")),
        (torch.backends.cudnn, ("allow_tf32", False)),
        (key, ("processor", lambda: "another")),
        (key, ("_code", lambda package: "another version")),
    ],
)
def test_nor_is_it_on_another_machine_or_by_other_code(where, what, made, monkeypatch):
    generate()
    monkeypatch.setattr(where, *what)
    generate()
    assert len(made) == 2


def test_precisions_that_pytorch_cannot_tell_keep_nothing(made, monkeypatch):
    def unclear():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", unclear)
    generate()
    generate()
    assert len(made) == 2 and not cache.current().entries()


def test_half_precision_has_samples_of_its_own(made):
    teacher = neural()
    one = teacher.generate(NUM, COND, 3)
    rounded = copy.deepcopy(teacher).bfloat16().float()
    assert not torch.equal(rounded.generate(NUM, COND, 3), one) and len(made) == 2
    teacher.bfloat16().float()  # the teacher itself, whose fingerprint was known
    assert torch.equal(teacher.generate(NUM, COND, 3), rounded.generate(NUM, COND, 3)) and len(made) == 2


def test_buffers_that_no_file_holds_are_seen(made):
    teacher = Stepping()
    teacher.denoiser.register_buffer("gain", torch.ones(1), persistent=False)
    generate(teacher), generate(teacher)
    assert len(made) == 1
    teacher.denoiser.gain.mul_(2)
    generate(teacher)
    assert len(made) == 2


def test_the_package_of_a_function_among_the_attributes_counts():
    teacher, asked = Stepping(), (NUM, COND, 3, "ddim", GRID, 1.5, 500)
    before = key.samples_key(teacher, *asked)["code"].keys()
    teacher.tune = {"solver": partial(pytest.fixture, 1)}
    assert key.samples_key(teacher, *asked)["code"].keys() - before == {"_pytest"}


def test_weights_that_change_in_place_are_seen(made):
    teacher = neural()
    one = teacher.generate(NUM, COND, 3)
    with torch.no_grad():
        next(teacher.denoiser.parameters()).mul_(2)
    assert not torch.equal(teacher.generate(NUM, COND, 3), one) and len(made) == 2


def test_what_cannot_be_told_is_made_each_time(made):
    class Local(Stepping):
        pass

    strange, bound = Stepping(), Stepping()
    strange.tune = lambda x: x
    bound.tune = Affine().decode
    learned = LearnedSolver(VarianceExploding(), GRID.tolist())
    for again in (Local(), strange, bound):
        generate(again)
        generate(again)
    generate(solver=learned, times=None)
    generate(solver=learned, times=None)
    assert len(made) == 8 and not cache.current().entries()
    told = Stepping()
    told.tune = SOLVERS
    assert key.attributes(told)["tune"]["heun"]["class_path"] == "distillkit.diffusion.sampling.heun"


def test_a_network_that_is_made_later_changes_no_key(made):
    teacher = gaussian(1.0, 0.5)
    teacher.generate(NUM, {}, 3)
    teacher.frozen_network()
    teacher.generate(NUM, {}, 3)
    assert made == [NUM]


def test_the_code_is_read_where_it_is_edited():
    assert key._code("torch") == torch.__version__ and len(key._code("distillkit")) == 64
    assert key._code("tests") != key._code("distillkit")
