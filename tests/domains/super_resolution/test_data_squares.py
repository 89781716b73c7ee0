"""Squares: what a batch holds follows from its indices alone."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from mutations import Mutation, prove
from photo_files import save, texture

from distillkit.data import StepLoader
from domains.super_resolution import photographs, squares
from domains.super_resolution.photographs import Photographs
from domains.super_resolution.squares import TEST, VAL, HeldOut, Squares, cut, tensor

LAST = float(np.nextafter(1, 0))  # the largest number below 1
CROP = 8


@pytest.fixture
def library(tmp_path) -> Photographs:
    paths = [(save(tmp_path / f"{k}.png", texture(24, 20, k)),) for k in range(5)]
    return Photographs(paths, [([24, 20],)] * 5)


def finish(images, seeds):
    """The seeds stand in for an observation, as levels of 8 bits."""
    levels = torch.tensor([seed % 256 for seed in seeds]).float()
    return {"data": images[0], "low": (levels / 127.5 - 1)[:, None, None, None].expand(-1, 3, 2, 2)}


def made(photos, seed=0) -> Squares:
    return Squares(photos, CROP, finish, seed)


@cache
def places() -> dict[bytes, tuple[int, int, int, int]]:
    """Photograph, row, column and turn of every square that there is, by its pixels."""
    found = {}
    for number in range(5):
        image = texture(24, 20, number)
        for row, column, turn in product(range(13), range(17), range(8)):
            square = np.rot90(image[row : row + CROP, column : column + CROP], turn % 4)
            found[(square[:, ::-1] if turn > 3 else square).tobytes()] = number, row, column, turn
    return found


def home(square: torch.Tensor) -> tuple[int, int, int, int]:
    """The one place where a square [3, 8, 8] comes from."""
    return places()[((square + 1) * 127.5).round().byte().movedim(0, -1).numpy().tobytes()]


def test_a_square_and_its_observation_show_the_same_place():
    high = texture(24, 20)
    low = high[::4, ::4]
    seen = set()
    for turn in range(8):
        data, below = cut([high, low], 8, 0.5, 0.7, turn)
        back = [np.rot90(square[:, ::-1] if turn > 3 else square, -(turn % 4)) for square in (data, below)]
        assert np.array_equal(back[0], high[8:16, 12:20]) and np.array_equal(back[1], low[2:4, 3:5])
        seen.add(data.tobytes())
    assert len(seen) == 8
    assert np.array_equal(cut([high], 8, 0.5, 0.7)[0], high[6:14, 11:19])


def test_places_reach_from_edge_to_edge_and_are_equally_often():
    image = texture(10, 9)
    assert np.array_equal(cut([image], 8, 0, 0)[0], image[:8, :8])
    assert np.array_equal(cut([image], 8, LAST, LAST)[0], image[1:, 2:])
    assert cut([texture(8, 8)], 8, LAST, LAST)[0].shape == (8, 8, 3)
    columns = [cut([image], 8, 0, share)[0].tobytes() for share in np.linspace(0, 1, 300, endpoint=False)]
    assert sorted(columns.count(each) for each in set(columns)) == [100] * 3


def test_a_batch_follows_from_its_indices_alone(library):
    data, rows = made(library), torch.tensor([7, 3, 1_000_000, 7])
    batch = data[rows]
    assert batch["data"].shape == (4, 3, CROP, CROP) and batch["data"].is_contiguous() and len(data) == 2**20
    assert all(torch.equal(value[0], value[3]) for value in batch.values())
    for k, i in enumerate(rows):
        assert all(torch.equal(value[0], batch[name][k]) for name, value in made(library)[i[None]].items())
    with ThreadPoolExecutor(4) as pool:
        for again in pool.map(data.__getitem__, [rows] * 8):
            assert all(torch.equal(again[name], value) for name, value in batch.items())
    other = made(library, seed=1)[rows]
    assert not any(torch.equal(other[name][0], value[0]) for name, value in batch.items())


def test_no_thread_is_started_where_all_are_kept(library, monkeypatch):
    data, rows = made(library), torch.arange(40)
    before = data[rows]
    assert library.all_kept
    monkeypatch.setattr(squares, "in_parallel", None)
    assert all(torch.equal(value, before[name]) for name, value in data[rows].items())


def test_every_photograph_place_and_turn_comes(library):
    batch = made(library)[torch.arange(400)]
    numbers, rows, columns, turns = zip(*(home(square) for square in batch["data"][:150]), strict=True)
    for found, count in ((numbers, 5), (rows, 13), (columns, 17), (turns, 8)):
        assert set(found) == set(range(count))
    assert len({*batch["low"][:, 0, 0, 0].tolist()}) > 150  # of 256 levels: seeds differ


def windows(library, monkeypatch, most=2) -> Squares:
    monkeypatch.setattr(photographs, "ROOM", most * 3 * 24 * 20)
    monkeypatch.setattr(squares, "VISIT", 4)
    return made(Photographs(library.paths, library.sizes))


def test_a_window_of_indices_knows_only_the_photographs_that_are_kept(library, monkeypatch):
    data = windows(library, monkeypatch)
    assert data.together == 8
    passes = []
    for turn in range(6):
        parts = [{data._number(i, share) for i in range(8 * w, 8 * w + 8) for share in (0.0, 0.5, LAST)} for w in
                 range(3 * turn, 3 * turn + 3)]  # fmt: skip
        assert [len(part) for part in parts] == [2, 2, 1] and set.union(*parts) == set(range(5))
        passes.append(tuple(map(tuple, parts)))
    assert len(set(passes)) > 1  # in another order each time
    even = windows(library, monkeypatch, most=4)  # 3 and 2, not 4 and 1
    assert even.together == 12
    assert [len({even._number(i, share) for share in (0.0, 0.5, LAST)}) for i in (0, 11, 12, 23)] == [3, 3, 2, 2]
    assert windows(library, monkeypatch, most=5).together is None


def test_the_loader_keeps_windows_together_so_that_little_is_decoded(library, monkeypatch):
    data = windows(library, monkeypatch)
    decoded = []
    monkeypatch.setattr(photographs, "pixels", lambda path, own=photographs.pixels: decoded.append(path) or own(path))
    loader = iter(StepLoader(data, 4, seed=3))
    for _ in range(6):  # three windows of two batches
        next(loader)
    loader.close()
    assert len(decoded) <= 6 + 4  # and what was read ahead


def test_indices_are_shuffled_among_neighbours_alone():
    class Numbers:
        together = 10

        def __len__(self):
            return 40

        def __getitem__(self, indices):
            return {"data": indices}

    first, second = ([batch["data"].tolist() for batch in StepLoader(Numbers(), 5, seed)] for seed in (0, 1))
    for found in (first, second):
        for k in range(4):
            assert sorted(found[2 * k] + found[2 * k + 1]) == list(range(10 * k, 10 * k + 10))
    assert first != second and first[0] != sorted(first[0])


def test_held_out_squares_are_fixed_and_stand_upright(library):
    val, test = (HeldOut(library, CROP, finish, 0, num=12, part=part) for part in (VAL, TEST))
    batch = val[torch.arange(12)]
    found = [home(square) for square in batch["data"]]
    assert [number for number, *_ in found] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert len(set(found)) == 12 and {turn for *_, turn in found} == {0}
    again = HeldOut(library, CROP, finish, 0, num=12, part=VAL)[torch.tensor([11, 2])]
    for name, value in batch.items():
        assert torch.equal(again[name], value[[11, 2]]) and value.dtype == torch.float32
        assert not torch.equal(test[torch.arange(12)][name], value)
    assert batch["low"].unique().numel() > 8  # each with a seed of its own


def test_held_out_squares_of_many_photographs_are_spread(library):
    few = HeldOut(library, CROP, finish, 0, num=2, part=VAL)[torch.arange(2)]
    assert [home(square)[0] for square in few["data"]] == [0, 2]


def test_held_out_squares_are_prepared_once_and_eight_bits_lose_nothing(library):
    calls = []

    def counted(images, seeds):
        calls.append(len(seeds))
        return finish(images, seeds)

    data = HeldOut(library, CROP, counted, 0, num=20, part=VAL)
    assert len(data) == 20 and calls == []
    first = data[torch.arange(20)]
    assert torch.equal(data[torch.tensor([19])]["data"], first["data"][19:]) and calls == [16, 4]
    assert torch.equal(first["data"], (((first["data"] + 1) * 127.5).round() / 127.5 - 1))
    levels = torch.arange(256.0)
    every = HeldOut(library, CROP, lambda images, seeds: {"data": levels / 127.5 - 1}, 0, num=1, part=VAL)
    assert torch.equal(every[torch.arange(256)]["data"], levels / 127.5 - 1)


def test_a_photograph_that_breaks_later_is_named_and_the_next_stands_in(library):
    data, rows = made(library), torch.arange(40)
    before = data[rows]["data"]
    library.kept.cache_clear()
    path = library.paths[1][0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="1.png cannot be decoded .*: the next one that can be read stands in"):
        after = data[rows]["data"]
    changed = {k for k in range(40) if not torch.equal(before[k], after[k])}
    assert changed == {k for k in range(40) if home(before[k])[0] == 1}
    assert {home(after[k])[0] for k in changed} == {2}
    held_out = HeldOut(library, CROP, finish, 0, num=5, part=VAL)
    with pytest.warns(UserWarning, match="1.png cannot be decoded"):
        assert [home(square)[0] for square in held_out[torch.arange(5)]["data"]] == [0, 2, 2, 3, 4]


def test_levels_span_the_range():
    square = np.array([0, 255, 51], np.uint8).reshape(1, 1, 3)
    assert tensor([square, square])[1, :, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])


CUT = [
    ("the last place never comes", "- crop // scale + 1", "- crop // scale",
     test_places_reach_from_edge_to_edge_and_are_equally_often),
    ("a pixel beyond the edge", "- crop // scale + 1", "- crop // scale + 2",
     test_places_reach_from_edge_to_edge_and_are_equally_often),
    ("the observation of another place", "row * unit : row * unit +", "row * scale : row * scale +",
     test_a_square_and_its_observation_show_the_same_place),
    ("never mirrored", "turn >= 4", "turn >= 8", test_a_square_and_its_observation_show_the_same_place),
    ("never turned", "turn % 4", "0", test_a_square_and_its_observation_show_the_same_place),
]  # fmt: skip


@pytest.mark.parametrize("mutation", [Mutation(says, cut, *rest) for says, *rest in CUT], ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)
