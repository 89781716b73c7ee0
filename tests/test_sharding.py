"""Networks spread over processes: checkpoints are those of one process, and products are whole."""

from __future__ import annotations

import pytest
import torch
from helpers import ForkedShard, Keep, trainer
from lightning.pytorch import Callback

from distillkit import sharding
from distillkit.callbacks.checkpoint import CheckpointFiles
from tests.battery.conftest import Case, tiny, weights

DMD = Case("dmd")
ALONE = {"accumulate_grad_batches": 2}


def spread(**settings):
    return {"devices": 2, "strategy": ForkedShard(), **settings}


class Save(Callback):
    """Writes a checkpoint after step 4, as the runs of the command line do."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 4 and not self.path.exists():
            trainer.strategy.checkpoint_io = CheckpointFiles()
            trainer.save_checkpoint(self.path)


def fitted(tmp_path, name, settings, steps=6, checkpoint=None, save=None):
    case = tiny(DMD)
    callbacks = [Keep(tmp_path / name), *([Save(save)] if save else [])]
    resume = {"ckpt_path": checkpoint, "weights_only": True} if checkpoint else {}
    trainer(steps, callbacks=callbacks, **settings).fit(case.model, case.data, **resume)
    return torch.load(tmp_path / name, weights_only=True)


@pytest.mark.parametrize(
    "first, then",
    [(spread, spread), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((spread, dict), (dict, spread)))],
)
def test_checkpoints_go_from_one_strategy_to_another(first, then, tmp_path):
    """The method takes no data from a batch: with other processes the next batches are others."""
    first, then = (ALONE if kind is dict else kind() for kind in (first, then))
    straight = fitted(tmp_path, "straight", first, save=tmp_path / "4.ckpt")
    resumed = fitted(tmp_path, "resumed", then, checkpoint=tmp_path / "4.ckpt")
    for name, value in straight.items():
        torch.testing.assert_close(
            resumed[name], value, rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_bare_copy_holds_nothing_and_is_filled_with_equal_weights():
    model = tiny(DMD).model
    empty = sharding.bare(model)
    assert all(parameter.is_meta for parameter in empty.parameters())
    whole = sharding.filled(empty, model)
    assert all(torch.equal(value, weights(model)[name]) for name, value in weights(whole).items())
    assert [p.requires_grad for p in whole.parameters()] == [p.requires_grad for p in model.parameters()]
