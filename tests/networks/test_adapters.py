"""Low-rank adapters on one frozen network: every network, closed forms, folders of students."""

import copy
import re

import pytest
import torch
from helpers import wake
from torch import nn

from distillkit import load_student
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.files import save_weights
from distillkit.networks.adapters import Adapters, Base, LowRank, TeacherBase
from distillkit.networks.ddit import DDiT
from distillkit.networks.dit import DiT
from distillkit.networks.mlp import MLP
from distillkit.networks.pair_transformer import PairTransformer
from distillkit.networks.set_dit import SetDiT
from distillkit.networks.unet import UNet
from distillkit.networks.video_unet import VideoUNet
from distillkit.spec import Outside, from_spec, to_spec
from distillkit.students.few_step import FewStepStudent
from distillkit.teachers.base import Teacher
from distillkit.teachers.folder import FolderTeacher
from domains.image.teacher import Digits
from domains.toy.teacher import Gaussian

CLASSES = {"label": 3}
MASK = {"mask": torch.arange(6) < torch.tensor([[6], [4]])}
COORDS = {"coords": torch.stack([torch.arange(6), torch.arange(6) % 3, torch.arange(6) // 2], -1).expand(2, 6, 3)}
NETWORKS = {
    "mlp": (lambda: MLP([3], 16, 2, CLASSES), (3,), {}),
    "unet": (lambda: UNet([1, 8, 8], 8, classes=CLASSES), (1, 8, 8), {}),
    "video_unet": (lambda: VideoUNet([1, 4, 8, 8], 8, classes=CLASSES), (1, 4, 8, 8), {}),
    "dit": (lambda: DiT([1, 4, 4], 16, 2, 2, classes=CLASSES), (1, 4, 4), {}),
    "set_dit": (lambda: SetDiT([6, 2], 8, 16, 1, 2, classes=CLASSES), (6, 2), MASK | COORDS),
    "pair_transformer": (lambda: PairTransformer([6, 3], 16, 2, 2, 8, CLASSES), (6, 3), MASK),
    "ddit": (lambda: DDiT(5, width=16, depth=2, heads=2, cond_dim=8, classes=CLASSES), None, {}),
}


class Here(Base):
    """A base whose network is in memory."""

    def __init__(self, network):
        self.network = network

    def __str__(self):
        return "the network here"


def on(network, rank=2, targets=None):
    return Adapters(Here(wake(network).requires_grad_(False).eval()), rank, targets)


@pytest.fixture(params=NETWORKS)
def case(request):
    """Adapters on one of the networks, and their inputs."""
    make, shape, cond = NETWORKS[request.param]
    g = torch.Generator().manual_seed(1)
    x = torch.randint(5, (2, 6), generator=g) if shape is None else torch.randn(2, *shape, generator=g)
    return on(make()), (x, torch.tensor([0.3, 0.8]), {"label": torch.tensor([0, 3]), **cond})


def changed(adapters):
    """Returns adapters whose changes are not zero."""
    for parameter, seed in zip(adapters.layers.parameters(), range(10**6), strict=False):
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(seed))
    return adapters


def storages(tensors):
    return {t.untyped_storage().data_ptr() for t in tensors}


def out_of(value):
    return value[-1] if isinstance(value, tuple) else value


# Every network


def test_it_starts_as_its_base_and_ends_as_another(case):
    adapters, inputs = case
    base = adapters._arguments["base"].network
    expected = out_of(base(*inputs))
    assert torch.equal(out_of(adapters(*inputs)), expected)
    found = out_of(changed(adapters)(*inputs))
    assert (found - expected).abs().max() > 1e-3
    assert torch.equal(out_of(base(*inputs)), expected)


def test_every_linear_layer_and_convolution_is_changed_and_nothing_else_learns(case):
    adapters, inputs = case
    base = adapters._arguments["base"].network
    layers = [m for m in base.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv3d))]
    found = [m for m in adapters.modules() if isinstance(m, LowRank)]
    assert len(found) == len(layers) > 2
    changed(adapters)
    out_of(adapters(*inputs)).square().sum().backward()
    named = dict(adapters.named_parameters())
    assert all(name.endswith((".down.weight", ".up.weight")) and p.requires_grad for name, p in named.items())
    assert not [name for name, p in named.items() if p.grad is None]
    assert all(p.grad is None and not p.requires_grad for p in adapters.tree.parameters())


