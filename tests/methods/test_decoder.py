"""Tuning a codec's decoder: its losses in closed form, whom they reach, the student's folder."""

# ruff: noqa: E501 (a fault is a row of a table)

import pytest
import torch
from helpers import at, trainer
from lightning.pytorch import Callback
from mutations import Mutation, prove
from tiny_resshift import release
from torch import nn

from distillkit import load_student
from distillkit.codec import Codec
from distillkit.data import DistillData, TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import ResShift
from distillkit.files import read_yaml, write_yaml
from distillkit.methods.base import Adam
from distillkit.methods.decoder import DecoderTuning
from distillkit.networks.heads import Patches
from distillkit.spec import Outside, to_spec
from distillkit.teachers.base import Teacher
from distillkit.teachers.folder import FolderTeacher
from distillkit.teachers.saved import SavedTeacher
from domains.super_resolution.codec import Upscale
from domains.super_resolution.data import SuperResolutionData
from domains.super_resolution.network import PatchNet
from domains.super_resolution.resshift import VQ, ResShiftTeacher

# The loss


class Scaled(Upscale):
    """Residuals that are decoded as `a x` plus the enlarged observation."""

    tunable = True

    def decoder(self):
        made = nn.Conv2d(3, 3, 1, bias=False)
        made.weight.data = 0.5 * torch.eye(3)[:, :, None, None]
        return made

    def decode(self, x, cond):
        return (self.tuned or self.decoder().requires_grad_(False))(x) + self.base(cond)


def teacher(codec):
    network = PatchNet((3, 8, 8), width=8, depth=1)
    return Teacher(Denoiser(network, ResShift(), "edm", 0.3), (3, 8, 8), context=("low",), codec=codec)


