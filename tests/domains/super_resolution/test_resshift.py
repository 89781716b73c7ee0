"""ResShift's layout: networks against what is published, the table, the latents, a student."""

import copy
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import tiny_resshift
import torch
from helpers import trainer
from mutations import Mutation, prove
from tiny_resshift import rand
from torch.nn import functional as F

from distillkit.data import DistillData, TensorData
from distillkit.diffusion.process import ResShift
from distillkit.files import shapes
from distillkit.methods.dmd import DMD
from distillkit.spec import Outside, from_spec
from distillkit.students.base import load_student
from distillkit.students.makers import Lora
from distillkit.teachers.key import samples_key
from domains.super_resolution.codec import Latent, reflected
from domains.super_resolution.resize import enlarged
from domains.super_resolution.resshift import VQ, ResShiftTeacher, UNetModelSwin, VQModelTorch, read_config, read_state
from domains.super_resolution.resshift.autoencoder import VectorQuantizer
from domains.super_resolution.resshift.network import SwinTransformerBlock, WindowAttention

KAPPA, POWER, T = 2.0, 0.3, 4
PUBLISHED = [0.0100, 0.2705, 0.5797, 0.9801]  # eta of the 4 steps


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_resshift.release(tmp_path_factory.mktemp("resshift"))


@pytest.fixture(scope="module")
def teacher(tiny):
    return ResShiftTeacher(**tiny[0], crop=64)


def photographs(num=2, height=16, width=16, seed=3):
    """Observations of 8 bits."""
    levels = torch.rand(num, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255
    return levels.round() / 127.5 - 1


# The networks


def test_the_released_networks_have_the_published_sizes():
    """118.59 M and 55.32 M (arXiv 2307.12348, table 3)."""
    with torch.device("meta"):
        network, vq = UNetModelSwin(ResShift(), 15, None), VQModelTorch()
    assert [sum(p.numel() for p in net.parameters()) for net in (network, vq)] == [118_593_583, 55_322_782]
    shapes = {name: list(value.shape) for net in (network, vq) for name, value in net.state_dict().items()}
    assert shapes["input_blocks.0.0.weight"] == [160, 6, 3, 3] and shapes["time_embed.0.weight"] == [640, 160]
    assert shapes["input_blocks.1.1.blocks.1.attn.relative_position_bias_table"] == [225, 6]
    assert shapes["input_blocks.3.0.op.weight"] == [160, 160, 3, 3]
    assert shapes["middle_block.1.blocks.0.mlp.fc1.weight"] == [768, 192, 1, 1]
    assert shapes["output_blocks.2.1.conv.weight"] == [640, 640, 3, 3]
    assert shapes["output_blocks.11.0.skip_connection.weight"] == [160, 320, 1, 1]
    assert shapes["quantize.embedding.weight"] == [8192, 3] and shapes["encoder.down.1.downsample.conv.bias"] == [256]
    assert shapes["decoder.up.2.upsample.conv.bias"] == [512] and shapes["decoder.up.0.block.0.nin_shortcut.bias"] == [
        128
    ]


def test_the_autoencoder_is_diffusers_vq_model(tiny):
    """The same function under other names."""
    diffusers = pytest.importorskip("diffusers")
    vq = tiny[2]
    theirs = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 64), layers_per_block=1, latent_channels=3, num_vq_embeddings=64, norm_num_groups=32,
    )  # fmt: skip
    names = {
        "nin_shortcut": "conv_shortcut", "mid.block_1": "mid_block.resnets.0", "mid.block_2": "mid_block.resnets.1",
        "mid.attn_1.norm": "mid_block.attentions.0.group_norm", "mid.attn_1.proj_out": "mid_block.attentions.0.to_out.0",
        "mid.attn_1.": "mid_block.attentions.0.to_", "norm_out": "conv_norm_out", ".block.": ".resnets.",
        "downsample.conv": "downsamplers.0.conv", "upsample.conv": "upsamplers.0.conv", ".down.": ".down_blocks.",
    }  # fmt: skip
    names |= {f"decoder.up.{i}.": f"decoder.up_blocks.{2 - i}." for i in range(3)}
    state = {}
    for name, value in vq.state_dict().items():
        for ours, other in names.items():
            name = name.replace(ours, other)
        flat = "attentions" in name and value.ndim == 4
        state[name] = value[:, :, 0, 0] if flat else value
    theirs.load_state_dict(state)
    x = rand(2, 3, 16, 24).clamp(-1, 1)
    with torch.no_grad():
        z = theirs.encode(x).latents
        assert (vq.encode(x) - z).abs().max() < 1e-5 < z.std() and z.shape == (2, 3, 4, 6)
        expected = theirs.eval().decode(z).sample
        assert (vq.decode(z) - expected).abs().max() < 1e-5 < expected.std()


