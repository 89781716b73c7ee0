"""Validation: the domain's metrics of generated samples against held-out data."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from distillkit import processes
from distillkit.evaluation.metrics import TooFew
from distillkit.evaluation.samples import Diverged


class Validated(LightningModule):
    """A module whose samples are validated and tested.

    Each process makes the samples of its share of the batches, seeded by the batch's number, so
    that the metrics do not depend on the number of processes.
    """

    @abstractmethod
    def condition(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The conditions of a batch of the data."""

    @abstractmethod
    def sample(self, cond: dict[str, Tensor], num: int, seed: int) -> Tensor:
        """Samples of the product, in the shape of the data, [num, ...]; used by validation."""

    def _collect(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Takes a batch into the round of batches that the processes share, one each."""
        if batch_idx == 0:
            self._round, self._made, self._conds = [], {}, []
        cond, num = self.condition(batch), len(next(iter(batch.values())))
        if self._round and num != self._round[-1][2]:  # sharded networks need as many passes in all processes
            self._share_round()
        self._conds.append({name: value.cpu() for name, value in cond.items()})
        self._round.append((batch_idx, cond, num))
        if len(self._round) == self.trainer.world_size:
            self._share_round()

    def _share_round(self) -> None:
        """Makes the samples of this process's batch, or those of the last one once more."""
        batches, self._round, rank = self._round, [], self.trainer.global_rank
        number, cond, num = batches[min(rank, len(batches) - 1)]
        with self.trainer.precision_plugin.forward_context():
            samples = self.sample(cond, num, seed=number).cpu()
        if rank < len(batches):
            self._made[number] = samples

    def _report(self, stage: Literal["val", "test"]) -> None:
        if self._round:
            self._share_round()
        made = {number: samples for own in processes.gathered(self._made) for number, samples in own.items()}
        samples = torch.cat([made[number] for number in sorted(made)])
        cond = {name: torch.cat([each[name] for each in self._conds]) for name in self._conds[0]}
        data = self.trainer.datamodule
        try:
            metrics = data.evaluator(stage, self.device)(samples, cond)
        except TooFew as error:
            return rank_zero_warn(f"no metrics of {stage} data, for there are too few of them: {error}")
        except Diverged as error:
            if self.trainer.state.fn != "fit":
                raise
            rank_zero_warn(f"no metrics at step {self.global_step}: {error}")  # it recovers, or `check_steps` stops it
            metrics = dict.fromkeys(data.evaluator(stage, self.device).better, math.nan)
        self.log_dict({f"{stage}/{k}": float(v) for k, v in metrics.items()}, rank_zero_only=True)

    def validation_step(self, batch, batch_idx: int) -> None:
        self._collect(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def test_step(self, batch, batch_idx: int) -> None:
        self._collect(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._report("test")
