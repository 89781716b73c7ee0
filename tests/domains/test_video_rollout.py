"""Clips in a row: each goes on from the last frame of the one before."""

import pytest
import torch
from torch import nn

from distillkit.diffusion.process import RectifiedFlow
from distillkit.student import Student
from domains.video.rollout import rollout


class Count(nn.Module):
    """Instead of denoising it counts on from the first frame: frame k is that plus k, plus a hundredth of the noise's mean."""

    def __init__(self):
        super().__init__()
        self.process, self.weight = (
            RectifiedFlow(),
            nn.Parameter(torch.ones(1)),
        )

    def forward(self, x_t, t, cond):
        own = 0.01 * torch.tanh(x_t.mean((1, 2, 3, 4), keepdim=True))
        steps = torch.arange(4.0)[:, None, None] * 0.1
        return (cond["first"][:, :, None] + steps + own).expand_as(x_t)


@pytest.fixture(scope="module")
def student():
    return Student(Count(), [1.0], (1, 4, 2, 2), {"label": 3}, context=("first",))


def test_every_clip_goes_on_from_the_last_frame_with_noise_of_its_own(student):
    first = torch.tensor([-0.9, -0.4])[:, None, None, None].expand(2, 1, 2, 2)
    cond = {"first": first, "label": torch.tensor([0, 2])}
    video = rollout(student, cond, clips=3)
    assert video.shape == (2, 1, 10, 2, 2)
    expected = first[:, 0, 0, 0, None] + 0.1 * torch.arange(10)
    torch.testing.assert_close(video[:, 0, :, 0, 0], expected, atol=0.04, rtol=0)
    steps = video[0, 0, :, 0, 0].diff()
    assert not torch.allclose(steps[3], steps[2], atol=1e-5) and torch.allclose(
        steps[3:6][1:], torch.tensor(0.1), atol=1e-5
    )
    assert torch.equal(cond["first"], first)  # left as it was
    assert torch.equal(rollout(student, cond, 3), video) and not torch.equal(rollout(student, cond, 3, seed=1), video)
    assert torch.equal(rollout(student, cond, 1), student.sample(2, cond, 0))


def test_refusals(student):
    with pytest.raises(ValueError, match="clips must be at least 1"):
        rollout(student, {"first": torch.zeros(1, 1, 2, 2), "label": torch.tensor([0])}, 0)
    with pytest.raises(ValueError, match=r"train one with vars.context=\[first\]"):
        rollout(Student(Count(), [1.0], (1, 4, 2, 2)), {}, 1)