def check_windows():
    """Attention among all positions at once, with who sees whom and how far apart written out."""
    height, width, window, shift, heads = 8, 12, 4, 2, 2
    block = tiny_resshift.awake(SwinTransformerBlock(32, 8, heads, window, shift, 2.0))
    x, attn = rand(2, 32, height, width), block.attn
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    moved = [(row - shift) % height, (col - shift) % width]
    together = torch.ones(height * width, height * width, dtype=torch.bool)
    for place, original in zip(moved, (row, col), strict=True):
        together &= place[:, None] // window == place // window
        together &= (original < shift)[:, None] == (original < shift)
    apart = [(place[:, None] - place).clamp(1 - window, window - 1) + window - 1 for place in moved]
    bias = attn.relative_position_bias_table[apart[0] * (2 * window - 1) + apart[1]]
    tokens = block.norm1(x).flatten(2).mT
    q, k, v = attn.qkv(tokens).chunk(3, -1)
    out = []
    for head in range(heads):
        own = slice(head * 16, head * 16 + 16)
        logits = q[..., own] @ k[..., own].mT / 4 + bias[..., head]
        out.append(logits.masked_fill(~together, -math.inf).softmax(-1) @ v[..., own])
    h = x + attn.proj(torch.cat(out, -1)).mT.reshape(x.shape)
    expected = h + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(h))))
    assert (block(x) - expected).abs().max() < 1e-5


def test_a_layer_of_one_window_is_not_shifted():
    block = SwinTransformerBlock(32, 4, 2, 8, 4, 2.0)
    assert (block.window, block.shift) == (4, 0) and block.mask(8, 8, torch.device("cpu")) is None
    assert SwinTransformerBlock(32, 8, 2, 8, 4, 2.0).shift == 0


# The teacher against the published sampler, in the published space: z_t = r_t + y


def raw(w, z, index, low):
    """The released network at scaled latents and an index, its parts put together anew."""
    rates = 10_000.0 ** (-torch.arange(16) / 16)
    angles = index * rates
    emb = w.time_embed(torch.cat([angles.cos(), angles.sin()])[None])
    h, skips = torch.cat([z, low], 1), []

    def residual(block, h):
        inner = block.in_layers[2](F.silu(block.in_layers[0](h)))
        scale, shift = block.emb_layers[1](F.silu(emb))[:, :, None, None].chunk(2, 1)
        inner = block.out_layers[3](F.silu(block.out_layers[0](inner) * (1 + scale) + shift))
        return inner + block.skip_connection(h)

    def row(layers, h):
        for layer in layers:
            h = residual(layer, h) if hasattr(layer, "emb_layers") else layer(h)
        return h

    for block in w.input_blocks:
        h = row(block, h)
        skips.append(h)
    h = row(w.middle_block, h)
    for block in w.output_blocks:
        h = row(block, torch.cat([h, skips.pop()], 1))
    return w.out[2](F.silu(w.out[0](h)))