def test_merged_is_the_same_network_without_adapters(case):
    adapters, inputs = case
    base = adapters._arguments["base"].network
    before, expected = copy.deepcopy(base.state_dict()), out_of(changed(adapters)(*inputs))
    plain = adapters.merge()
    assert type(plain) is type(base) and to_spec(plain) == to_spec(base)
    assert plain.state_dict().keys() == base.state_dict().keys() and all(p.requires_grad for p in plain.parameters())
    assert not storages(plain.parameters()) & storages(base.parameters())
    assert (out_of(plain(*inputs)) - expected).abs().max() < 1e-5 * max(1, expected.abs().max().item())
    other = copy.deepcopy(adapters)
    with adapters.merged():
        inside = out_of(adapters(*inputs))
        assert (inside - expected).abs().max() < 1e-5 * max(1, expected.abs().max().item())
        assert torch.equal(out_of(other(*inputs)), expected)  # others are not affected
        with adapters.merged():
            assert torch.equal(out_of(adapters(*inputs)), inside)
        assert torch.equal(out_of(adapters(*inputs)), inside)
    assert torch.equal(out_of(adapters(*inputs)), expected)
    assert storages(base.parameters()) == storages(adapters.tree.parameters())
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_the_protocol_of_networks_is_the_tree_s(case):
    adapters, inputs = case
    base = adapters._arguments["base"].network
    for name in ("centred", "feature_channels"):
        assert getattr(adapters, name, None) == getattr(base, name, None)
    assert hasattr(adapters, "features") == hasattr(base, "features")
    if hasattr(base, "features"):
        assert torch.equal(adapters.features(*inputs), base.features(*inputs))
        assert not torch.equal(changed(adapters).features(*inputs), base.features(*inputs))
    with pytest.raises(AttributeError, match="nonsense"):
        adapters.nonsense  # noqa: B018


# One layer


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Linear(6, 4), (2, 5, 6)),
        (nn.Conv1d(6, 4, 3, stride=2, padding=1), (2, 6, 9)),
        (nn.Conv2d(6, 9, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1), groups=3), (2, 6, 8, 7)),
        (nn.Conv2d(4, 8, 3, padding="same", dilation=2, groups=4, padding_mode="circular", bias=False), (2, 4, 6, 6)),
        (nn.Conv3d(4, 6, (3, 1, 3), stride=(1, 2, 2), padding=(1, 0, 1), groups=2), (2, 4, 3, 4, 4)),
    ],
    ids=["linear", "conv1d", "dilated", "depthwise", "conv3d"],
)
def test_a_layer_with_its_change_is_the_layer_with_another_weight(layer, shape):
    """Rank counts for each group: a change of full rank can be any change."""
    adapters = changed(on(nn.Sequential(layer), rank=2))
    change, x = adapters.layers.get_submodule("0"), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    groups = getattr(layer, "groups", 1)
    assert change.delta().shape == layer.weight.shape and len(change.down.weight) == 2 * groups
    for part in change.delta().flatten(1).chunk(groups):
        assert torch.linalg.matrix_rank(part) == min(2, *part.shape)
    expected = copy.deepcopy(layer)
    expected.weight.data += change.delta()
    torch.testing.assert_close(adapters(x), expected(x), rtol=1e-5, atol=1e-5)


def test_the_change_computes_in_float32_and_the_network_keeps_its_precision():
    base = wake(nn.Sequential(nn.Linear(6, 4))).to(torch.bfloat16)
    adapters = changed(Adapters(Here(base.requires_grad_(False)), 2))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    out, (change,) = adapters(x), [m for m in adapters.modules() if isinstance(m, LowRank)]
    assert out.dtype == torch.bfloat16 and {p.dtype for p in adapters.parameters()} == {torch.float32}
    assert torch.equal(out, (base(x).float() + change.up(change.down(x.float()))).to(torch.bfloat16))
    assert adapters.merge()[0].weight.dtype == torch.bfloat16


def test_layers_that_are_never_called_are_left_alone():
    network = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "mlp": nn.Linear(8, 8)})
    assert {name for name, _ in on(network).named_parameters()} == {"layers.mlp.down.weight", "layers.mlp.up.weight"}


