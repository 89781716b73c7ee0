"""Train a teacher: denoising score matching, condition dropout, EMA."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import Process
from distillkit.diffusion.start import Start
from distillkit.diffusion.times import LogNormal, Times
from distillkit.losses.denoising import denoising_loss
from distillkit.methods.leaves_teacher import DataDistiller
from distillkit.teachers.base import Teacher


class Pretrain(DataDistiller):
    """Fit a denoiser to data.

    Sources: EDM (arXiv 2206.00364) for `edm`, DDPM for `eps`, flow matching (arXiv 2210.02747) for
    `flow`.

    Args:
        network: the network to train.
        process: the noising process.
        event_shape, classes, context: as in `DataDistiller`.
        prediction: what the network predicts, see `Denoiser`; None means `edm`.
        sigma_data: standard deviation of the data.
        times: distribution of training times; None means EDM's lognormal.
        start: the start of the teacher's sampling; None means pure noise.
    """

    teacher_class = Teacher

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        event_shape: list[int],
        classes: dict[str, int] | None = None,
        context: list[str] | None = None,
        prediction: Literal["x0", "eps", "v", "flow", "edm"] | None = None,
        sigma_data: float = 0.5,
        times: Times | None = None,
        start: Start | None = None,
        **kwargs,
    ):
        if not isinstance(process, Process):
            raise ValueError(
                f"a network on tokens is trained by distillkit.methods.pretrain_tokens.PretrainTokens, Pretrain takes no "
                f"{type(process).__name__}"
            )
        denoiser = Denoiser(network, process, prediction or "edm", sigma_data)
        super().__init__(denoiser, event_shape, classes, context, **kwargs)
        self.times = times or LogNormal()
        (start or Start()).check(process, self.context)
        self.surroundings["start"] = start

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """`E w(t) |D(alpha x_0 + sigma eps, t, c) - x_0|^2`."""
        x_0, cond = self.codec.encode(batch), self.dropped(batch)
        t = self.times(self.rand(len(x_0), "t"), self.student.process)
        return denoising_loss(self.student, x_0, t, self.randn(x_0.shape, "eps"), cond)
