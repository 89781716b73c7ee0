"""Told conditions: no effect before training, one value per sample, kept in folders."""

import copy

import pytest
import torch
import yaml
from helpers import neural, wake
from torch import nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.guidance import drop_condition, guided, null_condition
from distillkit.diffusion.process import RectifiedFlow, VarianceExploding
from distillkit.files import save_weights
from distillkit.networks.blocks import Embedding, sinusoids
from distillkit.networks.ddit import DDiT
from distillkit.networks.dit import DiT
from distillkit.networks.mlp import MLP
from distillkit.networks.pair_transformer import PairTransformer
from distillkit.networks.set_dit import SetDiT
from distillkit.networks.unet import UNet
from distillkit.networks.video_unet import VideoUNet
from distillkit.spec import from_spec, to_spec
from distillkit.students.base import load_student
from distillkit.students.few_step import FewStepStudent
from distillkit.teachers.exact import CorrectedDenoiser, ExactDenoiser, Mixture
from distillkit.teachers.folder import FolderTeacher

KINDS = {"step": {"categories": 4}, "kappa": {"range": [1.0, 8.0]}, "camera": {"size": 16}}
TOLD = {
    "step": torch.tensor([0, 3, 1]),
    "kappa": torch.tensor([1.0, 4.5, 8.0]),
    "camera": torch.randn(3, 16, generator=torch.Generator().manual_seed(1)),
}
OTHER = {"step": TOLD["step"].roll(1), "kappa": TOLD["kappa"].roll(1), "camera": TOLD["camera"].roll(1, 0)}
SETS = {"mask": torch.ones(3, 4, dtype=torch.bool), "coords": torch.cartesian_prod(*[torch.arange(2)] * 3)[None, :4]}
SETS["coords"] = SETS["coords"].expand(3, -1, -1)
NETWORKS = {
    "mlp": MLP([2], 8, 1, {"label": 2}),
    "unet": UNet((1, 4, 4), 8, (1, 2), classes={"label": 2}),
    "video_unet": VideoUNet((1, 4, 4, 4), 8, (1,), classes={"label": 2}),
    "dit": DiT((1, 4, 4), 8, 1, 2, classes={"label": 2}),
    "set_dit": SetDiT((4, 2), 4, 8, 1, 2, 2, {"label": 2}),
    "pair_transformer": PairTransformer((4, 3), 8, 1, 2, 4, {"label": 2}),
}
SHAPES = {"mlp": (2,), "unet": (1, 4, 4), "video_unet": (1, 4, 4, 4), "dit": (1, 4, 4), "set_dit": (4, 2)}
SHAPES["pair_transformer"] = (4, 3)


def setting(name="mlp"):
    """A denoiser with random weights, samples, times, and a condition without the told one."""
    denoiser = Denoiser(wake(copy.deepcopy(NETWORKS[name])), RectifiedFlow(), "edm", 0.8)
    x = torch.randn(3, *SHAPES[name], generator=torch.Generator().manual_seed(2))
    cond = {"label": torch.tensor([0, 1, 2])} | (SETS if name in ("set_dit", "pair_transformer") else {})
    return denoiser, x, torch.tensor([0.2, 0.5, 0.9]), cond


def told(denoiser, *names):
    for name in names or KINDS:
        denoiser.tell(name, **KINDS[name])
    return denoiser


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_changes_until_it_is_trained(name):
    """Outputs are equal bit for bit, old weights keep their names, new layers have a gradient."""
    denoiser, x, t, cond = setting(name)
    before, keys = denoiser(x, t, cond), set(denoiser.state_dict())
    assert {key for key in keys if ".classes." in key} == {key for key in keys if key.endswith("classes.label.weight")}
    told(denoiser)
    assert torch.equal(denoiser(x, t, cond | TOLD), before)
    new = denoiser.state_dict().keys() - keys
    assert new and keys < denoiser.state_dict().keys() and all("embed.told." in key for key in new)
    denoiser(x, t, cond | TOLD).square().sum().backward()
    module = denoiser.network.embed.told
    for layer in (module["step"], module["kappa"].layers[-1], module["camera"]):
        assert (layer.weight == 0).all() and layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_hears_its_own(name, kind):
    denoiser, x, t, cond = setting(name)
    wake(told(denoiser, kind).network.embed.told)
    found, other = (denoiser(x, t, cond | {kind: value[kind]}) for value in (TOLD, OTHER))
    assert ((found - other).abs().flatten(1).amax(1) > 1e-5).all()
    for row in range(3):
        alone = {key: value[row : row + 1] for key, value in (cond | {kind: TOLD[kind]}).items()}
        torch.testing.assert_close(denoiser(x[row : row + 1], t[row : row + 1], alone)[0], found[row])


