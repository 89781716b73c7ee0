"""ScoreLiDAR's structural losses on sets worked out by hand, and the released code's defect."""

# ruff: noqa: E501 (a fault is a row of a table)

import math
from functools import partial
from itertools import permutations

import pytest
import torch
from helpers import f64
from mutations import Mutation, prove

from distillkit.losses import points
from distillkit.losses.points import curvature, key_points, keypoint_loss, nearest, scene_loss, smallest_eigenvalue

X = f64(0, 0, 0, 1, 0, 0).reshape(1, 2, 3)
Y = f64(5, 0, 0, 0, 0.3, 0).reshape(1, 2, 3)  # the second one is the nearest of both of X
ALL = {"share": 1.0, "key_share": 1.0}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def value_and_gradient(loss, x, *args, **settings):
    x = x.clone().requires_grad_()
    made = loss(x, *args, **settings)
    return made.item(), torch.autograd.grad(made, x)[0]


# The scene


GAPS = {  # there and, by nearest neighbours, back
    "nn": ([[0, -0.3, 0], [1, -0.3, 0]], [[-4, 0, 0], [0, -0.3, 0]]),  # y_1 has x_2, y_2 has x_1
    "index": ([[-5, 0, 0], [1, -0.3, 0]],),
}


def check_scene(correspondence="nn", squared=True):
    """Of gaps d, `mean d^2` has the gradient 2 d / 6, `mean |d|` has d / |d| / 2."""
    value, gradient = value_and_gradient(scene_loss, X, Y, correspondence, squared)
    values, gradients = [], []
    for way, gap in enumerate(torch.tensor(GAPS[correspondence], dtype=torch.float64)):
        length = gap.norm(dim=1, keepdim=True)
        pull = 2 * gap / 6 if squared else gap / length / 2
        values.append(gap.square().mean() if squared else length.mean())
        gradients.append(pull.flip(0) if way else pull)
    assert value == pytest.approx(torch.stack(values).mean().item())
    torch.testing.assert_close(gradient[0], torch.stack(gradients).mean(0))


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("correspondence", GAPS)
def test_the_scene_in_closed_form(correspondence, squared):
    check_scene(correspondence, squared)


def check_order():
    """The order of a scene says nothing, so a loss must not hear it; the loss by index does."""
    x, y = draw(2, 9, 3), draw(2, 9, 3, seed=1)
    shuffled = y[:, torch.randperm(9, generator=torch.Generator().manual_seed(0))]
    first, again = (value_and_gradient(scene_loss, x, truth) for truth in (y, shuffled))
    assert first[0] == pytest.approx(again[0]) and torch.allclose(first[1], again[1])
    assert scene_loss(x, y, "index").item() != pytest.approx(scene_loss(x, shuffled, "index").item(), rel=0.01)


def test_shuffled_truth_changes_nothing_but_the_loss_by_index():
    check_order()


def test_by_index_shuffled_truth_pulls_every_point_to_the_centroid():
    """The mean gradient over all orders of y is `2 (x - mean y) / 3N`: the scene collapses."""
    x, y = draw(1, 4, 3), 5 + draw(1, 4, 3, seed=1)
    orders = [*permutations(range(4))]
    pull = sum(value_and_gradient(scene_loss, x, y[:, order], "index")[1] for order in orders) / len(orders)
    torch.testing.assert_close(pull, 2 * (x - y.mean(1, keepdim=True)) / 12)


# Key points


ROW_X, ROW_Y = (f64(*(v for x in row for v in (x, 0, 0))).reshape(1, 3, 3) for row in ((0, 1, 3), (0, 2, 3)))


def check_distances():
    """Distances 1, 3, 2 beside 2, 3, 1, each twice in nine."""
    value, gradient = value_and_gradient(keypoint_loss, ROW_X, ROW_Y, uniform(1, 3), "index", **ALL)
    assert value == pytest.approx(4 / 9)
    order = gradient[0, :, 0]
    torch.testing.assert_close(order, f64(4, -8, 4) / 9)
    assert not gradient[0, :, 1:].any()


