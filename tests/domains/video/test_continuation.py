"""Clips in a row: each goes on from the last frames of the one before."""

import pytest
import torch
from torch import nn

from distillkit.diffusion.process import RectifiedFlow
from distillkit.rollouts import rolled_out
from distillkit.spec import from_spec, to_spec
from distillkit.students.few_step import FewStepStudent
from domains.video.continuation import LastFrames
from domains.video.teacher import Clips, ClipsContinuation
from tests.battery.conftest import build

FRAMES = LastFrames()


class Count(nn.Module):
    """A denoiser that counts on from the last context frame, and a little from the noise's mean."""

    def __init__(self):
        super().__init__()
        self.told = {}
        self.process, self.weight = RectifiedFlow(), nn.Parameter(torch.ones(1))

    def forward(self, x_t, t, cond):
        own = 0.001 * torch.tanh(x_t.mean((1, 2, 3, 4), keepdim=True))
        first = cond["first"]
        new = 0.1 * torch.arange(1, x_t.shape[2] - first.shape[2] + 1)[:, None, None] + own
        return torch.cat([first, first[:, :, -1:] + new], dim=2)


@pytest.fixture(scope="module")
def student():
    return FewStepStudent(Count(), [1.0], (1, 5, 2, 2), {"label": 3}, context=("first",))


@pytest.fixture
def cond():
    first = torch.tensor([[-0.9, -0.8], [-0.5, -0.4]])[:, None, :, None, None].expand(2, 1, 2, 2, 2)
    return {"first": first, "label": torch.tensor([0, 2])}


def test_every_clip_goes_on_from_the_last_frames_with_noise_of_its_own(student, cond):
    before = cond["first"].clone()
    video = rolled_out(student.sample, FRAMES, cond, rollouts=3)
    assert video.shape == (2, 1, 2 + 3 * 3, 2, 2)
    expected = before[:, 0, :1, 0, 0] + 0.1 * torch.arange(11)
    torch.testing.assert_close(video[:, 0, :, 0, 0], expected, atol=0.01, rtol=0)
    steps = video[0, 0, :, 0, 0].diff()  # the first new step of each clip shows its noise
    assert len({round(float(steps[k]), 6) for k in (1, 4, 7)}) == 3
    assert torch.equal(cond["first"], before)  # left as it was
    again, other = rolled_out(student.sample, FRAMES, cond, 3), rolled_out(student.sample, FRAMES, cond, 3, seed=1)
    assert torch.equal(again, video) and not torch.equal(other, video)
    assert torch.equal(rolled_out(student.sample, FRAMES, cond, 1), student.sample(2, cond, 0))


def test_what_follows_is_cut_to_the_range_and_carries_no_gradient(cond):
    made = torch.linspace(-2, 2, 5)[None, None, :, None, None].expand(2, 1, 5, 2, 2).requires_grad_()
    after = FRAMES(cond, made)
    assert after["first"][0, 0, :, 0, 0].tolist() == [1.0, 1.0] and not after["first"].requires_grad
    assert after["label"] is cond["label"]


def test_refusals(student, cond):
    with pytest.raises(ValueError, match="rollouts must be at least 1"):
        rolled_out(student.sample, FRAMES, cond, 0)
    with pytest.raises(ValueError, match="does not say what comes after a sample"):
        rolled_out(student.sample, student.continuation, cond, 1)


def test_teachers_that_are_given_first_frames_proceed(cond):
    """The embedded teacher and those of `pretrain` record the same continuation."""
    embedded = ClipsContinuation()
    made = torch.linspace(-2, 2, 5)[None, None, :, None, None].expand(2, 1, 5, 2, 2)
    after = embedded.proceed(cond, made)
    assert torch.equal(after["first"], FRAMES(cond, made)["first"]) and Clips().proceed(cond, made) is None
    small = ["domain=video", "method=pretrain", "data.train=8", "data.val=4", "data.test=4", "network.channels=8"]
    for stage, kind in (("continuation", LastFrames), ("clip", type(None))):
        teacher = build(*small, f"stage={stage}").model.product()
        assert type(teacher.continuation) is kind
        assert ("continuation" in teacher.facts()) == (stage == "continuation")
    assert isinstance(from_spec(to_spec(embedded.continuation)), LastFrames)
