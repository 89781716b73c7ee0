"""Train a discrete diffusion teacher: score entropy, condition dropout, EMA."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from distillkit.discrete.denoiser import Mean, Ratio
from distillkit.discrete.noise import fresh
from distillkit.discrete.process import Absorbing, DiscreteProcess
from distillkit.discrete.teacher import DiscreteTeacher
from distillkit.losses.discrete import score_entropy
from distillkit.methods.leaves_teacher import DataDistiller

T_MIN = 1e-3  # below it the weight of a sample, 1 / t, has no bound


class PretrainTokens(DataDistiller):
    """Fit a discrete denoiser to tokens, by an evidence bound in nats a token.

    The bound is that of MDLM and UDLM for `mean`, of SEDD for `ratio`.

    Args:
        network: the network to train.
        process: the noising process.
        event_shape: (d,), tokens of one sample.
        classes, context: as in `DataDistiller`.
        prediction: the network's outputs, the `mean` of clean tokens or the `ratio` of
            probabilities.
        sigma_data, times: null; tokens have no standard deviation and are trained on even times.
    """

    teacher_class = DiscreteTeacher

    def __init__(
        self,
        network: nn.Module,
        process: DiscreteProcess,
        event_shape: list[int],
        classes: dict[str, int] | None = None,
        context: list[str] | None = None,
        prediction: Literal["mean", "ratio"] = "mean",
        sigma_data: None = None,
        times: None = None,
        **kwargs,
    ):
        if prediction not in ("mean", "ratio"):
            raise ValueError(f"a network on tokens predicts their mean or ratio, not {prediction!r}")
        scaled = isinstance(process, Absorbing)
        denoiser = Ratio(network, process, scaled) if prediction == "ratio" else Mean(network, process)
        super().__init__(denoiser, event_shape, classes, context, **kwargs)

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The score entropy per token, `E w(t) sum_y ... / d`, see `score_entropy`."""
        x_0, cond = batch["data"], self.dropped(batch)
        # one uniform number for the whole batch, spread evenly over (0, 1]: less variance than a
        # number for each
        spread = torch.arange(len(x_0), device=self.device) / len(x_0)
        t = ((self.rand(1, "t") + spread) % 1).clamp_min(T_MIN)
        noise = fresh(self.generator("noise").initial_seed(), *x_0.shape, self.device)(0)
        return score_entropy(self.student, x_0, t, noise, cond).mean() / x_0.shape[1]
