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

    def build_evaluator(self, held_out):
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
        if self.crash == "alone" and self.global_step == 2 and self.global_rank == 1:
            raise ValueError("only this process broke")
        if self.crash == "sleep" and self.global_step == 2:
            print("asleep", os.getpid(), flush=True)
            time.sleep(60)
        loss = (self.student(batch["data"]) - self.teacher.place).square().mean()
        return loss - float("inf") * self.student.weight.sum().abs() if self.crash == "infinity" else loss

    def shadow_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.shadow(batch["data"]) - self.student(batch["data"]).detach()).square().mean()

    def condition(self, batch):
        return {}

    def sample(self, cond, num, seed):
        return self.student(torch.zeros(num, 1))

    def export(self, folder, domain):
        pass


class Places(DistillData):
    """Points of the plane, each made for a place on a line: a context.

    Its evaluator compares in pairs, its media save.
    """

    domain, pictured = "places", 6
    event_shape, classes, context = (2,), {}, ("place",)

    def load(self):
        generator = torch.Generator().manual_seed(2)
        parts = [torch.randn(num, 3, generator=generator) for num in (32, 8, 8)]
        return tuple(TensorData({"data": part[:, :2], "place": part[:, 2]}) for part in parts)

    def build_evaluator(self, held_out):
        return PlacesEvaluator(self.test.tensors["place"])

    @property
    def media(self):
        return PlacesMedia


class PlacesEvaluator:
    headline = "spread"
    better = {"spread": "lower", "gap": "lower"}

    def __init__(self, places: Tensor):
        self.places = places

    def describe(self):
        return {"domain": "places"}

    def __call__(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        expected = self.places[torch.arange(len(samples)) % len(self.places)]
        assert torch.equal(cond["place"], expected)  # held-out places, in order
        return {"spread": float(samples.std())}

    def paired(self, samples: Tensor, reference: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        assert samples.shape == reference.shape and len(cond["place"]) == len(samples)
        return {"gap": float((samples - reference).abs().mean())}

    def floor(self, num_samples: int) -> dict[str, float]:
        return {"spread": 1.0}


class PlacesMedia:
    @staticmethod
    def picture(samples: Tensor, cond: dict[str, Tensor]):
        from PIL import Image

        assert len(cond["place"]) == len(samples)
        return Image.new("RGB", (len(samples), 1))

    @staticmethod
    def compare(rows: dict[str, Tensor], cond: dict[str, Tensor]):
        return PlacesMedia.picture(next(iter(rows.values())), cond)

    @staticmethod
    def save(samples: Tensor, cond: dict[str, Tensor], folder):
        assert len(cond["place"]) == len(samples)
        paths = [folder / f"place_{i}.txt" for i in range(len(samples))]
        for path, place in zip(paths, cond["place"].tolist(), strict=True):
            path.write_text(f"{place}")
        return paths


class Picky(Chase):
    """Needs what no dummy teacher has."""

    requires = frozenset({"features", "data"})