def test_the_key_points_in_closed_form():
    check_distances()


def check_matched():
    """Each key point has its nearest generated point, in whatever order these come."""
    y = 10 * draw(2, 12, 3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    x = (y + 0.1 * draw(2, 12, 3, seed=1))[:, order]
    back = order.argsort()
    for u in (uniform(2, 12), uniform(2, 12, seed=1)):
        settings = {"share": 0.5, "key_share": 0.5, "neighbours": 5}
        found, gradient = value_and_gradient(keypoint_loss, x, y, u, "nn", **settings)
        expected, in_order = value_and_gradient(keypoint_loss, x[:, back], y, u, "index", **settings)
        assert found == pytest.approx(expected) and torch.allclose(gradient[:, back], in_order)
        assert (gradient.abs().sum(-1) > 0).sum(1).tolist() == [3, 3]  # of 12 points 6 are drawn and 3 taken


def test_key_points_are_matched_with_their_nearest():
    check_matched()


def box(spacing=0.5):
    """A horizontal square of 5 m with a post of 1 m: a plane, and what is not."""
    axis = torch.arange(-2.5, 2.6, spacing, dtype=torch.float64)
    ground = torch.stack([*torch.meshgrid(axis, axis, indexing="ij"), torch.zeros(len(axis), len(axis))], -1).reshape(
        -1, 3
    )
    post = torch.tensor([[x, y, z] for x in (0, 0.2) for y in (0, 0.2) for z in (0.3, 0.6, 0.9)], dtype=torch.float64)
    return torch.cat([ground, post])[None]


def check_curved():
    """The key points are where the scene is no plane; points of it alone are drawn."""
    scene = box()
    on_post = scene[0, :, 2] > 0
    keys, there = key_points(scene, uniform(*scene.shape[:2]), share=1.0, key_share=0.09, neighbours=8)
    assert there.all() and on_post[keys[0]].all() and keys.shape == (1, 12)
    u = uniform(*scene.shape[:2], seed=2)
    keys, _ = key_points(scene, u, share=0.3, key_share=0.4, neighbours=8)
    drawn = u[0].topk(math.ceil(0.3 * scene.shape[1])).indices
    assert set(keys[0].tolist()) <= set(drawn.tolist()) and len(keys[0]) == math.ceil(0.4 * len(drawn))


def test_the_key_points_are_the_most_curved_of_those_drawn():
    check_curved()


def star(a, b, c):
    """Pairs of points along the axes, whose scatter has the eigenvalues 2 a^2, 2 b^2, 2 c^2."""
    arms = torch.diag(f64(a, b, c))
    return torch.cat([arms, -arms])[None]


def check_curvature(a=0.5, b=3.0, c=2.0):
    turn, _ = torch.linalg.qr(draw(3, 3))
    shape = 40 + star(a, b, c) @ turn
    expected = min(a, b, c) ** 2 / (a**2 + b**2 + c**2)
    assert curvature(shape[:, :1], shape, 6).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("axes", [(0.5, 3, 2), (1, 1, 1), (2, 2, 0), (1, 0, 0), (0, 0, 0)], ids=str)
def test_curvature_is_that_of_the_ellipsoid_whatever_its_pose(axes):
    if not any(axes):
        assert curvature(star(0, 0, 0)[:, :1], star(0, 0, 0), 6).item() == 0  # one point six times: no shape
    else:
        check_curvature(*axes)


def check_local():
    """Neighbours are the nearest: with a plane beside the star they must not be others."""
    far = torch.cat([star(1, 1, 1), box() + 100], 1)
    assert curvature(far[:, :1], far, 6).item() == pytest.approx(1 / 3)
    assert curvature(far[:, :1], far, 7).item() < 0.1


def test_neighbours_are_the_nearest():
    check_local()


def check_few():
    """Of fewer points than neighbours there are all, and of padding none."""
    shape = 1 + star(0.5, 3, 2)
    expected = curvature(shape[:, :1], shape, 6)
    torch.testing.assert_close(curvature(shape[:, :1], shape, 50), expected)
    for garbage in (0.3, 1e30):
        padded = torch.cat([shape, torch.full((1, 5, 3), garbage, dtype=torch.float64)], 1)
        torch.testing.assert_close(curvature(shape[:, :1], padded, 9, torch.arange(11)[None] < 6), expected)


def test_a_small_set_has_no_neighbours_but_its_own():
    check_few()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_smallest_eigenvalue_is_that_of_lapack(scale):
    a = scale * draw(500, 3, 3)
    a = a @ a.mT
    torch.testing.assert_close(smallest_eigenvalue(a), torch.linalg.eigvalsh(a)[:, 0], rtol=0, atol=1e-7 * scale**2)


# Nearest


def check_nearest(offset=5_000.0):
    """Centimetres apart and kilometres away, in float32."""
    y = (draw(2, 300, 3) * 0.1 + offset).float()
    x = (draw(2, 200, 3, seed=1) * 0.1 + offset).float()
    exact = (x[:, :, None].double() - y[:, None].double()).norm(dim=-1)
    for num in (1, 3):
        found = nearest(x, y, num)
        torch.testing.assert_close(exact.gather(2, found), exact.sort(-1).values[..., :num], rtol=0, atol=0)


def test_the_nearest_are_the_nearest_far_from_the_origin_too():
    check_nearest()


def check_chunks():
    x, y, u = draw(2, 40, 3), draw(2, 40, 3, seed=1), uniform(2, 40)
    settings = {"share": 1.0, "key_share": 0.5, "neighbours": 9}
    whole = [value_and_gradient(scene_loss, x, y), value_and_gradient(keypoint_loss, x, y, u, **settings)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points, "DISTANCES", 320)  # 4 rows of 2 x 40, 8 of 2 x 20
        parts = [value_and_gradient(scene_loss, x, y), value_and_gradient(keypoint_loss, x, y, u, **settings)]
    for one, other in zip(whole, parts, strict=True):
        assert one[0] == pytest.approx(other[0]) and torch.allclose(one[1], other[1])


def test_large_scenes_are_worked_off_in_chunks():
    check_chunks()


@pytest.mark.slow
def test_published_numbers_of_key_points_fit_in_memory():
    """6000 of 18,000 drawn of 180,000: matrices of 36 million distances, held in parts."""
    y, u = 20 * torch.randn(1, 180_000, 3, generator=torch.Generator().manual_seed(0)), uniform(1, 180_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points, "curvature", lambda some, *_: some[..., 2])  # whose neighbours a CPU takes minutes for
        value, gradient = value_and_gradient(keypoint_loss, 1.1 * y, y, u, "index")
        keys, _ = key_points(y, u, 0.1, 1 / 3, 180)
    distances = torch.cdist(taken := y[:, keys[0]], taken)
    assert value == pytest.approx(0.01 * distances.square().mean().item(), rel=1e-3)
    assert (gradient.abs().sum(-1) > 0).sum() == 6000 == keys.shape[1]


# What both must keep


def motion():
    """A rotation and a shift."""
    turn, _ = torch.linalg.qr(draw(3, 3, seed=4))
    return lambda x: x @ turn + f64(3.0, -2.0, 0.5)


LOSSES = {
    "scene": lambda x, y, kind: scene_loss(x, y, kind),
    "distance": lambda x, y, kind: scene_loss(x, y, kind, squared=False),
    "point": lambda x, y, kind: keypoint_loss(x, y, uniform(2, 30), kind, 0.5, 0.5, 6),
}


@pytest.mark.parametrize("kind", ["nn", "index"])
@pytest.mark.parametrize("name", LOSSES)
def test_moving_both_scenes_changes_nothing(name, kind):
    loss, move = LOSSES[name], motion()
    x, y = draw(2, 30, 3), draw(2, 30, 3, seed=1)
    assert loss(x, y, kind).item() == pytest.approx(loss(move(x), move(y), kind).item())


def test_moving_the_generated_scene_alone_changes_the_scene_and_not_its_distances():
    x, y, move = draw(2, 30, 3), draw(2, 30, 3, seed=1), motion()
    for name in ("scene", "distance"):
        assert LOSSES[name](move(x), y, "index") > 1.5 * LOSSES[name](x, y, "index")
        assert LOSSES[name](move(x), y, "nn") > 1.5 * LOSSES[name](x, y, "nn")
    assert LOSSES["point"](move(x), y, "index").item() == pytest.approx(LOSSES["point"](x, y, "index").item())


@pytest.mark.parametrize("kind", ["nn", "index"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_true_scene_is_left_alone(name, kind):
    """Value and gradient are zero, not NaN where distances vanish; in any order, but by index."""
    y = draw(2, 30, 3)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    x = y if kind == "index" else y[:, order]
    value, gradient = value_and_gradient(lambda x: LOSSES[name](x, y, kind), x)
    assert value == pytest.approx(0, abs=1e-12) and gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_a_scene_that_shrank_is_pulled_apart(name):
    """Downhill is outwards."""
    y = draw(2, 30, 3)
    y = y - y.mean(1, keepdim=True)
    _, gradient = value_and_gradient(lambda x: LOSSES[name](x, y, "index"), 0.8 * y)
    assert ((gradient * y).sum((1, 2)) < 0).all()


SIZES = torch.tensor([30, 17, 23])
MASK = torch.arange(30) < SIZES[:, None]


def check_mask(name, kind="nn"):
    """A padded batch has the mean of its sets alone, whatever lies in the padding."""
    x, y, u = draw(3, 30, 3), draw(3, 30, 3, seed=1), uniform(3, 30)

    def loss(x, y, u, mask=None):
        if name == "point":
            return keypoint_loss(x, y, u, kind, 0.5, 0.5, 8, mask)
        return scene_loss(x, y, kind, name == "scene", mask)

    alone = [loss(*(v[i : i + 1, :size] for v in (x, y, u))) for i, size in enumerate(SIZES)]
    expected = torch.stack(alone).mean()
    far = torch.full_like(x, 1e30)
    for garbage in ((far, far), (y.flip(1), x.flip(1))):  # the other scene's own points would be nearest
        hostile = [torch.where(MASK[..., None], *pair) for pair in zip((x, y), garbage, strict=True)]
        torch.testing.assert_close(loss(*hostile, u, MASK), expected)


@pytest.mark.parametrize("kind", ["nn", "index"])
@pytest.mark.parametrize("name", LOSSES)
def test_padding_counts_nowhere(name, kind):
    check_mask(name, kind)


# Each fault must be noticed

plain, squares, by_index = (partial(check_scene, *of) for of in (("nn", False), ("nn", True), ("index", True)))
MUTATIONS = [
    (scene_loss, "index for nn", '== "index"', '!= ""', check_order),
    (scene_loss, "nn for index", 'if correspondence == "index"', "if False", by_index),
    (scene_loss, "no way back", "((x_g, y), (y, x_g))", "((x_g, y),)", squares),
    (scene_loss, "the way back alone", "((x_g, y), (y, x_g))", "((y, x_g),)", squares),
    (scene_loss, "the sum of both ways", " / len(gaps)", "", squares),
    (scene_loss, "the nearest of its own scene", "nearest(one, other,", "nearest(other, other,", squares),
    (scene_loss, "the nearest stopped", "one - taken(other,", "one - taken(other.detach(),", squares),
    (scene_loss, "the points stopped", "[one - taken", "[one.detach() - taken", squares),
    (scene_loss, "not squared", "if squared", "if False", squares),
    (scene_loss, "always squared", "if squared", "if True", plain),
    (scene_loss, "nearest of the padding too", "nearest(one, other, mask=mask)", "nearest(one, other)", partial(check_mask, "scene")),
    (scene_loss, "the mean of the padding too", "gap.norm(dim=-1), mask)", "gap.norm(dim=-1))", partial(check_mask, "distance")),
    (keypoint_loss, "index for nn", '== "index"', '!= ""', check_matched),
    (keypoint_loss, "nn for index", 'if correspondence == "index"', "if False", partial(test_moving_the_generated_scene_alone_changes_the_scene_and_not_its_distances)),
    (keypoint_loss, "the generated points' nearest", "nearest(y, x_g, mask=mask)", "nearest(x_g[:, :y.shape[1]], y, mask=None)", check_matched),
    (keypoint_loss, "the key points stopped", "x_g = taken(x_g,", "x_g = 0 * taken(x_g, keys) + taken(x_g.detach(),", check_distances),
    (keypoint_loss, "the mean over rows alone", ".square().clamp_min(1)", ".clamp_min(1)", check_distances),
    (keypoint_loss, "padding matched", "nearest(y, x_g, mask=mask)", "nearest(y, x_g)", partial(check_mask, "point")),
    (points._errors, "the square of the squares", "apart(x[:, rows], x) - apart(y[:, rows], y)", "apart(x[:, rows], x).square() - apart(y[:, rows], y).square()", check_distances),
    (points._errors, "not squared", ".square()", ".abs()", check_distances),
    (points._errors, "the truth's distances left out", "- apart(y[:, rows], y)", "- 0 * apart(y[:, rows], y)", check_distances),
    (points._errors, "the padding's rows too", "there[:, rows, None] & there[:, None]", "there[:, None].expand_as(error)", partial(check_mask, "point")),
    (points._errors, "the padding's columns too", "there[:, rows, None] & there[:, None]", "there[:, rows, None]", partial(check_mask, "point")),
    (key_points, "the flattest", "curvature(taken", "-curvature(taken", check_curved),
    (key_points, "the first ones drawn", "_highest(u, share, mask)", "_highest(-torch.arange(u.shape[1]).expand_as(u).float(), share, mask)", check_curved),
    (key_points, "the places among those drawn", "drawn.gather(1, keys)", "keys", check_curved),
    (key_points, "the same share twice", "key_share, there)", "share, there)", check_curved),
    (key_points, "the padding's neighbours too", "neighbours, mask)", "neighbours)", partial(check_mask, "point")),
    (points._highest, "padding drawn", "score.masked_fill(~mask, -math.inf)", "score", partial(check_mask, "point")),
    (points._highest, "as many of small sets", "ranks < (share * mask.sum(1, keepdim=True)).ceil()", "(ranks < num).expand(len(mask), -1)", partial(check_mask, "point")),
    (curvature, "not around their mean", "- local.sum(2, keepdim=True)", "- 0 * local.sum(2, keepdim=True)", check_curvature),
    (curvature, "not over the trace", " / trace.clamp_min(torch.finfo(trace.dtype).tiny)", "", check_curvature),
    (curvature, "all points for neighbours", "nearest(points, y, neighbours, mask)", "nearest(points, y, y.shape[1], mask)", check_local),
    (curvature, "padding among the few", "torch.where(there, local, 0)", "local", check_few),
    (curvature, "padding at the mean of all", "there.sum(2, keepdim=True)", "torch.ones_like(there).sum(2, keepdim=True)", check_few),
    (smallest_eigenvalue, "the largest", " + 2 * math.pi / 3", "", check_curvature),
    (smallest_eigenvalue, "the middle one", "2 * math.pi / 3", "4 * math.pi / 3", check_curvature),
    (smallest_eigenvalue, "the trace for its third", ".mean(-1)", ".sum(-1)", check_curvature),
    (nearest, "in single precision", "points.double(), y.double(), []", "points, y, []", check_nearest),
    (nearest, "the furthest", "squares.min(", "squares.max(", squares),
    (nearest, "the furthest of several", "largest=False", "largest=True", check_nearest),
    (nearest, "the sign of the products", "alpha=-2", "alpha=2", check_nearest),
    (nearest, "the offset left out", "y.square().sum(-1)[:, None]", "0 * y.square().sum(-1)[:, None]", squares),
    (nearest, "the first rows again", "points[:, rows]", "points[:, : rows.stop - rows.start]", check_chunks),
]  # fmt: skip


@pytest.mark.parametrize("mutation", [Mutation(says, function, *rest) for function, says, *rest in MUTATIONS], ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)