def test_what_is_added_to_the_embedding():
    """A table's row, an MLP of the sinusoids of a number, a linear map; summed before the SiLU."""
    embed = Embedding(8, {})
    for name, kind in KINDS.items():
        embed.tell(name, **kind)
    wake(embed)
    time = torch.tensor([0.2, 0.5, 0.9])
    own = embed.time(sinusoids(time, 8))
    layers, place = embed.told["kappa"].layers, torch.tensor([0.0, 0.5, 1.0])
    number = layers[2](nn.functional.silu(layers[0](sinusoids(place, 64))))
    expected = own + embed.told["step"].weight[TOLD["step"]] + number + TOLD["camera"] @ embed.told["camera"].weight.T
    torch.testing.assert_close(embed(time, TOLD), nn.functional.silu(expected))


@pytest.mark.parametrize("value", [torch.tensor([2, 4, 8]), torch.tensor([2.0, 4.0, 8.0], dtype=torch.bfloat16)])
def test_a_number_may_be_of_any_type(value):
    denoiser, x, t, cond = setting()
    wake(told(denoiser, "kappa").network.embed.told)
    expected = denoiser(x, t, cond | {"kappa": value.float()})
    torch.testing.assert_close(denoiser(x, t, cond | {"kappa": value}), expected)


@pytest.mark.parametrize("name", KINDS)
def test_what_it_was_told_must_be_there(name):
    denoiser, x, t, cond = setting()
    told(denoiser)
    with pytest.raises(ValueError, match=f"conditioned on '{name}', but the condition has "):
        denoiser(x, t, cond | {key: value for key, value in TOLD.items() if key != name})


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("step",), "exactly one of categories, range and size, got categories=None, range=None, size=None"),
        (("step", 4, (0, 1)), "exactly one of categories, range and size, got categories=4"),
        (("step", 0), "categories must be at least 1, got 0"),
        (("step", 10**6), "categories must be at most"),
        (("step", 2.0), "categories must be a whole number"),
        (("kappa", None, (8.0, 1.0)), r"a smallest and a largest value, such as \[1, 8\], got \(8.0, 1.0\)"),
        (("kappa", None, (1.0, 1.0)), "range must be a smallest and a largest value"),
        (("kappa", None, (1.0, 2.0, 3.0)), "range must be a smallest and a largest value"),
        (("kappa", None, (0.0, float("inf"))), "range must be a finite number"),
        (("camera", None, None, 0), "size must be at least 1"),
        (("label", 4), "conditioned on 'label' already"),
        (("known", 4), "told 'known' already"),
        (("mask", 4), "a condition cannot be called 'mask'"),
        (("keys", 4), "a condition cannot be called 'keys'"),
        (("a.b", 4), "a condition cannot be called 'a.b'"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_and_leaves_no_trace(arguments, message):
    denoiser, x, t, cond = setting()
    denoiser.tell("known", 2)
    with pytest.raises(ValueError, match=message):
        denoiser.tell(*arguments)
    assert list(denoiser.told) == ["known"] == list(denoiser.network.embed.told)


@pytest.mark.parametrize("network", [nn.Linear(2, 2), DDiT(4)])
def test_a_network_that_cannot_be_told_is_named(network):
    name = type(network).__name__
    with pytest.raises(ValueError, match=f"{name} cannot be told 'step': give the network an `embed` with a method"):
        Denoiser(network, RectifiedFlow()).tell("step", categories=4)


def test_guidance_keeps_what_was_told():
    """The null condition lacks classes alone, in a guided call and where rows are dropped."""
    denoiser, x, t, cond = setting()
    wake(told(denoiser).network.embed.told)
    cond = cond | TOLD
    null = null_condition(cond, {"label": 2})
    dropped = drop_condition(cond, null, torch.tensor([True, False, True]))
    assert all(null[name] is cond[name] and torch.equal(dropped[name], cond[name]) for name in TOLD)
    assert dropped["label"].tolist() == [2, 1, 2] and null["label"].tolist() == [2, 2, 2]
    with_cond, without = denoiser(x, t, cond), denoiser(x, t, null)
    found = guided(denoiser, x, t, cond, null, TOLD["kappa"])
    torch.testing.assert_close(found, without + TOLD["kappa"][:, None] * (with_cond - without), rtol=1e-4, atol=1e-5)


# Folders


def exact_and_network():
    mixture = Mixture([[0.1, 0.2]], [torch.eye(2).tolist()])
    return CorrectedDenoiser(ExactDenoiser(mixture, VarianceExploding()), wake(MLP([2], 8, 1)))


@pytest.mark.parametrize("make", [lambda: setting()[0], exact_and_network], ids=["denoiser", "corrected"])
def test_a_description_says_what_was_told(make, tmp_path):
    """The yaml has all conditions; a copy has the original's, not those told later."""
    denoiser = wake(told(make(), "step", "kappa"))
    twin = copy.deepcopy(denoiser)
    told(denoiser, "camera")
    assert twin.told == {name: KINDS[name] for name in ("step", "kappa")} and denoiser.told == KINDS
    spec = yaml.safe_load(yaml.safe_dump(to_spec(denoiser)))
    save_weights(tmp_path / "model.safetensors", denoiser)
    again = from_spec(spec, weights=tmp_path / "model.safetensors")
    again.load_state_dict(denoiser.state_dict())
    x, t, cond = torch.randn(3, 2), torch.tensor([0.2, 0.5, 0.9]), {"label": torch.tensor([0, 1, 2])} | TOLD
    assert again.told == KINDS and to_spec(again) == spec and torch.equal(again(x, t, cond), denoiser(x, t, cond))


def test_what_was_never_told_is_described_as_before():
    """The hash of a teacher stays that of older versions."""
    for made in (setting()[0], Denoiser(MLP([2], 8, 1), RectifiedFlow(), told={}), exact_and_network()):
        assert "told" not in to_spec(made)["init_args"]
    one, two = neural(), neural()
    assert one.fingerprint() == two.fingerprint()
    two.denoiser.tell("step", 4)
    assert one.fingerprint() != two.fingerprint()


def test_another_network_is_told_the_same():
    denoiser = told(setting()[0])
    other = denoiser.with_network(MLP([2], 16, 2, {"label": 2}))
    assert other.told == KINDS and list(other.network.embed.told) == list(KINDS) and other.told is not denoiser.told
    assert (other.process, other.prediction, other.sigma_data) == (denoiser.process, "edm", 0.8)


def test_the_folder_of_a_student_that_was_told_loads(tmp_path):
    denoiser, x, t, cond = setting()
    wake(told(denoiser))
    made = FewStepStudent(denoiser, [0.9, 0.4], (2,), {"label": 2}, context=tuple(KINDS))
    again = load_student(made.save(tmp_path / "s"))
    assert torch.equal(again.denoiser(x, t, cond | TOLD), denoiser(x, t, cond | TOLD))
    assert torch.equal(again.sample(3, cond | TOLD), made.sample(3, cond | TOLD))
    assert not torch.equal(again.sample(3, cond | OTHER), made.sample(3, cond | TOLD))


def test_the_folder_of_a_teacher_that_was_told_loads(tmp_path):
    teacher = neural()
    wake(told(teacher.denoiser))
    again = FolderTeacher(str(teacher.save(tmp_path / "t")))
    assert again.fingerprint() == teacher.fingerprint() and again.denoiser.told == KINDS
    again.new_denoiser().tell("time", range=(0.0, 1.0))
    assert again.denoiser.told == KINDS


@pytest.mark.parametrize(
    "value, message",
    [
        ([3], "told cannot be"),
        ({"step": 4}, "told cannot be"),
        ({"step": {"categories": 2**21}}, "categories must be at most"),
        ({"step": {"categories": "4"}}, "categories must be a whole number"),
        ({"step": {"classes": 4}}, "cannot be built"),
        ({"step": {}}, "exactly one of"),
        ({"step": {"categories": 4, "size": 2}}, "exactly one of"),
        ({"kappa": {"range": 3}}, "range must be"),
        ({"kappa": {"range": ["a", "b"]}}, "range must be"),
        ({"label": {"categories": 4}}, "already"),
        ({"forward": {"categories": 4}}, "cannot be called"),
        ({"camera": {"size": 60_000}}, "far larger than the weights"),
        ({f"n{i}": {"range": [0, 1]} for i in range(500)}, "far larger than the weights"),
    ],
)  # fmt: skip
def test_nonsense_in_a_strangers_folder_is_one_sentence(value, message, tmp_path):
    denoiser = wake(Denoiser(MLP([2], 64, 1, {"label": 2}), RectifiedFlow()))
    folder = FewStepStudent(denoiser, [0.9], (2,), {"label": 2}).save(tmp_path / "s")
    config = yaml.safe_load((folder / "student.yaml").read_text())
    config["denoiser"]["init_args"]["told"] = value
    (folder / "student.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=message) as error:
        load_student(folder)
    assert "\n" not in str(error.value) and "student.yaml" in str(error.value)


@pytest.mark.parametrize("classes", [{"step": 4}, {"kappa": 2}, {"camera": 1}])
def test_what_was_told_has_no_null_class(classes, tmp_path):
    """A student's class has one null index more; a told category has none, a number no classes."""
    denoiser = wake(told(setting()[0]))
    folder = FewStepStudent(denoiser, [0.9], (2,), {"label": 2, **classes}).save(tmp_path / "s")
    with pytest.raises(ValueError, match="classes cannot be"):
        load_student(folder)