def test_targets_are_endings_of_names():
    adapters = on(MLP([3], 16, 2), targets=["inp", "layers.1", "modulate.0"])
    named = {name.removesuffix(".up.weight") for name in adapters.state_dict() if name.endswith("up.weight")}
    assert named == {"layers.inp", "layers.layers.1", "layers.modulate.0"}
    assert not [n for n in on(MLP([3], 16, 2), targets=["out"]).state_dict() if "layers.out." not in n]
    said = "of MLP has a name that ends in np: give some of embed.*inp, layers.0, layers.1, modulate.0, modulate.1, out"
    with pytest.raises(ValueError, match=said.replace("embed.*", ".*")):
        on(MLP([3], 16, 2), targets=["inp", "np"])
    with pytest.raises(ValueError, match="nothing to adapt in MLP: give targets among .*inp"):
        on(MLP([3], 16, 2), targets=[])
    with pytest.raises(ValueError, match="nothing to adapt in Sequential: .* among none"):
        on(nn.Sequential(nn.LayerNorm(3)))
    for rank in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="rank must be"):
            on(MLP([3], 16, 2), rank)


# Copies


def test_copies_share_the_base_and_nothing_else():
    one = changed(on(MLP([3], 16, 2)))
    two = copy.deepcopy(one)
    base = one._arguments["base"]
    assert two._arguments["base"] is base and two.tree is not one.tree
    assert storages(one.tree.parameters()) == storages(two.tree.parameters()) == storages(base.network.parameters())
    assert not storages(one.parameters()) & (storages(two.parameters()) | storages(base.network.parameters()))
    x = (torch.ones(1, 3), torch.ones(1), {})
    assert torch.equal(one(*x), two(*x))
    with torch.no_grad():  # an average of them, as EMA makes it
        for average, own in zip(two.parameters(), one.parameters(), strict=True):
            own.add_(1.0)
            average.lerp_(own, 0.25)
    assert not torch.equal(one(*x), two(*x))
    assert torch.equal(Adapters(base, 2)(*x), base.network(*x))
    before = one(*x)
    two.load_state_dict(one.state_dict())
    assert torch.equal(two(*x), before)
    for module in (one, two, base.network):  # as moves to a device do
        module.double()
    assert storages(one.tree.parameters()) == storages(two.tree.parameters()) == storages(base.network.parameters())
    assert {p.dtype for p in (*one.parameters(), *one.tree.parameters())} == {torch.float64}
    one.requires_grad_(True).train()
    assert not one.tree.training and not any(p.requires_grad for p in base.network.parameters())


def test_the_network_comes_along():
    """Its weights, whatever copy they are, and its buffers."""
    one = on(PairTransformer([6, 3], 16, 1, 2, 8))
    two = copy.deepcopy(one)
    one.double()
    everything = [*one.parameters(), *one.tree.parameters(), *one.tree.buffers(), *two.tree.parameters()]
    assert len(list(one.tree.buffers())) > 0 and {tensor.dtype for tensor in everything} == {torch.float64}


def test_what_it_is_told_is_its_own():
    """Told tables that came after it was made, and copies of those of its base."""
    network = MLP([3], 16, 2, CLASSES)
    network.embed.tell("more", categories=2)
    adapters = on(network)
    adapters.embed.tell("step", categories=4)
    assert {"told.embed.told.step.weight", "told.embed.told.more.weight"} <= adapters.state_dict().keys()
    assert all(adapters.get_parameter(f"told.embed.told.{name}.weight").requires_grad for name in ("step", "more"))
    assert not storages(adapters.parameters()) & storages(network.parameters()) and "step" not in network.embed.told
    cond = {"label": torch.tensor([1]), "more": torch.tensor([0]), "step": torch.tensor([2])}
    x = (torch.ones(1, 3), torch.ones(1), cond)
    before = network(*x)
    assert torch.equal(adapters(*x), before)
    adapters(*x).sum().backward()
    assert (
        adapters.embed.told["step"].weight.grad[2].abs().sum() > 0
        and adapters.embed.told["step"].weight.grad[0].abs().sum() == 0
    )
    copied = copy.deepcopy(adapters)
    with torch.no_grad():
        copied.embed.told["step"].weight += 1
    assert torch.equal(adapters(*x), before) and not torch.equal(copied(*x), before)
    assert "step" in adapters.merge().embed.told


def test_a_saved_state_is_small(tmp_path):
    adapters = on(DiT([1, 16, 16], 256, 4, 4), rank=2)
    whole = sum(p.numel() * p.itemsize for p in adapters.tree.parameters())
    assert whole > 10**7
    assert save_weights(tmp_path / "state.safetensors", adapters).stat().st_size < 0.05 * whole


# Through folders


def spec_of(adapters):
    return to_spec(adapters)["init_args"]


