"""LiDiff's layout: its network against the published one written anew, its sampler, a student."""

import itertools
import math

import pytest
import tiny_lidiff
import torch
from helpers import trainer
from mutations import Mutation, prove
from torch.nn import functional as F

from distillkit.data import DistillData, TensorData
from distillkit.diffusion.process import DiscreteVarianceExploding
from distillkit.files import read_weights
from distillkit.methods.dmd import DMD
from distillkit.students.base import load_student
from domains.lidar.codec import Completion
from domains.lidar.lidiff import LiDiff, LiDiffNetwork
from domains.lidar.lidiff.convert import convert, main
from domains.lidar.lidiff.network import CHANNELS, Gated
from domains.lidar.offsets import vp
from domains.lidar.refinement import Refinement, load_refinement

SIZE = 0.05


def scans(sets=2, num=24, seed=3):
    return 0.4 * torch.randn(sets, num, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("lidiff")
    return convert(tiny_lidiff.write(root / "diff_net.ckpt", tiny_lidiff.denoiser()), root / "teacher")


@pytest.fixture(scope="module")
def teacher(folder):
    return LiDiff(str(folder))


# The network, written anew: voxels in dictionaries, one at a time


class Published:
    """The forward pass of the release for one set of points."""

    def __init__(self, state, prefix):
        self.state = {name.removeprefix(prefix): v.double() for name, v in state.items() if name.startswith(prefix)}

    def conv(self, x, name, offsets, stride, coarse=None):
        kernel, out = self.state[f"{name}.kernel"], {}
        for place in x if coarse is None else coarse:
            rows = [(w, tuple(p + stride * o for p, o in zip(place, offset, strict=True)))
                    for w, offset in zip(kernel, offsets, strict=True)]  # fmt: skip
            out[place] = sum(x[there] @ w for w, there in rows if there in x)
        return out

    def near(self, x, name, stride):
        return self.conv(x, name, [o[::-1] for o in itertools.product((-1, 0, 1), repeat=3)], stride)

    def down(self, x, name, stride):
        coarse = {tuple(p // (2 * stride) * 2 * stride for p in place) for place in x}
        return self.conv(x, name, [o[::-1] for o in itertools.product((0, 1), repeat=3)], stride, sorted(coarse))

    def up(self, x, name, stride, fine):
        kernel, out = self.state[f"{name}.kernel"], {}
        for place in fine:
            parent = tuple(p // (2 * stride) * 2 * stride for p in place)
            i, j, k = ((p - q) // stride for p, q in zip(place, parent, strict=True))
            out[place] = x[parent] @ kernel[i + 2 * j + 4 * k]
        return out

    def norm(self, x, name, relu=True):
        w, b, mean, var = (
            self.state[f"{name}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        out = {place: (v - mean) / (var + 1e-5).sqrt() * w + b for place, v in x.items()}
        return {place: v.relu() for place, v in out.items()} if relu else out

    def residual(self, x, name, stride):
        y = self.norm(self.near(x, f"{name}.net.0", stride), f"{name}.net.1")
        y = self.norm(self.near(y, f"{name}.net.3", stride), f"{name}.net.4", relu=False)
        if f"{name}.downsample.0.kernel" in self.state:
            x = {place: v @ self.state[f"{name}.downsample.0.kernel"] for place, v in x.items()}
            x = self.norm(x, f"{name}.downsample.1", relu=False)
        return {place: (v + x[place]).relu() for place, v in y.items()}

    def mlp(self, x, name):
        for number in (0, 2):
            x = F.linear(x, self.state[f"{name}.{number}.weight"], self.state[f"{name}.{number}.bias"])
            x = F.leaky_relu(x, 0.1) if number == 0 else x
        return x

    def voxels(self, points):
        where = [tuple(int(c) for c in row) for row in (points / SIZE).round()]
        rows = {}
        for place, point in zip(where, points.double(), strict=True):
            rows.setdefault(place, []).append(point)
        return {place: torch.stack(of).mean(0) for place, of in rows.items()}, where

    def way_down(self, x, gate=lambda name, x: x):
        found = [self.norm(self.near(self.norm(self.near(x, "stem.0", 1), "stem.1"), "stem.3", 1), "stem.4")]
        for i in range(1, 5):
            stride = 2 ** (i - 1)
            y = self.down(gate(f"stage{i}", found[-1]), f"stage{i}.0.net.0", stride)
            y = self.norm(y, f"stage{i}.0.net.1")
            for block in (1, 2):
                y = self.residual(y, f"stage{i}.{block}", 2 * stride)
            found.append(y)
        return found

    def whole(self, points, gate=lambda name, x: x):
        x, where = self.voxels(points)
        skips = self.way_down(x, gate)
        y = skips.pop()
        for i in range(1, 5):
            skip, stride = skips.pop(), 2 ** (4 - i)
            y = self.norm(self.up(gate(f"up{i}", y), f"up{i}.0.net.0", stride, skip), f"up{i}.0.net.1")
            y = {place: torch.cat([v, skip[place]]) for place, v in y.items()}
            for block in (0, 1):
                y = self.residual(y, f"up{i}.1.{block}", stride)
        return torch.stack([self.mlp(y[place], "last") for place in where])


def published(state, points, part, t):
    """The noise that the released network sees in points [N, 3] at an integer time."""
    encoder, model = Published(state, "partial_enc."), Published(state, "model.")
    known = encoder.way_down(encoder.voxels(part)[0])[-1]
    places, features = torch.tensor([*known]).double(), torch.stack([*known.values()])
    half = tiny_lidiff.WIDTHS[-1] // 2
    angles = t * torch.exp(-math.log(10_000) * torch.arange(half).double() / (half - 1))
    time = torch.cat([angles.sin(), angles.cos()])

    def gate(name, x):
        out = {}
        for place, v in x.items():
            nearest = (places - torch.tensor(place).double()).square().sum(1).argmin()
            p = model.mlp(features[nearest], f"latent_{name}")
            when = model.mlp(time, f"{name}_temp")
            out[place] = v * model.mlp(torch.cat([when, p] if name == "up1" else [p, when]), f"latemp_{name}")
        return out

    return model.whole(points, gate)


def check_network():
    state, network = tiny_lidiff.denoiser(), LiDiffNetwork(tiny_lidiff.WIDTHS).double().eval()
    network.load_state_dict(state)
    # few voxels of the scan, far apart: no two are equally near
    part = torch.tensor(
        [[[0.0, 0, 0], [0.01, 0.01, 0], [3.07, -1.31, 0.4]], [[-2.5, 0.3, 1], [0, 1.7, 0], [0, 1.7, 0]]]
    )
    x, t = part.repeat(1, 5, 1) + 0.2 * scans(2, 15), torch.tensor([999.0, 250.0])
    with torch.no_grad():
        found = network(x, t / 1000, {"part": part})
    for i in range(2):
        expected = published(state, x[i], part[i], float(t[i]))
        assert (found[i] - expected).abs().max() < 1e-4 * expected.std()


def test_the_network_is_the_published_one():
    check_network()


FAULTS = [
    ("latent before time everywhere", Gated.forward, '(when, seen) if name == "up1" else (seen, when)', "(seen, when)"),
    ("the time of another set", Gated.forward, "(time)[sets]", "(time)[sets * 0]"),
    ("the skip first", Gated.at_points, "[x.features, skip.features]", "[skip.features, x.features]"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0])
def test_faults_of_the_network_are_noticed(fault):
    prove(Mutation(*fault, check_network))


def test_the_released_networks_have_these_weights():
    with torch.device("meta"):
        own = LiDiffNetwork().state_dict(), Refinement().state_dict()
    layout = {f"partial_enc.{name}": shape for name, shape in tiny_lidiff.layout("encoder", CHANNELS).items()}
    layout |= {f"model.{name}": shape for name, shape in tiny_lidiff.layout("denoiser", CHANNELS).items()}
    for found, expected in zip(own, (layout, tiny_lidiff.layout("refinement", CHANNELS)), strict=True):
        assert {name: tuple(value.shape) for name, value in found.items()} == expected


def test_refinement_is_the_published_one(tmp_path):
    state = tiny_lidiff.refinement()
    made = convert(tiny_lidiff.write(tmp_path / "refine_net.ckpt", state), tmp_path / "refine")
    network, points = load_refinement(made), scans(1, 12)
    offsets = Published(state, "model_refine.").whole(points[0]).tanh().unflatten(1, (6, 3))
    expected = (points[0][:, None] + offsets).flatten(0, 1)
    assert (network(points)[0] - expected).abs().max() < 1e-4 and not network.training
    with pytest.raises(ValueError, match="holds refinement.yaml already"):
        convert(tmp_path / "refine_net.ckpt", made)
    with pytest.raises(ValueError, match="holds no refinement: convert refine_net.ckpt"):
        load_refinement(tmp_path)


# Reading


def test_every_weight_is_read(folder):
    state = tiny_lidiff.denoiser()
    kept = read_weights(folder / "model.safetensors")
    assert {name.removeprefix("network.") for name in kept} == {*state}
    assert all(torch.equal(kept[f"network.{name}"].double(), value.double()) for name, value in state.items())


class Evil:
    def __reduce__(self):
        return (print, ("read",))


def test_what_is_refused(folder, tmp_path, capsys):
    state = tiny_lidiff.denoiser()

    def refused(said, state=state, **more):
        with pytest.raises(ValueError, match=said) as error:
            convert(tiny_lidiff.write(tmp_path / "x.ckpt", state, **more), tmp_path / "out")
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()

    refused("asks for .*print, which is no plain data", callbacks=Evil())
    assert "read" not in capsys.readouterr().out
    name = "model.up2.1.0.net.3.kernel"
    refused("1 weights are missing .*up2.1.0.net.3.kernel", {key: value for key, value in state.items() if key != name})
    refused("1 unknown .*model.more", state | {"model.more": torch.zeros(2)})
    refused("it holds ema.decay", state | {"ema.decay": torch.zeros(2)})
    refused("it lacks stem.0.kernel", {key: value for key, value in state.items() if "model.stem" not in key})
    refused(r"kernel is \[27, 20, 21\] instead of", state | {"model.up1.1.0.net.3.kernel": torch.zeros(27, 20, 21)})
    refused("NaN or infinity in " + name, state | {name: torch.full((27, 12, 12), math.nan)})
    refused("holds no state_dict of tensors", {"a": 1})
    with pytest.raises(ValueError, match="does not exist: give diff_net.ckpt"):
        convert(tmp_path / "nowhere.ckpt", tmp_path / "out")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "x.ckpt").read_bytes()[:1000])
    assert main([str(tmp_path / "cut.ckpt"), str(tmp_path / "out")]) == 1
    assert "cannot be read as plain tensors" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds teacher.yaml already"):
        convert(tmp_path / "x.ckpt", folder)
    with pytest.raises(ValueError, match="solver must be ve or vp, got 'ode'"):
        LiDiff(str(folder), solver="ode")


# Sampling


def test_the_teacher_is_described(folder, teacher):
    assert teacher.process == DiscreteVarianceExploding() and teacher.event_shape == (240, 3)
    assert teacher.start.base == "part" and teacher.codec.repeat == 10 and teacher.guidable
    assert LiDiff.offers({"path": str(folder)}) == {"denoiser", "classes"}
    assert teacher.grid(8).tolist() == [999, 874, 749, 624, 500, 375, 250, 125] and teacher.grid(1).tolist() == [999]
    assert LiDiff(str(folder), codec=Completion(4), event_shape=[96, 3]).shape(2, {"part": scans()}) == (2, 96, 3)
    assert not teacher.null_condition({"part": scans()})["part"].any()


def test_one_step_is_the_noise_taken_away(teacher):
    part, noise = scans(), torch.randn(2, 240, 3, generator=torch.Generator().manual_seed(0))
    sigma, t = teacher.process.sigma(torch.tensor(999.0)), torch.tensor([0.999, 0.999])
    x = part.repeat(1, 10, 1) + sigma * noise
    network = teacher.denoiser.network
    with torch.no_grad():
        eps, without = (network(x, t, {"part": of}) for of in (part, torch.zeros_like(part)))
    found = teacher.sample(noise, {"part": part}, 1, "ddim", kappa=6.0)
    expected = x - sigma * (without + 6 * (eps - without))
    assert (found - expected).abs().max() < 1e-4 * expected.std()


def check_offsets():
    """The published loop: the scheduler of diffusers on what is added to the scan's points."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        1000,
        beta_start=3.5e-5,
        beta_end=0.007,
        beta_schedule="linear",
        algorithm_type="sde-dpmsolver++",
        solver_order=2,
    )
    scheduler.set_timesteps(4)
    a, z = scans(1, 30).double(), torch.randn(5, 1, 30, 3, dtype=torch.float64)
    process = DiscreteVarianceExploding()

    def noise_in(x, t):
        return torch.tanh(x * t / 500 - a)

    def denoise(x, t):
        return x - process.sigma(t) * noise_in(x, t)

    x = a + z[0]
    for i, t in enumerate(scheduler.timesteps, start=1):
        x = a + scheduler.step(noise_in(x, t.double()), t, x - a, variance_noise=z[i]).prev_sample
    times = scheduler.timesteps.double()
    start = a + process.sigma(times[0]) * z[0]
    found = vp(denoise, process, start, times, lambda i: z[i], anchor=a)
    assert (found - x).abs().max() < 1e-4 < (x - a).std()


def test_the_published_sampler_moves_offsets():
    check_offsets()


@pytest.mark.parametrize(
    "old, new",
    [
        ("d - sigma * eps) / alpha", "d - sigma * eps)"),
        ("denoise(anchor + d, t)", "denoise(d, t)"),
        (" / process.sigma(times[0]).to(x.dtype)", " * 1.0"),
    ],
)
def test_faults_of_the_published_sampler_are_noticed(old, new):
    prove(Mutation("", vp, old, new, check_offsets))


def test_the_published_sampler_is_the_teachers(folder):
    teacher, part = LiDiff(str(folder), solver="vp", steps=2), scans(1)
    assert teacher.best == {"solver": "vp", "steps": 2}
    noise, drawn = torch.randn(2, 1, 240, 3, generator=torch.Generator().manual_seed(1))
    times, anchor, cond = teacher.grid(2), part.repeat(1, 10, 1), {"part": part}
    found = teacher.sample(noise, cond, draw=lambda i: drawn)
    with torch.no_grad():
        start = anchor + teacher.process.sigma(times[0]).float() * noise
        expected = vp(
            lambda x, t: teacher.denoiser(x, t, cond), teacher.process, start, times, lambda i: drawn, anchor=anchor
        )
    assert (found - expected).abs().max() < 1e-4 * expected.std()
    assert teacher.generate(1, cond, 0).shape == (1, 240, 3)


# Students


class Scenes(DistillData):
    domain, context, classes = "lidar", ("part",), {}
    event_shape = (48, 3)

    def load(self):
        part = scans(8, 24)
        return (TensorData({"data": part.repeat(1, 2, 1) + 0.1 * scans(8, 48, 5), "part": part}),) * 3


def test_a_student_keeps_the_statistics_of_the_release(folder, tmp_path):
    teacher = LiDiff(str(folder), event_shape=[48, 3], codec=Completion(2))
    before, model = teacher.fingerprint(), DMD(teacher, num_steps=1)
    trainer(6).fit(model, datamodule=Scenes(batch_size=2))  # the fake score comes first
    own, theirs = model.student.network.state_dict(), teacher.denoiser.network.state_dict()
    kept = [name for name in own if "running" in name or "tracked" in name]
    assert kept and all(torch.equal(own[name], theirs[name]) for name in kept)
    assert not torch.equal(own["model.last.2.bias"], theirs["model.last.2.bias"]) and teacher.fingerprint() == before
    saved = model.export(tmp_path / "student")
    student, cond = load_student(saved), {"part": scans(2, 30, 9)}  # scans of another size
    assert torch.allclose(student.sample(2, cond, seed=1), model.sample(cond, 2, 1), atol=1e-5)
    with pytest.raises(ValueError, match="must hold scans"):
        student.sample(1, {"part": torch.zeros(1, 30, 4)})