def drawn(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


BATCH = {"data": drawn(4, 3, 8, 8), "low": drawn(4, 3, 2, 2, seed=1)}


def tuning(**settings):
    torch.manual_seed(0)
    return DecoderTuning(teacher(Scaled(4)), **settings)


def known(model):
    """The network's samples become x, and the discriminator the sum of the image."""
    x = drawn(4, 3, 8, 8, seed=2)
    model.sampler.forward = lambda noise, cond, draw: x
    model.discriminator = Sum()
    return x


class Sum(nn.Module):
    def forward(self, images):
        return images.sum((1, 2, 3), keepdim=True)


class Apart(nn.Module):
    """In the place of LPIPS: a distance of each sample."""

    def forward(self, x, y):
        return (x - y).square().mean((1, 2, 3))


def check_student(perceptual=0.7, gan=0.3):
    """L1 to the data, w_p of LPIPS, less w_g of the logits; from its second turn on."""
    for step, joined in ((0, False), (1, False), (2, True)):
        model = at(tuning(perceptual=perceptual, gan=gan), step)
        x, model.lpips = known(model), Apart()
        made = 0.5 * x + model.codec.base(BATCH)
        expected = (made - BATCH["data"]).abs().mean() + perceptual * (made - BATCH["data"]).square().mean()
        expected = expected - gan * made.sum((1, 2, 3)).mean() * joined
        assert model.student_loss(BATCH).item() == pytest.approx(expected.item(), rel=1e-5)


def check_gradient():
    """The decoder's weight moves along `mean sign(D(x) - data) x`."""
    model = tuning(gan=0)
    x = drawn(4, 3, 8, 8, seed=2)
    model.sampler.forward = lambda noise, cond, draw: x
    sign = (0.5 * x + model.codec.base(BATCH) - BATCH["data"]).sign()
    expected = torch.einsum("bihw,bjhw->ij", sign, x) / sign.numel()
    loss = model.student_loss(BATCH)
    assert loss.requires_grad
    (found,) = torch.autograd.grad(loss, list(model.student.parameters()))
    torch.testing.assert_close(found[..., 0, 0], expected)


def check_discriminator():
    """Hinge: `mean relu(1 + l(D(x))) + mean relu(1 - l(data))`; the decoder is a constant."""
    model = tuning(gan=0.3)
    x = known(model)
    made = (0.5 * x + model.codec.base(BATCH)).sum((1, 2, 3))
    expected = (1 + made).relu().mean() + (1 - BATCH["data"].sum((1, 2, 3))).relu().mean()
    loss = model.discriminator_loss(BATCH)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and not loss.requires_grad


def test_the_decoders_loss():
    check_student()
    check_gradient()


def test_the_discriminators_loss():
    check_discriminator()


def test_only_the_decoder_and_the_discriminator_learn():
    for role, step in (("student", 2), ("discriminator", 1)):
        model = at(tuning(), step)
        model.focus(role)
        getattr(model, f"{role}_loss")(BATCH).backward()
        touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
        assert touched == {role}


def test_without_an_adversarial_part_there_is_no_discriminator():
    model = tuning(gan=0)
    assert [*model.roles] == ["student"] and not hasattr(model, "discriminator")


def test_the_discriminator_is_local():
    """Away from a changed pixel by 54 pixels its logits stay."""
    net = Patches(3, width=4)
    x = drawn(1, 3, 128, 128)
    y = x.clone()
    y[..., 0, 0] += 1
    moved = (net(y) != net(x))[0, 0]
    assert moved[0, 0] and not moved[4:].any() and not moved[:, 4:].any() and net(x[..., :8, :8]).shape == (1, 1, 1, 1)


class Plain(DistillData):
    """The batch as data."""

    event_shape, classes, context, domain = (3, 8, 8), {}, ("low",), "none"
    build_evaluator = media = None

    def load(self):
        made = TensorData(BATCH)
        return made, made, made


def test_resumed_it_is_bit_equal(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, run, *_):
            run.save_checkpoint(tmp_path / f"{run.global_step}.ckpt")

    trainer(max_steps=6, callbacks=[Save()]).fit(whole := tuning(), Plain(batch_size=2))
    trainer(max_steps=6).fit(again := tuning(), Plain(batch_size=2), ckpt_path=tmp_path / "3.ckpt", weights_only=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_the_student_so_far_has_the_average_or_a_copy_of_the_decoder():
    for halflife in (500_000, 0):
        model = tuning(ema_halflife=halflife, student=Adam(lr=1e-2))
        trainer(max_steps=4).fit(model, Plain(batch_size=2))
        made, average = model.product().codec.tuned, model.student if model.ema is None else model.ema
        assert made is not model.student and torch.equal(made.weight, average.weight)
        model.focus("student")
        assert not made.weight.requires_grad and model.student.weight.requires_grad


# A student of latents, from beginning to end


class Random(SuperResolutionData):
    """Random pictures of 64 x 64 pixels and their observations of 16 x 16."""

    def __init__(self):
        super().__init__(4, 64, batch_size=1)

    def load(self):
        made = TensorData({"data": drawn(8, 3, 64, 64), "low": drawn(8, 3, 16, 16, seed=1)})
        return made, made, made


@pytest.fixture
def files(tmp_path):
    return release(tmp_path / "release")[0]


def latent(files, **settings):
    torch.manual_seed(0)
    return DecoderTuning(ResShiftTeacher(**files, crop=64), student=Adam(lr=1e-2), **settings)


def test_the_folder_of_a_student_keeps_its_decoder(files, tmp_path):
    model, data = latent(files), Random()
    before = model.teacher.denoiser.state_dict()
    trainer(max_steps=2).fit(model, data)
    made, cond = model.product(), data.conditions(2)
    assert all(torch.equal(value, before[name]) for name, value in made.denoiser.state_dict().items())
    own = model.teacher.codec
    x = made.sample(2, cond, decode=False)
    tuned, plain = made.sample(2, cond), own.decode(x, cond)
    assert (tuned - plain).abs().max() > 1e-3 and torch.equal(tuned, made.codec.decode(x, cond)) and own.tuned is None
    batch = data.test[torch.arange(2)]
    assert torch.equal(made.codec.encode(batch), own.encode(batch)) and not tuned.requires_grad
    made.save(tmp_path / "student")
    again = load_student(tmp_path / "student", (files["autoencoder"],))
    assert torch.equal(again.sample(2, cond), tuned)
    again.save(tmp_path / "again")
    assert torch.equal(load_student(tmp_path / "again", (files["autoencoder"],)).sample(2, cond), tuned)


def test_a_stranger_reads_neither_the_autoencoder_nor_a_damaged_decoder(files, tmp_path):
    folder = latent(files, gan=0).product().save(tmp_path / "student")
    with pytest.raises(Outside, match="autoencoder_tiny.pth"):
        load_student(folder).sample(1, {"low": torch.zeros(1, 3, 16, 16)})
    (folder / "decoder.safetensors").unlink()
    with pytest.raises(ValueError, match="decoder.safetensors does not exist"):
        load_student(folder, (files["autoencoder"],))
    said = read_yaml(folder / "student.yaml") | {"codec": to_spec(Upscale(4))}
    write_yaml(folder / "student.yaml", said)
    with pytest.raises(ValueError, match="student.yaml: Upscale has no decoder with weights"):
        load_student(folder, (files["autoencoder"],))


def test_latents_change_their_observation_exactly_with_one_encoding_each(files):
    """In either direction, at a level of noise too; what they add to photographs stays."""
    easy, hard = (VQ(files["autoencoder"], scale, 2, **sizes(files)) for scale in (2, 4))
    batch = {"data": drawn(2, 3, 32, 32)}
    old, new = {"low": drawn(2, 3, 8, 8, seed=1)}, {"low": drawn(2, 3, 16, 16, seed=2)}
    noise, calls = drawn(2, 3, 8, 8, seed=3), []
    hard.autoencoder(torch.device("cpu")).encoder.register_forward_hook(lambda *_: calls.append(1))
    x = hard.encode(batch | old)
    there = hard.rebase(0.3 * x + noise, 0.3, old, new)
    back = hard.rebase(there, 0.3, new, old)
    assert len(calls) == 3
    torch.testing.assert_close(there, 0.3 * easy.encode(batch | new) + noise, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back, 0.3 * x + noise, rtol=1e-4, atol=1e-4)


def sizes(files):
    return {"sizes": ResShiftTeacher(**files, crop=64).codec.sizes}


# Who can


def test_a_folder_says_whether_its_codec_has_a_decoder(files, tmp_path):
    own = ResShiftTeacher(**files, crop=64)
    for name, codec in (("latent", own.codec), ("pixel", Upscale(4))):
        Teacher(own.denoiser, own.event_shape, context=("low",), codec=codec).save(tmp_path / name)
        for kind in (FolderTeacher, SavedTeacher):
            assert ("decoder" in kind.offers({"path": str(tmp_path / name)})) == (name == "latent")


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: DecoderTuning(teacher(Upscale(4))), "Upscale has no decoder with weights"),
        (lambda: DecoderTuning(teacher(Codec())), "Codec has no decoder with weights"),
        (lambda: tuning(kappa=2.0), "kappa=2.0 has nothing to guide"),
        (lambda: tuning(gan=-1.0), "gan must"),
        (lambda: tuning(lpips="nowhere.pth"), "nowhere.pth"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_codec_without_a_decoder_is_no_capability():
    model = tuning()
    model.require(Plain())
    model.teacher.codec = Upscale(4)
    with pytest.raises(ValueError, match="DecoderTuning needs decoder, which Teacher and Plain do not give"):
        model.require(Plain())


# Each fault must be noticed

LOSS, OTHER = DecoderTuning.student_loss, DecoderTuning.discriminator_loss
MUTATIONS = [
    ("a square", LOSS, "(made - data).abs().mean()", "(made - data).square().mean()", check_student),
    ("the adversarial weight left out", LOSS, "self.gan * hinge", "hinge", check_student),
    ("the adversarial sign", LOSS, "+ self.gan", "- self.gan", check_student),
    ("the perceptual weight left out", LOSS, "self.perceptual * ", "", check_student),
    ("the discriminator judges before its first turn", LOSS, "and self.updates_before", "or self.updates_before", check_student),
    ("the discriminator sees the data in the student's turn", LOSS, "self.discriminator(made)", "self.discriminator(data)", check_student),
    ("real and decoded swapped", OTHER, "(self.discriminator(made), self.discriminator(batch[\"data\"]))", "(self.discriminator(batch[\"data\"]), self.discriminator(made))", check_discriminator),
    ("the decoder not stopped", OTHER, "torch.no_grad()", "torch.enable_grad()", check_discriminator),
    ("the teacher's decoder", DecoderTuning.decoded, "self.codec.decode", "self.teacher.codec.decode", check_gradient),
]  # fmt: skip


@pytest.mark.parametrize("mutation", [Mutation(says, *rest) for says, *rest in MUTATIONS], ids=str)
def test_a_fault_is_noticed(mutation):
    prove(mutation)