def test_a_spec_says_the_base_and_its_hash():
    teacher = Digits()
    spec = spec_of(Adapters(TeacherBase(teacher), 2))
    assert spec == {
        "base": {
            "class_path": "distillkit.networks.adapters.TeacherBase",
            "init_args": {"teacher": to_spec(teacher)},
        },
        "rank": 2,
        "targets": None,
        "sha256": TeacherBase(teacher).sha256,
    }
    assert len(spec["sha256"]) == 64 and spec["sha256"] != TeacherBase(Gaussian()).sha256


@pytest.mark.parametrize("make", [Digits, Gaussian])
def test_a_student_of_adapters_comes_back_from_its_folder(make, tmp_path):
    teacher = make()
    denoiser = teacher.new_denoiser(Adapters(TeacherBase(teacher), 2))
    changed(denoiser.network)
    student = FewStepStudent(denoiser.eval(), [2.0, 0.5], teacher.event_shape, teacher.classes)
    student.save(tmp_path)
    again = load_student(tmp_path)
    assert torch.equal(again.sample(4, seed=1), student.sample(4, seed=1))
    assert to_spec(again.denoiser) == to_spec(denoiser)
    assert storages(again.denoiser.network.tree.parameters()) == storages(
        again.denoiser.network._arguments["base"].network.parameters()
    )
    if make is Digits:
        assert torch.equal(denoiser.network.tree.inp.weight, teacher.denoiser.network.inp.weight)


def folder_teacher(path, seed=0):
    network = wake(MLP([2], 16, 2), seed)
    Teacher(Denoiser(network, VarianceExploding()), (2,)).save(path)
    return FolderTeacher(str(path))


def test_another_base_or_none_is_refused(tmp_path):
    teacher = folder_teacher(tmp_path / "teacher")
    denoiser = teacher.new_denoiser(Adapters(TeacherBase(teacher), 1)).eval()
    FewStepStudent(denoiser, [2.0], (2,)).save(tmp_path / "student")
    with pytest.raises(Outside, match=re.escape(f"pass trust=({str(tmp_path / 'teacher')!r},) if that is right")):
        load_student(tmp_path / "student")
    trust = (str(tmp_path),)
    expected = FewStepStudent(denoiser, [2.0], (2,)).sample(3)
    assert torch.equal(load_student(tmp_path / "student", trust).sample(3), expected)
    folder_teacher(tmp_path / "teacher", seed=1)
    said = r"student.yaml: this student is adapters on other weights than those of the teacher teacher: restore them"
    with pytest.raises(ValueError, match=said):
        load_student(tmp_path / "student", trust)
    (tmp_path / "teacher").rename(tmp_path / "away")
    with pytest.raises(ValueError, match="student.yaml: teacher folder .* does not exist"):
        load_student(tmp_path / "student", trust)


def test_adapters_on_adapters_are_refused():
    adapters = on(MLP([3], 16, 2))
    with pytest.raises(ValueError, match="the network here is adapters itself"):
        Adapters(Here(adapters), 2)
    assert isinstance(Adapters(Here(adapters.merge().requires_grad_(False)), 2), Adapters)


def test_a_base_is_no_larger_than_what_it_reads(tmp_path):
    teacher = folder_teacher(tmp_path / "teacher")
    spec = to_spec(Adapters(TeacherBase(teacher), 1))
    large = to_spec(Teacher(Denoiser(MLP([2], 8, 1), VarianceExploding()), (2,)))
    large["init_args"]["denoiser"]["init_args"]["network"]["init_args"]["width"] = 20_000
    spec["init_args"]["base"]["init_args"]["teacher"] = large
    weights = save_weights(tmp_path / "w.safetensors", Adapters(TeacherBase(teacher), 1))
    with pytest.raises(ValueError, match="far larger than"):
        from_spec(spec, home=tmp_path, weights=weights)


@pytest.mark.parametrize("teacher", [3, None, {"class_path": "distillkit.networks.mlp.MLP", "init_args": {}}, {}])
def test_a_base_of_the_wrong_kind_is_one_sentence(teacher):
    spec = to_spec(Adapters(TeacherBase(Gaussian()), 1))
    spec["init_args"]["base"]["init_args"]["teacher"] = teacher
    with pytest.raises(ValueError):
        from_spec(spec)
    with pytest.raises(ValueError):
        from_spec({**spec, "init_args": {**spec["init_args"], "base": teacher}})
