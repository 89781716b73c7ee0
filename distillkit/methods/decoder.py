"""The last step of YONOS-SR (arXiv 2401.17258): the decoder learns what one step leaves to it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from distillkit import checks
from distillkit.evaluation.perceptual import Lpips
from distillkit.losses.gan import hinge_discriminator_loss, hinge_generator_loss
from distillkit.methods.base import WEIGHTS, Adam
from distillkit.methods.few_step import FewStepDistiller
from distillkit.networks.heads import Patches
from distillkit.students.few_step import FewStepStudent
from distillkit.students.makers import Maker
from distillkit.teachers.base import Teacher


class DecoderTuning(FewStepDistiller):
    """Train the codec's decoder D on the frozen network's samples x_g of one step, or a few.

        mean |D(x_g) - data| + w_p LPIPS(D(x_g), data) - w_g mean l(D(x_g))

    The network stays as it is, so x_g are constants. The logits l are those of a small
    discriminator of patches, which learns with the hinge loss in turns of its own.

    The product is a student that keeps the trained decoder in its folder.

    Args:
        teacher: the frozen teacher; its codec needs a decoder with weights.
        student_maker: gives the frozen network; None takes the teacher's. `student=folder` takes a
            finished student's, with its times.
        lpips: path of the weights of `evaluation.perceptual.Lpips`; None leaves LPIPS out.
        perceptual: weight w_p, in [0, 1000].
        gan: weight w_g, in [0, 1000]; 0 has no discriminator.
        student: settings of the decoder's optimiser.
        discriminator: settings of the discriminator's optimiser.
        kwargs: as in `FewStepDistiller`; `kappa` stays 1.

    Raises:
        ValueError: a value is out of range, or data are no images, which a discriminator needs.
    """

    requires = frozenset({"denoiser", "data", "decoder"})

    def __init__(
        self,
        teacher: Teacher,
        student_maker: Maker | None = None,
        lpips: str | None = None,
        perceptual: float = 1.0,
        gan: float = 0.1,
        student: Adam = Adam(lr=1e-5),
        discriminator: Adam = Adam(lr=1e-4),
        **kwargs,
    ):
        super().__init__(teacher, student_maker, **kwargs)
        checks.within(WEIGHTS, perceptual=perceptual, gan=gan)
        if self.guides:
            raise ValueError(
                f"a frozen network is called without guidance, got kappa={self.kappa}: leave model.kappa at 1"
            )
        self.perceptual, self.gan = perceptual, gan
        self.lpips = Lpips(lpips) if lpips and perceptual else None
        self.sampler = self.few_step_student(self.make_student(), teacher.codec).requires_grad_(False).eval()
        self.add_role("student", student, student=teacher.codec.decoder())
        self.codec = teacher.codec.with_decoder(self.student)
        if gan:
            shape = teacher.codec.data_shape(teacher.event_shape)
            if len(shape) != 3:
                raise ValueError(
                    f"the discriminator looks at images, data have the shape {list(shape)}: set model.gan=0"
                )
            self.add_role("discriminator", discriminator, discriminator=Patches(shape[0]))
        self.keep_ema()

    def decoded(self, batch: dict[str, Tensor], purpose: str) -> Tensor:
        """The network's samples for a batch, decoded; gradients end at the decoder."""
        cond = self.condition(batch)
        shape = self.codec.shape(len(batch["data"]), self.teacher.event_shape, cond)

        def draw(step: int) -> Tensor:
            return self.randn(shape, f"{purpose} noise {step}")

        return self.codec.decode(self.sampler(draw(0), cond, draw), cond)

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        made, data = self.decoded(batch, "student"), batch["data"]
        loss = (made - data).abs().mean()
        if self.lpips is not None:
            loss = loss + self.perceptual * self.lpips(made, data).mean()
        if self.gan and self.updates_before("discriminator", self.global_step):
            loss = loss + self.gan * hinge_generator_loss(self.discriminator(made))
        return loss

    def discriminator_loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            made = self.decoded(batch, "discriminator")
        return hinge_discriminator_loss(self.discriminator(made), self.discriminator(batch["data"]))

    def product(self) -> FewStepStudent:
        decoder = copy.deepcopy(self.student).requires_grad_(False) if self.ema is None else self.ema
        return self.few_step_student(self.sampler.denoiser, self.teacher.codec.with_decoder(decoder.eval()))
