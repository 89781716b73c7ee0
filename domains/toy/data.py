"""Samples of an exact teacher as a data set."""

from __future__ import annotations

import torch

from distillkit import checks
from distillkit.data import DistillData, TensorData
from distillkit.teachers.base import BaseTeacher
from distillkit.teachers.exact import exact


class ToyData(DistillData):
    """Exact samples, in plain units.

    With classes a sample is the better the surer its class is, without the larger its first number.

    Batch: `data` [B, D] float32, and the teacher's classes if it has any.

    Args:
        teacher: an exact teacher, whose law the data follow, or one that was made from it.
        num_samples: of the training set; validation and test have 5000 each.
        batch_size: samples of one micro-batch.
        seed: of the samples.
    """

    domain = "toy"
    pictured = 2000
    provides = DistillData.provides | {"reward", "reward_gradient"}

    def __init__(self, teacher: BaseTeacher, num_samples: int = 20_000, batch_size: int = 1024, seed: int = 0):
        super().__init__(batch_size)
        checks.whole(1, num_samples=num_samples)
        checks.seed(seed=seed)
        self.teacher, self.num_samples, self.seed = exact(teacher), num_samples, seed
        self.event_shape, self.classes = self.teacher.event_shape, self.teacher.classes

    def load(self):
        generator = torch.Generator().manual_seed(self.seed)
        return tuple(TensorData(self.teacher.exact_samples(num, generator)) for num in (self.num_samples, 5000, 5000))

    def reward(self, samples, batch):
        """The exact log-probability [B] of the batch's class; without classes the first number."""
        if not self.classes:
            return samples.flatten(1)[:, 0]
        (name,) = self.classes
        return self.teacher.mixture.log_posterior(samples.cpu(), batch[name].cpu()).to(samples)

    def build_evaluator(self, held_out):
        from domains.toy.evaluation import ToyEvaluator

        return ToyEvaluator(self.teacher)

    @property
    def media(self):
        from domains.toy.media import ToyMedia

        return ToyMedia(self.teacher)
