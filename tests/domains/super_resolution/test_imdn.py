"""IMDN: size and names of the published network, and its place among students of this house."""

import pytest
import torch
from helpers import UNMEASURED, trainer, wake
from mutations import Mutation, prove

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import RectifiedFlow, ResShift
from distillkit.spec import from_spec, to_spec
from distillkit.students.makers import Fresh, FromFolder
from distillkit.teachers.base import Teacher
from domains.super_resolution import imdn
from domains.super_resolution.codec import Upscale
from domains.super_resolution.imdn import IMDN
from domains.super_resolution.network import PatchNet

SIZES = {2: 694_404, 3: 703_059, 4: 715_176, 8: 798_264}  # at width 64


def published(scale: int, nf: int = 64) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in the authors' IMDN_x{scale}.pth."""
    found = {}

    def convolution(name, into, out, side):
        found[f"{name}.weight"], found[f"{name}.bias"] = (out, into, side, side), (out,)

    kept, rest = nf // 4, nf - nf // 4
    convolution("fea_conv", 3, nf, 3)
    for block in (f"IMDB{i}" for i in range(1, 7)):
        convolution(f"{block}.c1", nf, nf, 3)
        convolution(f"{block}.c2", rest, nf, 3)
        convolution(f"{block}.c3", rest, nf, 3)
        convolution(f"{block}.c4", rest, kept, 3)
        convolution(f"{block}.c5", nf, nf, 1)
        convolution(f"{block}.cca.conv_du.0", nf, nf // 16, 1)
        convolution(f"{block}.cca.conv_du.2", nf // 16, nf, 1)
    convolution("c.0", 6 * nf, nf, 1)
    convolution("LR_conv", nf, nf, 3)
    convolution("upsampler.0", nf, 3 * scale**2, 3)
    return found


@pytest.mark.parametrize("scale", SIZES)
def test_the_published_weights_load(scale):
    network = IMDN(scale)
    assert sum(p.numel() for p in network.parameters()) == SIZES[scale]
    weights = {
        f"module.{name}": torch.zeros(shape) for name, shape in published(scale).items()
    }  # as DataParallel saves
    network.load_state_dict({name.removeprefix("module."): value for name, value in weights.items()}, strict=True)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == published(scale)


@pytest.mark.parametrize("scale", SIZES)
def test_any_observation_is_enlarged_and_at_first_nothing_is_added(scale):
    network = IMDN(scale, width=16)
    for height, width in ((1, 1), (5, 7)):
        low, x = torch.rand(2, 3, height, width), torch.randn(2, 3, scale * height, scale * width)
        assert torch.equal(network(x, None, {"low": low}), torch.zeros_like(x))
        made = wake(network)(x, None, {"low": low})
        assert made.shape == x.shape and made.isfinite().all() and made.abs().min() > 0
        assert torch.equal(made, network(0 * x, None, {"low": low}))  # a function of the observation alone
        network = IMDN(scale, width=16)


def block_in_closed_form():
    """With centre weights alone a block is arithmetic on the channels of a flat image."""
    block = imdn.Block(16)
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    for k, conv in enumerate((block.c1, block.c2, block.c3, block.c4, block.c5), 1):
        side, shared = conv.kernel_size[0] // 2, min(conv.in_channels, conv.out_channels)
        with torch.no_grad():
            conv.weight[range(shared), range(shared), side, side] = float(k) if k < 5 else 1.0
            conv.weight[:, :, side, side].mul_(-1 if k == 2 else 1)
    x = torch.arange(1.0, 17)[None, :, None, None]
    first = x[0, :, 0, 0]
    second = -0.05 * 2 * torch.cat([first[4:], torch.zeros(4)])  # negative: the leaky side
    third = 0.05 * 3 * torch.cat([second[4:], torch.zeros(4)])
    kept = torch.cat([first[:4], second[:4], third[:4], 4 * third[4:8]])
    torch.testing.assert_close(block(x)[0, :, 0, 0], first + kept / 2)  # sigmoid(0) = 1/2


def attention_in_closed_form():
    """The weight of channel 5 is `sigmoid(mean + std)` of channel 3, which the weights pick."""
    attention = imdn.Attention(16)
    for parameter in attention.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        attention.conv_du[0].weight[0, 3] = attention.conv_du[2].weight[5, 0] = 1
    x = torch.zeros(1, 16, 1, 2)
    x[0, 3], x[0, 5] = torch.tensor([1.0, 4.0]), 1
    made = attention(x)
    assert made[0, 5, 0, 0].item() == pytest.approx(torch.tensor(2.5 + 1.5).sigmoid().item())
    assert torch.equal(made[0, 3], x[0, 3] / 2)


FAULTS = [
    ("the kept channels passed on too", imdn.Block.forward, "h[:, self.kept :]", "h[:, : -self.kept]", block_in_closed_form),
    ("no input added", imdn.Block.forward, "x + self.c5", "self.c5", block_in_closed_form),
    ("another slope", imdn.Block.forward, "SLOPE)", "0.2)", block_in_closed_form),
    ("a fourth rectifier", imdn.Block.forward, "self.c4(rest)", "F.leaky_relu(self.c4(rest), SLOPE)", block_in_closed_form),
    ("no contrast", imdn.Attention.forward, "(variance + 1e-12).sqrt()", "0", attention_in_closed_form),
    ("the variance", imdn.Attention.forward, "(variance + 1e-12).sqrt()", "variance", attention_in_closed_form),
    ("no mean", imdn.Attention.forward, "(mean + (", "((", attention_in_closed_form),
]  # fmt: skip


@pytest.mark.parametrize("fault", [Mutation(says, *rest) for says, *rest in FAULTS], ids=str)
def test_blocks_in_closed_form(fault):
    prove(fault)


def test_every_weight_learns_also_from_a_single_pixel():
    torch.manual_seed(0)
    network = IMDN(2)
    wake(network.upsampler)  # which starts at zero and alone learns in the first step
    for side in (1, 6):
        network.zero_grad()
        low = torch.rand(2, 3, side, side) * 2 - 1
        network(torch.zeros(2, 3, 2 * side, 2 * side), None, {"low": low}).square().sum().backward()
        gradients = [p.grad for p in network.parameters()]
        assert all(g.isfinite().all() for g in gradients)
        assert side == 1 or all(g.abs().sum() > 0 for g in gradients)


def test_the_noise_left_in_a_one_step_sample_is_below_a_grey_level():
    """At ResShift's largest time it is `c_skip x` of standard deviation 1e-4."""
    process = ResShift()
    denoiser, t = Denoiser(IMDN(4, width=16), process, "edm", 0.1), torch.tensor(process.t_max)
    x = process.sigma(t) * torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        left = denoiser(x, t, {"low": torch.zeros(4, 3, 12, 12)})
    alpha, sigma = 1 - 0.99**2, 2 * 0.99
    assert left.std().item() == pytest.approx(alpha * 0.01 / (alpha**2 * 0.01 + sigma**2) * sigma, rel=0.02)
    assert 127.5 * left.abs().max().item() < 0.1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: IMDN(width=24), "width must be a multiple of 16, got 24"),
        (lambda: IMDN(scale=0), "scale must be at least 1, got 0"),
        (
            lambda: IMDN(2, 16)(torch.zeros(1, 3, 8, 12), None, {"low": torch.zeros(1, 3, 2, 3)}),
            "a network for scale 2 cannot make 12 x 8 pixels of 3 x 2",
        ),
        (lambda: IMDN(2, 16).check_context({"low": torch.zeros(1, 1, 2, 3)}), "must hold small photographs"),
        (
            lambda: Denoiser(IMDN(2, 16), RectifiedFlow(), "flow"),
            "IMDN does not see the noise, which flow prediction would leave in the samples: give a network that sees it",
        ),
    ],
)
def test_refusals(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_run_leaves_a_student_for_photographs_of_any_size(tmp_path):
    """`fit method=pairs student=fresh network=imdn`, two steps, in process."""
    from distillkit.students.base import load_student
    from tests.battery.conftest import build

    teacher = Teacher(
        Denoiser(PatchNet((3, 16, 16), width=8, depth=1), ResShift(), "edm", 0.1), (3, 16, 16), context=("low",),
        codec=Upscale(4),
    )  # fmt: skip
    teacher.save(tmp_path / "teacher")
    words = ["domain=super_resolution", "method=pairs", "student=fresh", "network=imdn", "network.width=16"]
    words += ["teacher=folder", f"teacher.path={tmp_path / 'teacher'}", "data.crop=16", "data.batch_size=2"]
    run = build(*words, "model.num_pairs=4", "model.steps=2", *UNMEASURED)
    assert isinstance(run.model.student.network, IMDN) and run.model.student.network.scale == 4
    trainer(2).fit(run.model, run.data)
    run.model.export(tmp_path / "student")
    assert not FromFolder.needs({"path": str(tmp_path / "student")})  # which is no scene, so that pairs go on with it
    student = load_student(tmp_path / "student")
    low = torch.rand(2, 3, 5, 9) * 2 - 1
    assert student.sample(2, {"low": low}).shape == (2, 3, 20, 36)
    assert torch.equal(student.sample(2, {"low": low}, decode=False), student.sample(2, {"low": low}, decode=False))


def test_it_is_made_again_from_its_record():
    again = from_spec(to_spec(Fresh(IMDN(3, 32)))).network
    assert again.scale == 3 and again.fea_conv.out_channels == 32
