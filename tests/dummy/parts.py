"""The smallest domain and method there can be, to test the door without waiting for a real one."""

import os
import time

import torch
from torch import Tensor, nn

from distillkit.data import DistillData, TensorData
from distillkit.methods.base import Adam, Distiller


class Point(nn.Module):
    """A teacher that knows one number."""

    provides = frozenset({"denoiser"})

    def __init__(self, place: float = 2.0):
        super().__init__()
        self.place = place

    def fingerprint(self) -> str:
        return str(self.place)


class Numbers(DistillData):
    event_shape = (1,)
    classes: dict[str, int] = {}

    def __init__(self, size: int = 64, batch_size: int = 8):
        super().__init__(batch_size)
        self.size = size

    def load(self):
        data = TensorData({"data": torch.randn(self.size, 1, generator=torch.Generator().manual_seed(1))})
        return data, data, data

    def build_evaluator(self):
        return lambda samples, cond: {"mean": float(samples.mean())}


class Chase(Distiller):
    """Move one number to the teacher's; two roles, so that DDP sees idle parameters.

    Args:
        teacher: where to go.
        student: how.
        rate: must be positive.
        crash: what goes wrong in the second step.
    """

    requires = frozenset({"denoiser"})

    def __init__(self, teacher: Point, student: Adam = Adam(lr=0.1), rate: float = 1.0, crash: str = "", **kwargs):
        super().__init__(**kwargs)
        self.save_hyperparameters()  # under LightningCLI: the configuration; a resumed run must not obey it
        if rate <= 0:
            raise ValueError(f"rate must be positive, got {rate}")
        self.teacher, self.crash = teacher, crash
        self.add_role("student", student, student=nn.Linear(1, 1))
        self.add_role("shadow", student, shadow=nn.Linear(1, 1))
        self.keep_ema()

    def student_loss(self, batch: dict[str, Tensor]) -> Tensor:
        if self.crash == "value" and self.global_step == 2:
            raise ValueError("the second step\nbroke")
        if self.crash == "sleep" and self.global_step == 2:
            print("asleep", os.getpid(), flush=True)
            time.sleep(60)
        return (self.student(batch["data"]) - self.teacher.place).square().mean()

    def shadow_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.shadow(batch["data"]) - self.student(batch["data"]).detach()).square().mean()

    def condition(self, batch):
        return {}

    def sample(self, cond, num, seed):
        return self.student(torch.zeros(num, 1))

    def export(self, folder, domain):
        pass


class Picky(Chase):
    """Needs what no dummy teacher has."""

    requires = frozenset({"features", "data"})
