"""Sparse convolutions against dense ones, in values and gradients, in float64."""

import pytest
import torch
from mutations import Mutation, prove
from torch.nn import functional as F

from domains.lidar.lidiff import sparse
from domains.lidar.lidiff.sparse import Convolution, Down, Grid, Up, Voxels

SIDE = 8  # voxels of the dense grid, from -4 to 3


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scattered(sets=2, num=60, seed=1):
    """Points of voxels of 1 m, two of which may share one, on both sides of zero."""
    generator = torch.Generator().manual_seed(seed)
    voxels = torch.randint(-4, 4, (sets, num, 3), generator=generator)
    return voxels + 0.8 * torch.rand(voxels.shape, generator=generator, dtype=torch.float64) - 0.4


def dense(x, stride=1):
    """Voxels [V, C] as [B, C, X, Y, Z], and where they are occupied."""
    sets, place = x.grid.places(x.level)
    index = (sets, *((place + SIDE // 2) // stride).unbind(-1))
    shape = (x.grid.sets, *[SIDE // stride] * 3)
    full = torch.zeros(*shape, x.features.shape[1], dtype=x.features.dtype).index_put(index, x.features)
    there = torch.zeros(shape, dtype=torch.bool)
    there[index] = True
    return full.movedim(-1, 1), there[:, None], index


def weight_of(layer, side):
    """A kernel [side^3, in, out], x fastest, as conv3d's [out, in, x, y, z]."""
    return layer.kernel.unflatten(0, (side, side, side)).permute(4, 3, 2, 1, 0)


def gradients(out, *of):
    weight = rand(*out.shape, seed=9)
    return torch.autograd.grad((out * weight).sum(), of)


def compare(layer, x, expected):
    """A layer's values and gradients against those of a dense computation at the same voxels."""
    out = layer(x)
    full, there, index = dense(out, 2**out.level)
    wanted = expected.movedim(1, -1)[index]
    assert (out.features - wanted).abs().max() < 1e-12 and out.features.std() > 0.1
    for found, other in zip(
        gradients(out.features, x.features, layer.kernel), gradients(wanted, x.features, layer.kernel), strict=True
    ):
        assert (found - other).abs().max() < 1e-12 and found.std() > 0.01
    return full, there


def start(level=0, channels=3):
    grid = Grid(scattered(), 1.0)
    return Voxels(rand(len(grid.keys(level)), channels, seed=2).requires_grad_(True), grid, level)


def check_convolution(level=0):
    x, layer = start(level), Convolution(3, 5).double()
    full, *_ = dense(x, 2**level)
    compare(layer, x, F.conv3d(full, weight_of(layer, 3), padding=1))


def check_down():
    x, layer = start(), Down(3, 5).double()
    compare(layer, x, F.conv3d(dense(x)[0], weight_of(layer, 2), stride=2))


def check_up():
    x, layer = start(1), Up(3, 5).double()
    weight = weight_of(layer, 2).movedim(0, 1)  # a transposed convolution has its inputs first
    compare(layer, x, F.conv_transpose3d(dense(x, 2)[0], weight, stride=2))


def check_means():
    points, grid = scattered(), Grid(scattered(), 1.0)
    values = rand(2, 60, 4, seed=5).requires_grad_(True)
    voxels, cells = grid.voxelised(values), points.round()
    assert len(voxels.features) < 120  # some voxels hold several points
    same = (cells[:, :, None] == cells[:, None]).all(-1).double()
    expected = same @ values / same.sum(-1, keepdim=True)
    found = grid.points(voxels)
    assert (found - expected).abs().max() < 1e-12
    for one, other in zip(gradients(found, values), gradients(expected, values), strict=True):
        assert (one - other).abs().max() < 1e-12


@pytest.mark.parametrize("level", [0, 1])
def test_a_convolution_is_the_dense_one(level):
    check_convolution(level)


def test_strides_are_the_dense_ones():
    check_down()
    check_up()


def test_features_are_means_and_come_back():
    check_means()


def test_coordinates_are_those_of_the_least_voxel():
    grid = Grid(torch.tensor([[[-0.21, 0.26, 7.5]], [[0.05, 0, -0.04]]]), 0.1)
    assert grid.places(0)[1].tolist() == [[-2, 3, 75], [0, 0, 0]] and grid.places(0)[0].tolist() == [0, 1]
    assert grid.places(2)[1].tolist() == [[-4, 0, 72], [0, 0, 0]]


def check_nearest():
    one, other = Grid(scattered(seed=3), 1.0), Grid(scattered(num=5, seed=4), 1.0)
    (sets, own), (theirs, among) = one.places(0), other.places(1)
    found = one.nearest(0, other, 1)
    apart = (own[:, None] - among).square().sum(-1) + 1000 * (sets[:, None] != theirs)
    assert torch.equal(apart.gather(1, found[:, None])[:, 0], apart.amin(1))


def test_the_nearest_voxel_is_of_the_same_set():
    check_nearest()


def test_a_gpu_finds_the_same_nearest(monkeypatch):
    """By all distances, in chunks."""
    points, among = rand(50, 3), rand(40, 3, seed=1)
    tree = sparse.nearest(points, among)
    monkeypatch.setattr(sparse.losses, "DISTANCES", 100)
    assert torch.equal(sparse.losses.nearest(points[None], among[None])[0, :, 0], tree)


def test_whole_scenes_need_no_grid():
    """Scattered over a kilometre, and farther than keys reach."""
    points = 200 * rand(1, 5000, 3)
    points[0, 0], points[0, 1] = torch.tensor([1e9, -1e9, 0]), torch.tensor([1e9, -1e9, 0])
    grid = Grid(points, 0.05)
    out = Convolution(3, 4).double()(grid.voxelised(points))
    assert out.features.shape == (4999, 4) and out.features.isfinite().all()
    with pytest.raises(ValueError, match="at most 4096 sets of points, got 4097"):
        Grid(torch.zeros(4097, 1, 3), 0.05)


def test_neighbours_are_found_once(monkeypatch):
    x, calls, _split = start(), [], sparse._split
    monkeypatch.setattr(sparse, "_split", lambda *given: calls.append(1) or _split(*given))
    for _ in range(3):
        Up(5, 3).double()(Down(3, 5).double()(Convolution(3, 3).double()(x)))
    assert len(calls) == 2


FAULTS = [
    ("z fastest", Grid.neighbours, "steps[:, None, None] + (steps[:, None] << BITS) + (steps << 2 * BITS)",
     "(steps[:, None, None] << 2 * BITS) + (steps[:, None] << BITS) + steps", check_convolution),
    ("mirrored", Grid.neighbours, "keys + offsets", "keys - offsets", check_convolution),
    ("neighbours of another stride", Grid.neighbours, "2**level", "1", lambda: check_convolution(1)),
    ("places in another order", Grid.inside, "[1, 2, 4]", "[4, 2, 1]", check_down),
    ("sums for means", Grid.voxelised, "total / self.cells.bincount()[:, None].to(total)", "total", check_means),
    ("places of the transpose in another order", Grid.inside, "[1, 2, 4]", "[4, 2, 1]", check_up),
    ("rows of the first set", Grid.nearest, "before += len(candidates)", "pass", check_nearest),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0])
def test_faults_are_noticed(fault):
    prove(Mutation(*fault))