def published(w, vq, low, noise, draw):
    """ResShift's own loop: sample, then decoded photograph."""
    height, width = low.shape[-2:]
    low = F.pad(low, (0, -width % 8, 0, -height % 8), mode="reflect")
    y = vq.encode(F.interpolate(low, scale_factor=4, mode="bicubic"))
    start = 0.2 / KAPPA
    root = [start * (0.99 / start) ** ((k / (T - 1)) ** POWER) for k in range(T)]
    eta = [s**2 for s in root]
    z = y + KAPPA * root[-1] * noise
    for k in reversed(range(T)):
        z_0 = raw(w, z / (eta[k] * KAPPA**2 + 1) ** 0.5, float(k), low)
        before = eta[k - 1] if k else 0.0
        std = KAPPA * (before / eta[k] * (eta[k] - before)) ** 0.5
        z = before / eta[k] * z + (1 - before / eta[k]) * z_0 + std * draw(T - k)
    return z - y, vq.decode(z)[..., : 4 * height, : 4 * width]


@torch.no_grad()
def check_sampler(teacher, tiny, height=16, width=16):
    low = photographs(2, height, width)
    cond = {"low": low}
    noise, draws = rand(*teacher.shape(2, cond)), {i: rand(*teacher.shape(2, cond), seed=10 + i) for i in range(1, 5)}
    found = teacher.sample(noise, cond, draw=draws.get)
    expected, photos = published(tiny[1], tiny[2], low, noise, draws.get)
    assert found.shape == expected.shape and expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-4
    made = teacher.codec.decode(found, cond)
    assert made.shape == (2, 3, 4 * height, 4 * width)
    assert (made - photos).abs().mean() < 1e-5  # where two codes are equally near, rounding may decide


@pytest.mark.parametrize("size", [(16, 16), (11, 20), (24, 8)])
def test_the_teacher_is_the_published_sampler(size, teacher, tiny):
    """At any size; the public code continues observations by reflection, and cuts."""
    assert teacher.event_shape == (3, 16, 16) and teacher.best == {"solver": "resshift", "steps": T}
    assert (teacher.grid(T) ** 2).flip(0).tolist() == pytest.approx(PUBLISHED, abs=1e-4)
    check_sampler(teacher, tiny, *size)


@pytest.mark.parametrize("steps, min_noise", [(4, 0.2), (15, 0.04)])
def test_times_are_places_in_the_table(steps, min_noise):
    process = ResShift(min_noise=min_noise)
    network = UNetModelSwin(process, steps, None, **tiny_resshift.NETWORK)
    times = process.grid(steps)
    assert network.index(times).tolist() == pytest.approx(list(reversed(range(steps))), abs=1e-9)
    ratio = process.network_time(times.float())
    t = process.from_ratio((4 * ratio).exp())
    assert network.index(t).tolist() == pytest.approx(list(reversed(range(steps))), abs=1e-4)
    between = process.grid(2 * steps - 1)  # the table of a longer chain has the same times at its even places
    assert network.index(between).tolist() == pytest.approx([(2 * steps - 2 - i) / 2 for i in range(2 * steps - 1)])
    assert network.index(torch.tensor([process.t_min / 2])).item() == 0


# The latents


def check_codec(teacher, tiny):
    vq, low = tiny[2], photographs()
    batch = {"data": photographs(2, 64, 64, seed=4), "low": low}
    with torch.no_grad():
        y, z = vq.encode(enlarged(low, (64, 64))), vq.encode(batch["data"])
        x = teacher.codec.encode(batch)
        assert (x - (z - y)).abs().max() < 1e-5 < x.std()
        assert (teacher.codec.decode(x, batch) - vq.decode(x + y)).abs().mean() < 1e-5
    assert teacher.codec.data_shape((3, 16, 16)) == (3, 64, 64)
    assert teacher.codec.shape(5, (3, 16, 16), {"low": torch.empty(5, 3, 9, 17)}) == (5, 3, 16, 24)


def test_latents_are_residuals_before_the_codebook(teacher, tiny):
    check_codec(teacher, tiny)
    with pytest.raises(ValueError, match="60 x 64 pixels cannot be encoded.*multiples of 32.*data.crop"):
        teacher.codec.encode({"data": torch.zeros(1, 3, 64, 60), "low": torch.zeros(1, 3, 16, 15)})


