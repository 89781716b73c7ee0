"""The network under adapters is in memory once: for teacher, student, fake score and average."""

import pytest
import torch
from helpers import ForkedShard, Keep, forked_ddp, trainer
from lightning.pytorch import Callback

from distillkit.methods.dmd import DMD
from distillkit.students.makers import Lora
from tests.test_checkpointing import Images, fitted, method

ADAPTERS = {"student_maker": Lora(2), "fake_score_maker": Lora(2)}
MODULES = ("student", "fake_score", "ema")


def adapted(dtype="float32"):
    """DMD whose fake score is told the step, so that its adapters have a condition of their own."""
    return method(DMD, dtype=dtype, num_steps=2, **ADAPTERS)


class Once(Callback):
    """Asserts that there is one base, at the start and at the end.

    Args:
        dtype: of the base, and of what is trained on it.
    """

    def __init__(self, dtype=torch.float32, own=torch.float32):
        self.dtype, self.own = dtype, own

    def on_train_start(self, trainer, model):
        teacher = model.teacher.denoiser.network
        places = {parameter.untyped_storage().data_ptr() for parameter in teacher.parameters()}
        assert {parameter.dtype for parameter in teacher.parameters()} == {self.dtype}
        for name in MODULES:
            adapters = getattr(model, name).network
            own = {id(parameter) for parameter in adapters.parameters()}
            base = [parameter for parameter in adapters.tree.parameters() if id(parameter) not in own]
            assert {parameter.untyped_storage().data_ptr() for parameter in base} == places
            wanted = torch.float32 if name == "ema" else self.own
            assert {parameter.dtype for parameter in adapters.parameters()} == {wanted}

    on_train_end = on_train_start


@pytest.mark.parametrize(
    "dtype, precision, base, own",
    [
        ("float32", "32-true", torch.float32, torch.float32),
        ("bfloat16", "32-true", torch.bfloat16, torch.float32),
        ("bfloat16", "bf16-mixed", torch.bfloat16, torch.float32),
        ("float32", "bf16-true", torch.bfloat16, torch.bfloat16),
    ],
)
def test_it_is_there_once_in_a_run_and_after_it_goes_on(dtype, precision, base, own, tmp_path):
    once, last = Once(base, own), str(tmp_path / "last.ckpt")
    first = trainer(4, callbacks=[once], precision=precision)
    first.fit(adapted(dtype), Images(batch_size=8))
    first.save_checkpoint(last)
    trainer(6, callbacks=[once], precision=precision).fit(
        adapted(dtype), Images(batch_size=8), ckpt_path=last, weights_only=True
    )


@pytest.mark.parametrize("strategy", [forked_ddp, ForkedShard], ids=["ddp", "shard"])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_every_process_has_it_once_and_trains_as_one_process_does(strategy, dtype, tmp_path):
    once = Once(torch.float32 if dtype == "float32" else torch.bfloat16)
    alone = fitted(adapted(dtype), accumulate_grad_batches=2)
    trainer(4, devices=2, strategy=strategy(), callbacks=[once, Keep(tmp_path / "two")]).fit(
        adapted(dtype), Images(batch_size=8)
    )
    two = torch.load(tmp_path / "two", weights_only=True)
    for name, value in alone.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
