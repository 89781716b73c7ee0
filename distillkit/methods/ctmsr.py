"""CTMSR, consistency trajectory matching (ICCV 2025, arXiv 2503.20349): one step, no teacher."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.process import Process, expand
from distillkit.evaluation.perceptual import Lpips
from distillkit.losses.consistency import charbonnier
from distillkit.losses.delta import delta_loss
from distillkit.losses.reduce import distance_scale
from distillkit.methods.average import average_of
from distillkit.methods.base import WEIGHTS, Adam
from distillkit.methods.from_data import FromData
from distillkit.students.few_step import FewStepStudent


class CTMSR(FromData):
    """Fit a consistency model D to data, then match what it makes of its samples and of the data.

    Consistency training, on the process's grid of N hops from the datum x_0 to t_max, with one
    datum and one noise for both ends of a hop: `d(D(x_far, far), sg[D(x_near, near)])`, where the
    first hop's near end is x_0 itself. On Gaussian data the law of one step is known: it has the
    mean and a standard deviation that is the product of `cos(theta_far - theta_near)` over all hops
    times the data's, with `theta = atan(sigma / (alpha S))`. Few hops give safe samples.

    Distribution trajectory matching joins in the last steps: the sample `out` and x_0 are noised
    alike, and out descends `g = F(out noised) - F(x_0 noised)`, F a copy of D that is renewed from
    time to time. On Gaussian data g is proportional to out - x_0: it draws the samples of all
    levels to the conditional mean, and narrows them.

    Args:
        network: the network to train.
        process: the noising process. A flow on what photographs add to their enlarged observation
            is the paper's: `x_t = x_0 + t (y - x_0) + t eps`.
        event_shape, classes, context, codec, continuation: as in `FromData`.
        sigma_data: standard deviation of the encoded data. The skip of the paper's network, of its
            0.5 and noise levels over 0.1, is that of 0.05.
        hops: N at the beginning and at the end of the run, which is cut into equal parts, one for
            each number between them.
        num_steps: calls of the student, at levels of the last grid, with new noise between them.
        eps: the square of the distance below which the absolute difference becomes a square.
        dtm: weight of distribution trajectory matching; 0 switches it off.
        dtm_start: the share of the run after which it joins.
        refresh: steps after which F becomes the network as it is then.
        lpips: path of AlexNet's or VGG16's weights in torchvision's layout, for images. LPIPS of
            the decoded samples is then half of the consistency loss and all of the matching;
            without them these are the absolute difference and the squared one.
        student: settings of the student's optimiser.

    Raises:
        ValueError: a value is out of range.
    """

    requires = frozenset({"data", "numbers"})
    # The law of the hops is narrower than the data's; between the modes of a mixture it is blurred.
    proof = {
        "gaussian": {"std_error": 0.05, "correlation_error": 0.05},
        "mixture": {"std_error": 0.15, "correlation_error": 0.05, "weight_error": 0.5},
    }

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        event_shape: list[int],
        classes: dict[str, int] | None = None,
        context: list[str] | None = None,
        sigma_data: float = 0.5,
        hops: list[int] = (4, 3),
        num_steps: int = 1,
        eps: float = 1e-12,
        dtm: float = 1.6,
        dtm_start: float = 0.996,
        refresh: int = 1000,
        lpips: str | None = None,
        student: Adam = Adam(lr=5e-5, betas=(0.9, 0.9)),
        **kwargs,
    ):
        checks.whole(1, 10_000, hops=hops)
        if len(hops) != 2:
            raise checks.Unfit("hops", hops, "be two numbers, for the beginning and the end of the run")
        checks.whole(1, hops[1], "it samples at levels of the last grid", num_steps=num_steps)
        checks.positive(eps=eps)
        checks.within(WEIGHTS, dtm=dtm)
        checks.within("[0, 1]", "1 is never", dtm_start=dtm_start)
        checks.whole(1, refresh=refresh)
        denoiser = Denoiser(network, process, "edm", sigma_data)
        super().__init__(denoiser, event_shape, classes, context, student=student, **kwargs)
        self.hops, self.num_steps = tuple(hops), num_steps
        self.eps, self.dtm, self.dtm_start, self.refresh = eps, dtm, dtm_start, refresh
        self.frozen = average_of(denoiser) if dtm and dtm_start < 1 else None
        self.lpips = Lpips(lpips) if lpips else None

    def on_fit_start(self) -> None:
        if self.total == math.inf and (self.frozen is not None or self.hops[0] != self.hops[1]):
            raise ValueError(
                "hops and dtm_start are shares of the run, whose end is not known: give trainer.max_steps, or one number of "
                "hops throughout and model.dtm=0"
            )

    @property
    def hops_now(self) -> int:
        """The number of hops of this step's grid."""
        first, last = self.hops
        parts = abs(last - first) + 1
        passed = min(int(parts * self.global_step / self.total), parts - 1)
        return first + passed if last > first else first - passed

    @property
    def matches(self) -> bool:
        """Whether distribution trajectory matching has joined."""
        return self.frozen is not None and self.global_step >= self.dtm_start * self.total

    def levels(self, hops: int) -> Tensor:
        """The ends of all hops, rising, [hops + 1]; the first stands for the datum itself."""
        return self.student.process.grid(hops + 1).flip(0).to(torch.float32).to(self.device)

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        x_0, cond = self.codec.encode(batch), self.condition(batch)
        levels = self.levels(self.hops_now)
        hop = self.draw(len(x_0), range(len(levels) - 1), "hop")
        out, target = self.ends(x_0, cond, levels, hop)
        loss = self.distance(out, target, cond)
        self.note("student/consistency", loss)
        if not self.matches:
            return loss
        matching = self.matching(out, x_0, cond, levels)
        self.note("student/matching", matching)
        return loss + self.dtm * matching

    def draw(self, num: int, among: range, purpose: str) -> Tensor:
        """Whole numbers from a range, each as likely, int64 [num]."""
        drawn = (self.rand(num, purpose) * len(among)).long()
        return among.start + drawn.clamp_max(len(among) - 1)

    def ends(self, x_0: Tensor, cond: Cond, levels: Tensor, hop: Tensor) -> tuple[Tensor, Tensor]:
        """The student's samples from the far end of each hop, and the near ends' as a target."""
        process, eps = self.student.process, self.randn(x_0.shape, "eps")
        near, far = levels[hop], levels[hop + 1]
        out = self.student(process.add_noise(x_0, eps, far), far, cond)
        with torch.no_grad():
            target = self.student(process.add_noise(x_0, eps, near), near, cond)
        return out, torch.where(expand(hop == 0, x_0), x_0, target)

    def distance(self, out: Tensor, target: Tensor, cond: Cond) -> Tensor:
        """Half of the absolute difference, and half of LPIPS if its weights are there."""
        loss = 0.5 * charbonnier(out, target, self.eps, cond.get("mask"))
        if self.lpips is None:
            return loss
        return loss + 0.5 * self.lpips(*self.decoded(cond, out, target)).mean()

    def matching(self, out: Tensor, x_0: Tensor, cond: Cond, levels: Tensor) -> Tensor:
        """`0.5 d(out, sg[out - g]) / mean |out - x_0|`, d the square or LPIPS."""
        since = self.global_step - math.ceil(self.dtm_start * self.total)
        if since % self.refresh == 0:
            self.frozen.load_state_dict(self.student.state_dict())
        t = levels[self.draw(len(x_0), lower_levels(len(levels)), "matching t")]
        eps, mask = self.randn(x_0.shape, "matching eps"), cond.get("mask")
        with torch.no_grad():
            moved, still = (self.frozen(self.frozen.process.add_noise(x, eps, t), t, cond) for x in (out, x_0))
            scale = distance_scale(out, x_0, "sample", mask)
        if self.lpips is None:
            return delta_loss(out, moved, still, scale, mask)
        distance = self.lpips(*self.decoded(cond, out, out.detach() - (moved - still)))
        return 0.5 * (distance / scale.flatten()).mean()

    def decoded(self, cond: Cond, *samples: Tensor) -> list[Tensor]:
        """Samples as data."""
        return [self.codec.decode(x, cond) for x in samples]

    def product(self) -> FewStepStudent:
        grid, last = self.levels(self.hops[1]).tolist(), self.hops[1]
        times = [grid[-(-last * step // self.num_steps)] for step in range(self.num_steps, 0, -1)]
        return FewStepStudent(
            self.best_student,
            times,
            self.event_shape,
            self.classes,
            context=self.context,
            codec=self.codec,
            continuation=self.continuation,
        )

    def sample(self, cond: Cond, num: int, seed: int) -> Tensor:
        return self.product().sample(num, cond, seed)


def lower_levels(num: int) -> range:
    """The indices of the levels at which samples are matched: from a tenth of `num` to its half.

    The datum's own is left out. Of the four levels of three hops only the first above it is left.
    """
    low = max(1, num // 10)
    return range(low, max(low + 1, num // 2))
