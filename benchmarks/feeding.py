"""Steps a second, and how long they wait for data that are decoded, with and without workers.

    python benchmarks/feeding.py [--workers 0 1 2] [--steps 12] [--rounds 3]

Three kinds of data are written into a temporary folder: videos (640 x 360, 16 frames of 64 pixels a
clip), and photographs as JPEGs (2400 x 1800) that are resized whole (image) or cut into squares and
degraded as Real-ESRGAN does (photo). Two kinds of steps take their batches: `network` trains one on
a thread of this CPU; `launches` does thousands of tiny operations, as a process does that feeds a
GPU. Rounds take turns with the numbers of workers, and the table has the medians. The first batch,
for which workers start, is a column of its own. Other load of the machine counts, and is printed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import av
import numpy as np
import torch
from PIL import Image
from torch import nn

from distillkit.data import DistillData, StepLoader
from domains.image.data import ImageFolder
from domains.super_resolution.data import PhotoFolder
from domains.video.folder import VideoFolder


def write_files(room: Path, videos: int = 6, photographs: int = 24) -> None:
    """Writes `room/videos` and `room/photographs`."""
    random = np.random.default_rng(0)
    for name in ("videos", "photographs"):
        (room / name).mkdir()
    for number in range(videos):
        large = Image.fromarray(random.integers(0, 256, (44, 72, 3), np.uint8)).resize((720, 440))
        with av.open(str(room / f"videos/{number}.mp4"), "w") as file:
            stream = file.add_stream("mpeg4", rate=16)
            stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
            for k in range(64):
                picture = av.VideoFrame.from_image(large.crop((k, k, k + 640, k + 360)))
                file.mux(stream.encode(picture))
            file.mux(stream.encode())
    for number in range(photographs):
        image = Image.fromarray(random.integers(0, 256, (300, 400, 3), np.uint8)).resize((2400, 1800))
        image.save(room / f"photographs/{number}.jpg", quality=92)


def kinds(room: Path) -> dict[str, DistillData]:
    """The data modules, by name."""
    return {
        "video": VideoFolder(f"{room}/videos", frames=16, fps=8, resolution=64, stride=0.25, batch_size=4),
        "image": ImageFolder(f"{room}/photographs", resolution=64, flip=True, batch_size=4),
        "photo": PhotoFolder(f"{room}/photographs", crop=96, degradation="realesrgan", batch_size=16),
    }


def network() -> Callable[[], None]:
    """A step of some convolutions, on one thread of the CPU."""
    layers = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(6)))
    x = torch.randn(4, 64, 32, 32)
    return lambda: layers(x).square().mean().backward()


def launches() -> Callable[[], None]:
    """A step of tens of thousands of tiny operations."""
    x = torch.zeros(4)

    def step() -> None:
        for _ in range(20_000):
            x.add_(1)

    return step


def measure(loader: StepLoader, step: Callable[[], None], steps: int) -> dict[str, float]:
    """Seconds until the first batch; and of the next steps seconds of each, and of waiting."""

    def batches():
        while True:
            yield from loader

    begun, stream = time.perf_counter(), batches()
    next(stream)
    first, waited, spent = time.perf_counter() - begun, 0.0, []
    for _ in range(steps):
        asked = time.perf_counter()
        next(stream)
        got = time.perf_counter()
        step()
        spent.append(time.perf_counter() - asked)
        waited += got - asked
    stream.close()
    return {"first": first, "steps/s": steps / sum(spent), "waiting": waited / sum(spent)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        print(f"{len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[0]:.1f} before")
        print("| data | step | workers | steps/s | waiting | first batch (s) | load |\n|---|---|---|---|---|---|---|")
        for name, data in kinds(Path(folder)).items():
            data.setup()
            for make in (network, launches):
                step, found = make(), {workers: [] for workers in options.workers}
                for _ in range(options.rounds):
                    for workers, rows in found.items():
                        loader = StepLoader(data.train, data.batch_size, workers=workers)
                        rows.append(measure(loader, step, options.steps) | {"load": os.getloadavg()[0]})
                for workers, rows in found.items():
                    first, speed, waiting, load = (median(row[key] for row in rows) for key in rows[0])
                    print(
                        f"| {name} | {make.__name__} | {workers} | {speed:.2f} | {waiting:.0%} | {first:.1f} | {load:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
