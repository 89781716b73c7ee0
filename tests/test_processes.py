"""What the processes of a run share at its end, and that one process makes the same of it."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from dummy.parts import Places
from helpers import Affine, ForkedShard, Pairs, forked_ddp, in_processes, neural, trainer

from distillkit import cache, devices
from distillkit.cache import SampleCache
from distillkit.cli import front
from distillkit.codec import Codec
from distillkit.discrete import teacher as discrete
from distillkit.discrete.exact import Table, potts
from distillkit.discrete.process import Absorbing
from distillkit.discrete.teacher import DiscreteTeacher
from distillkit.errors import Failure
from distillkit.evaluation.protocol import assist, evaluate
from distillkit.evaluation.rows import EARLIER
from distillkit.methods.sid import SiD
from distillkit.processes import Crew, divided, gathered
from tests.evaluation.test_protocol import rows, teacher


@pytest.mark.parametrize(
    "num, chunk, processes, parts, size",
    [
        (1000, 500, 2, [(0, 500), (500, 1000)], 500),
        (1000, 300, 3, [(0, 600), (600, 900), (900, 1000)], 300),  # four chunks, the first process has two
        (1000, 1000, 3, [(0, 334), (334, 668), (668, 1000)], 334),  # one chunk would leave two processes idle
        (4, 8, 3, [(0, 2), (2, 4), (4, 4)], 2),
        (0, 8, 2, [(0, 0), (0, 0)], 1),
        (7, 2, 1, [(0, 7)], 2),
    ],
)
def test_parts_are_whole_chunks_in_a_row(num, chunk, processes, parts, size):
    rows, cut = divided(num, chunk, processes)
    assert [(part.start, part.stop) for part in rows] == parts and cut == size


def evaluated(
    rank: int, num_samples: int, chunk: int, fault: str = "", folder: Path | None = None, seen: list | None = None
) -> dict | None:
    """An evaluation by all processes there are, from the first one, in chunks of this size."""
    own, data = teacher(), Places()
    own.chunk, student = chunk, SiD(own).product().eval()
    student.sample = partial(student.sample, batch_size=chunk)
    if (fault == "helper" and rank == 1) or (fault == "first" and rank == 0):
        own.denoiser.network.register_forward_pre_hook(fail)
    if seen is not None:
        own.denoiser.network.register_forward_pre_hook(lambda *_: seen.append(1))
    with cache.using(SampleCache(folder) if folder else None):
        if not dist.is_initialized():
            return evaluate(data, own, student, num_samples)
        crew = Crew()
        if rank:
            return assist(crew, data, lambda: {"teacher": own, "student": student}, num_samples)
        try:
            return evaluate(data, own, student, num_samples, crew=crew)
        finally:
            crew.dismiss()


def fail(*_) -> None:
    raise ValueError("broken\nnetwork")


def untimed(evaluation: dict) -> str:
    rows = [
        {name: value for name, value in row.items() if name not in ("ms_per_sample", "timed")}
        for row in evaluation["rows"]
    ]
    return json.dumps({**evaluation, "rows": rows})


@pytest.mark.parametrize("processes", [2, 3])
def test_an_evaluation_by_several_processes_is_that_of_one(processes):
    """Of the nineteen samples in chunks of four, three processes make eight, eight and three."""
    found = in_processes(processes, evaluated, 19, 4)
    assert untimed(found[0]) == untimed(evaluated(0, 19, 4))  # bit for bit
    assert found[1:] == [None] * (processes - 1)


def test_smaller_chunks_than_those_of_one_process_differ_by_rounding_alone():
    found, one = in_processes(3, evaluated, 19, 1000)[0], evaluated(0, 19, 1000)
    for name, metrics in rows(one).items():
        assert rows(found)[name] == pytest.approx(metrics, rel=1e-5, abs=1e-6), name


def test_a_helper_that_fails_ends_the_evaluation_with_its_sentence():
    first, helper, other = in_processes(3, evaluated, 19, 4, "helper")
    assert isinstance(first, Failure)
    assert str(first) == "process 1 of this run could not make its samples: ValueError: broken network"
    assert helper is None and other is None  # they were let go


def test_a_first_process_that_fails_lets_the_others_go():
    first, *others = in_processes(3, evaluated, 19, 4, "first")
    assert isinstance(first, ValueError) and others == [None, None]


def some(network, inputs) -> None:
    """Refuses empty batches, which some layers do not take."""
    assert len(inputs[0])


def decoded(rank: int) -> torch.Tensor | list[int]:
    own, cond = neural(codec=Affine()), {"label": torch.arange(9) % 2}
    own.denoiser.network.register_forward_pre_hook(some)
    if not dist.is_initialized():
        return own.generate(9, cond, 1, chunk=2)
    crew = Crew()
    if rank:
        done = []
        crew.serve(lambda seed: done.append(len(own.generate(9, cond, seed, chunk=2))))
        return done
    with crew.sharing(1):
        made = own.generate(9, cond, 1, chunk=2)
    crew.dismiss()
    return made


def test_a_first_process_that_is_told_to_stop_waits_for_nobody(monkeypatch):
    crew, sent = object.__new__(Crew), []
    crew.size, crew._busy, crew._left = 3, set(), False
    monkeypatch.setattr(Crew, "_send", lambda self, what, to: sent.append((what, to)))
    monkeypatch.setattr(Crew, "_receive", lambda self, other: pytest.fail("it waits"))
    with pytest.raises(KeyboardInterrupt), crew.sharing("task"):
        raise KeyboardInterrupt
    crew.dismiss()
    assert sent == [("task", 1), ("task", 2)]


class Doubled(Codec):
    """Data are twice the tokens and one."""

    def decode(self, x, cond):
        return 2 * x + 1


at_once: list[int] = []  # sequences in calls of the network


def tokens(rank: int) -> torch.Tensor | None:
    """Nine sequences."""
    own = DiscreteTeacher(Table(potts(3, 5, 1.5), Absorbing(3)), (5,), codec=Doubled())
    own.denoiser.register_forward_pre_hook(lambda _, given: at_once.append(len(given[0])))
    if not dist.is_initialized():
        return own.generate(9, {}, 1, "tweedie", own.grid(4))
    crew = Crew()
    if rank:
        return crew.serve(lambda seed: own.generate(9, {}, seed, "tweedie", own.grid(4)))
    with crew.sharing(1):
        made = own.generate(9, {}, 1, "tweedie", own.grid(4))
    crew.dismiss()
    return made


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_decode_the_tokens_that_they_made(processes, monkeypatch):
    """Parts are made and decoded in the same chunks, as large as the memory of a call allows."""
    at_once.clear()
    whole = tokens(0)
    assert {*at_once} == {9}
    monkeypatch.setattr(discrete, "CELLS", 2 * 5 * 4)
    assert torch.equal(in_processes(processes, tokens)[0], whole)
    at_once.clear()
    assert torch.equal(tokens(0), whole) and {*at_once} == {1, 2}


def test_each_process_decodes_what_it_has_made():
    """With six processes of nine samples in chunks of two, the last one has nothing to do."""
    for num in (2, 6):
        made, *done = in_processes(num, decoded)
        assert torch.equal(made, decoded(0)) and done == [[9]] * (num - 1)


def kept(rank: int, folder: Path) -> list:
    """Evaluates twice, and counts the passes of the teacher; the first process keeps samples."""
    passes, found = ([], []), []
    for seen in passes:
        found.append(evaluated(rank, 19, 4, "", None if rank else folder, seen))
    return [*found, *map(len, passes)]


def test_what_is_kept_is_neither_made_nor_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "WORTH", 0.0)
    (first, again, *_), (*_, made, more) = in_processes(2, kept, tmp_path)
    assert made > 0 == more
    assert untimed(first) == untimed(again)
    assert [row.get("timed") for row in again["rows"]] == [None, EARLIER, EARLIER, None]
    for row, earlier in zip(again["rows"][1:3], first["rows"][1:3], strict=True):
        assert row["ms_per_sample"] == pytest.approx(earlier["ms_per_sample"], rel=0.5)
    assert len(list((tmp_path / cache.NAME).iterdir())) == 3  # best, other noise, one step


def found_meanwhile(rank: int) -> torch.Tensor | None:
    """The first process finds what it had asked the others to make."""
    crew = Crew()
    if rank:
        return crew.serve(lambda task: devices.in_chunks(lambda rows: torch.ones(rows.stop - rows.start), 8, 2))
    with crew.sharing("ones"):
        pass
    with crew.sharing("ones"):
        made = devices.in_chunks(lambda rows: torch.zeros(rows.stop - rows.start), 8, 2)
    crew.dismiss()
    return made


def test_samples_that_were_asked_for_in_vain_are_not_taken_for_the_next_ones():
    assert in_processes(2, found_meanwhile)[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def slow(rank: int) -> list[float] | None:
    """Eight samples of 0.05 s each; the other process takes three times as long."""

    def make(rows: slice) -> torch.Tensor:
        time.sleep(0.05 * (1 + 2 * rank) * (rows.stop - rows.start))
        return torch.zeros(rows.stop - rows.start)

    def work(_=None):
        return devices.in_chunks(make, 8, 2)

    crew = Crew()
    if rank:
        return crew.serve(work)
    with crew.sharing("zeros"):
        start, begun = time.perf_counter(), cache.clock()
        work()
        passed, counted = time.perf_counter() - start, cache.clock() - begun
    crew.dismiss()
    return [passed, counted]


def test_a_sample_takes_as_long_as_on_one_device():
    """Half of them took 0.2 s, and the other process 0.6 s: all alone would have taken 0.4 s."""
    passed, counted = in_processes(2, slow)[0]
    assert passed >= 0.6 and 0.4 <= counted < 0.55


def numbers(rank: int) -> list:
    return gathered({rank: torch.full((2,), rank)})


def test_all_processes_get_what_each_has():
    for found in in_processes(3, numbers):
        assert [*map(list, found)] == [[0], [1], [2]] and found[2][2].tolist() == [2, 2]
    [own] = numbers(5)
    assert own[5].tolist() == [5, 5]


class Seen(Pairs):
    """Forty-eight points, of which a validation keeps the samples and the conditions in files."""

    def evaluator(self, part=None, device="cpu"):
        def keep(samples, cond):
            seeds = torch.tensor(self.seeds)
            torch.save({"samples": samples, **cond, "seeds": seeds}, self.folder / f"{os.getpid()}.pt")
            return {"mean": float(samples.mean())}

        return keep


def validated(folder: Path, **settings) -> list[dict[str, torch.Tensor]]:
    """What each process measured of batches of ten, the last one of eight."""
    folder.mkdir()
    data, model = Seen(batch_size=10), SiD(neural())
    data.folder, data.seeds, sample = folder, [], model.sample
    model.sample = lambda cond, num, seed: data.seeds.append(seed) or sample(cond, num, seed)
    trainer(1, limit_val_batches=1.0, **settings).validate(model, data, verbose=False)
    return [torch.load(file, weights_only=True) for file in folder.iterdir()]


@pytest.mark.parametrize(
    "devices, strategy, seeds",
    [(2, ForkedShard, [[0, 2, 4], [1, 3, 4]]), (3, forked_ddp, [[0, 3, 4], [1, 3, 4], [2, 3, 4]])],
    ids=["spread_networks", "whole_networks"],
)
def test_several_processes_validate_what_one_does(devices, strategy, seeds, tmp_path):
    """Rounds are of batches of one size, here (0, 1), (2, 3) and (4), or (0, 1, 2), (3) and (4)."""
    [one] = validated(tmp_path / "one")
    assert len(one["samples"]) == len(one["label"]) == 48 and one.pop("seeds").tolist() == [*range(5)]
    found = validated(tmp_path / "several", devices=devices, strategy=strategy())
    assert sorted(each.pop("seeds").tolist() for each in found) == seeds
    for each in found:
        assert each.keys() == one.keys() and all(torch.equal(each[name], one[name]) for name in one)


def test_a_run_of_two_processes_leaves_what_one_would(tmp_path, monkeypatch):
    words = ["domain=toy", "method=dmd", "trainer.max_steps=2", "trainer.limit_val_batches=0"]
    words += ["trainer.accelerator=cpu", "vars.callbacks.watch.samples=0", "vars.callbacks.finish.pictures=false"]
    words += ["vars.callbacks.finish.num_samples=200"]
    serve = Crew.serve
    monkeypatch.setattr(Crew, "serve", lambda crew, work: ((tmp_path / "served").touch(), serve(crew, work)))
    one, two = tmp_path / "one", tmp_path / "two"
    assert not front.main(["fit", *words, "trainer.devices=2", "trainer.strategy=ddp_fork", "--out", str(two)])
    assert (tmp_path / "served").exists()
    checkpoint = two / "checkpoints" / "last.ckpt"
    assert not front.main(["fit", *words, "--ckpt_path", str(checkpoint), "--out", str(one)])
    found = [json.loads((run / "evaluation.json").read_text()) for run in (one, two)]
    assert untimed(found[0]) == untimed(found[1])