def test_gradients_pass_straight_through_the_codebook():
    quantizer = VectorQuantizer(8, 3)
    z = rand(2, 3, 4, 4).requires_grad_(True)
    out = quantizer(z)
    distances = (z.movedim(1, -1)[..., None, :] - quantizer.embedding.weight).square().sum(-1)
    assert torch.allclose(out, quantizer.embedding.weight[distances.argmin(-1)].movedim(-1, 1), atol=1e-6)
    weight = rand(2, 3, 4, 4, seed=2)
    (out * weight).sum().backward()
    assert torch.allclose(z.grad, weight) and quantizer.embedding.weight.grad is None


def test_an_observation_is_encoded_once(teacher, monkeypatch):
    calls = []
    monkeypatch.setattr(Latent, "latents", lambda self, x: calls.append(x) or torch.zeros(len(x), 3, 16, 16))
    student, low = teacher.new_denoiser(), photographs(seed=5)
    cond, x, t = {"low": low}, rand(2, 3, 16, 16), torch.tensor(0.5)
    with torch.no_grad():
        for denoiser in (teacher.denoiser, student, teacher.denoiser):
            denoiser(x, t, cond)
        teacher.codec.decode(x, cond)
        assert len(calls) == 1 and student.network.codec is teacher.codec
        low.add_(0)  # it may hold something else now
        student(x, t, cond)
    assert len(calls) == 2


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 13])
def test_reflection_goes_on_as_often_as_it_takes(size):
    x = rand(1, 1, size, 4)
    found = reflected(x, 8)
    assert found.shape[-2] == -(-size // 8) * 8 and found.shape[-1] == 8
    columns = [0, 1, 2, 3, 2, 1, 0, 1]
    assert torch.equal(found[..., :size, :], x[..., columns])
    if size == 7:
        assert torch.equal(found[..., :4], F.pad(x, (0, 0, 0, 1), mode="reflect"))
    assert reflected(found, 8) is found


# Faults


FAULTS = [
    ("windows are not kept apart", SwinTransformerBlock.mask, "APART", "0.0", check_windows),
    (
        "rows for columns",
        WindowAttention.bias,
        "apart[:, None, :, None] * (",
        "apart[None, :, None, :] * (",
        check_windows,
    ),
    (
        "the shift back",
        SwinTransformerBlock.forward,
        "h.roll((self.shift, self.shift)",
        "h.roll((-self.shift, self.shift)",
        check_windows,
    ),
]
SAMPLER = [
    ("the public network sees z, not r", UNetModelSwin.activations, "x + self.codec.base(cond).to(x)", "x"),
    ("z_0 is no residual", UNetModelSwin.forward, " - self.codec.base(cond).to(x)", ""),
    ("input of another variance", UNetModelSwin.activations, "(1 + self.process.sigma(t) ** 2)", "(self.process.sigma(t) ** 2)"),
    ("an index off by one", UNetModelSwin.index, "(self.steps - 1)", "self.steps"),
    ("the warp of the table", UNetModelSwin.index, "(1 / self.process.power)", "self.process.power"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0])
def test_faults_of_windows_are_noticed(fault):
    check_windows()
    prove(Mutation(*fault))


@pytest.mark.parametrize("fault", SAMPLER, ids=lambda fault: fault[0])
def test_faults_of_the_sampler_are_noticed(fault, teacher, tiny):
    prove(Mutation(*fault, partial(check_sampler, teacher, tiny)))


@pytest.mark.parametrize("old, new", [("- self.base(batch)", ""), ("self.latents(data)", "self.latents(-data)")])
def test_faults_of_the_codec_are_noticed(old, new, teacher, tiny):
    prove(Mutation("", Latent.encode, old, new, partial(check_codec, teacher, tiny)))


# Reading


@pytest.mark.parametrize("prefix, wrapped", [("module.", True), ("_orig_mod.", False), ("module._orig_mod.", False)])
def test_names_of_checkpoints_from_training(prefix, wrapped, teacher, tmp_path):
    args, *_ = tiny_resshift.release(tmp_path, prefix, wrapped)
    again = ResShiftTeacher(**args, crop=64)
    assert again.fingerprint() == teacher.fingerprint() and again.id == "resshift_tiny_s4"


def test_twice_as_large_with_convolutions_on_the_observation(tmp_path):
    args, *_ = tiny_resshift.release(tmp_path, lq_size=32)
    teacher = ResShiftTeacher(**args, scale=2, crop=64)
    assert teacher.event_shape == (3, 16, 16) and teacher.codec.multiple == 16
    low = photographs(1, 20, 32)
    assert teacher.generate(1, {"low": low}, 0).shape == (1, 3, 40, 64)
    assert "feature_extractor.2.op.weight" in teacher.denoiser.network.state_dict()


def test_observations_of_another_scale_are_refused(teacher):
    """As method=yonos asks a copy of it."""
    with pytest.raises(
        ValueError, match=r"scale 4 makes latents of \[8, 8\] for observations of \[8, 8\], got \[16, 16\]"
    ):
        teacher.denoiser(torch.zeros(1, 3, 16, 16), torch.tensor(0.5), {"low": photographs(1, 8, 8)})


@pytest.mark.parametrize(
    "name, steps, noise", [("resshift_realsrx4_s15_v2", 15, 0.04), ("resshift_bicsrx4_s4", 4, 0.2)]
)
def test_a_release_says_its_steps_in_its_name(name, steps, noise):
    said = read_config(None, f"{name}.pth", None)
    assert said["process"] == {"kappa": 2.0, "min_noise": noise, "power": 0.3, "t_max": 0.99}
    assert said["network"] == {"steps": steps} and said["autoencoder"] == {}


class Evil:
    def __reduce__(self):
        return (print, ("read",))


def test_what_is_refused(tiny, tmp_path, capsys):
    args = tiny[0]

    def refused(said, **changes):
        with pytest.raises(ValueError, match=said) as error:
            ResShiftTeacher(**{**args, "crop": 64, **changes})
        assert "\n" not in str(error.value)

    torch.save({"model": Evil()}, tmp_path / "evil_s4.pth")
    refused("evil_s4.pth holds more than tensors", path=str(tmp_path / "evil_s4.pth"))
    assert "read" not in capsys.readouterr().out
    torch.save([1, 2], tmp_path / "list_s4.pth")
    refused("no dictionary of weights", path=str(tmp_path / "list_s4.pth"))
    (tmp_path / "cut_s4.pth").write_bytes(Path(args["path"]).read_bytes()[:1000])
    refused("is damaged", path=str(tmp_path / "cut_s4.pth"))
    state = read_state(args["path"])
    torch.save({**state, "out.2.bias": torch.full((3,), math.nan)}, tmp_path / "nan_s4.pth")
    refused("NaN or infinity in out.2.bias", path=str(tmp_path / "nan_s4.pth"))
    refused("there is no file", path="nowhere_s4.pth")
    refused("there is no file", autoencoder="nowhere.pth")
    refused("tiny.* does not fit its configuration", config=None, crop=256)
    refused("nothing says how many steps.*teacher.steps=15", path=args["autoencoder"], config=None)
    refused("released tables have 15 or 4 steps, not 7", config=None, steps=7)
    refused("4 times larger, the data are of scale 2: set data.scale", scale=2)
    refused("multiples of 32, got 48: set data.crop=64", crop=48)
    yaml = Path(args["config"]).read_text()
    (tmp_path / "wide.yaml").write_text(yaml.replace("ch: 32", "ch: 64"))
    refused("autoencoder_tiny.pth does not fit", config=str(tmp_path / "wide.yaml"))
    (tmp_path / "eps.yaml").write_text(yaml.replace("predict_type: xstart", "predict_type: epsilon"))
    refused("predict_type = 'epsilon'", config=str(tmp_path / "eps.yaml"))


# Students


class Squares(DistillData):
    domain, context, classes = "super_resolution", ("low",), {}
    event_shape = (3, 64, 64)

    def load(self):
        low = photographs(8)
        return (TensorData({"data": photographs(8, 64, 64), "low": low}),) * 3


def test_a_student_makes_photographs_of_any_size(teacher, tiny, tmp_path):
    shutil.copy(tiny[0]["autoencoder"], tmp_path / "autoencoder_tiny.pth")
    here = ResShiftTeacher(**{**tiny[0], "autoencoder": str(tmp_path / "autoencoder_tiny.pth")}, crop=64)
    assert here.fingerprint() == teacher.fingerprint()  # wherever the files lie
    before, model = here.fingerprint(), DMD(here, num_steps=2)
    trainer(6).fit(model, datamodule=Squares(batch_size=2))
    assert here.fingerprint() == before and model.student.network.codec is here.codec
    assert not torch.equal(model.student.network.out[2].bias, here.denoiser.network.out[2].bias)
    folder = model.export(tmp_path / "student")
    assert not [name for name in shapes(folder / "model.safetensors") if "encoder" in name or "quantize" in name]
    with pytest.raises(Outside, match="wants to read .*autoencoder_tiny.pth.*--trust"):
        load_student(folder)
    student = load_student(folder, trust=(str(tmp_path / "autoencoder_tiny.pth"),))
    for size in ((16, 16), (11, 20)):
        cond = {"low": photographs(2, *size)}
        made = student.sample(2, cond, seed=1)
        assert made.shape == (2, 3, 4 * size[0], 4 * size[1]) and torch.equal(made, model.sample(cond, 2, 1))
    assert student.codec.shared is student.denoiser.network.codec.shared  # the autoencoder is in memory once
    with pytest.raises(ValueError, match=r"cond\['low'\] must hold small photographs"):
        student.sample(1, {"low": torch.zeros(1, 1, 8, 8)})
    (tmp_path / "autoencoder_tiny.pth").unlink()
    with pytest.raises(ValueError, match="there is no .*autoencoder_tiny.pth.*put it back"):
        load_student(folder).sample(2, cond)


def test_a_strangers_folder_names_no_file_beside_the_caller(tiny, tmp_path, monkeypatch):
    """Not by a plain name either, which a path of the working directory may have."""
    monkeypatch.chdir(Path(tiny[0]["path"]).parent)
    names = {key: Path(path).name for key, path in tiny[0].items()}
    spec = {"class_path": "domains.super_resolution.resshift.ResShiftTeacher", "init_args": names}
    with pytest.raises(Outside) as error:
        from_spec(spec, home=tmp_path)
    assert all(name in str(error.value) for name in names.values())


def test_another_autoencoder_is_another_teacher(teacher, tiny, tmp_path):
    vq = copy.deepcopy(tiny[2])
    vq.quant_conv.bias += 0.1
    torch.save(vq.state_dict(), tmp_path / "other.pth")
    other = ResShiftTeacher(**{**tiny[0], "autoencoder": str(tmp_path / "other.pth")}, crop=64)
    assert other.fingerprint() != teacher.fingerprint()
    asked = (2, {"low": photographs()}, 0, "resshift", teacher.grid(4), 1.0, 2)
    keys = [samples_key(each, *asked) for each in (teacher, other)]
    assert None not in keys and keys[0] != keys[1] and str(tmp_path) not in str(keys)
    codec = VQ(str(tmp_path / "other.pth"), 4, 8, teacher.codec.sizes, teacher.codec.sha256)
    with pytest.raises(ValueError, match="holds another autoencoder than the one"):
        codec.decode(rand(1, 3, 16, 16), {"low": photographs(1)})


def test_adapters_on_it_are_the_weights_of_the_student(tiny, teacher, tmp_path):
    model = DMD(teacher, num_steps=1, student_maker=Lora(rank=2), fake_score_maker=Lora(rank=2))
    trainer(2).fit(model, datamodule=Squares(batch_size=2))
    folder, cond = model.export(tmp_path / "student"), {"low": photographs(1)}
    with pytest.raises(
        Outside, match="wants to read .*autoencoder_tiny.pth and .*resshift_tiny_s4.pth|resshift_tiny_s4.pth and "
    ):
        load_student(folder)
    student = load_student(folder, trust=tuple(tiny[0].values()))
    assert torch.equal(student.sample(1, cond), model.sample(cond, 1, 0))
