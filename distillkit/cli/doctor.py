"""`doctor`: checks whether this machine can run distillkit, and says what to mend."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from distillkit import cache
from distillkit.errors import Arguments, Failure, UsageError, install, number, one_line

CORE = (
    "torch",
    "lightning",
    "jsonargparse",
    "hydra-core",
    "omegaconf",
    "numpy",
    "einops",
    "safetensors",
    "scikit-learn",
)
CORE_MODULES = {"hydra-core": "hydra", "scikit-learn": "sklearn"}
OPTIONAL = {  # package: (module, the extra that installs it)
    "torchvision": ("torchvision", "vision"),
    "torchaudio": ("torchaudio", "audio"),
    "open3d": ("open3d", "threed"),
    "trimesh": ("trimesh", "threed"),
    "scikit-image": ("skimage", "threed"),
    "av": ("av", "video"),
    "diffusers": ("diffusers", "hf"),
    "transformers": ("transformers", "hf"),
    "onnx": ("onnx", "onnx"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "tensorboard": ("tensorboard", "log"),
    "wandb": ("wandb", "log"),
    "gemmi": ("gemmi", "protein"),
    "tmtools": ("tmtools", "protein"),
    "torch-fidelity": ("torch_fidelity", "vision"),
}


def doctor(args: Sequence[str]) -> int:
    """Check this machine and its packages, and print what to mend."""
    parser = Arguments("python -m distillkit doctor", description="Check this machine and its packages.")
    parser.add_argument(
        "--timeout",
        type=number(float, 1, 86_400),
        default=60,
        help="seconds that one package may take to import (default: 60)",
    )
    options = parser.parse_args(args)
    print(f"python         {sys.version.split()[0]} ({sys.executable})")
    mends = _check_core(options.timeout)
    broken = bool(mends)
    if not broken:
        _describe_torch()
    mends += _check_optional(options.timeout)
    try:
        place = writable(Path("runs"))
        print(f"runs folder    {place.resolve()} is writable, {shutil.disk_usage(place).free / 2**30:.1f} GiB free")
        if shutil.disk_usage(place).free < 2**30:
            mends.append("less than 1 GiB is free: make space, or give another folder with --out")
    except Failure as error:
        broken = True
        mends.append(str(error))
    try:
        print(f"samples kept   {kept()}")
    except UsageError as error:
        broken = True
        mends.append(str(error))
    for mend in dict.fromkeys(mends):
        print(f"mend: {mend}")
    print("the core is broken" if broken else "all is well" if not mends else "the core is well")
    return int(broken)


def _check_core(timeout: float) -> list[str]:
    """Print a line for each package that every run needs; returns the mends of broken ones."""
    mends = []
    for package in CORE:
        problem = import_problem(CORE_MODULES.get(package, package), timeout)
        print(f"{package:<14} {_version(package) or 'missing'}{f'  BROKEN: {problem}' if problem else ''}")
        if problem:
            mends.append(f"reinstall {package}: pip install --force-reinstall --no-deps {package}")
    return mends


def _check_optional(timeout: float) -> list[str]:
    """Print a line for each optional package; returns the mends of installed but broken ones."""
    mends = []
    for package, (module, extra) in OPTIONAL.items():
        if _version(package) is None:
            print(f"{package:<14} not installed (optional: {install(extra)})")
            continue
        problem = import_problem(module, timeout)
        print(f"{package:<14} {_version(package)}{f'  INSTALLED BUT NOT IMPORTABLE: {problem}' if problem else ''}")
        if problem and package in ("torchvision", "torchaudio"):
            mends.append(
                f"{package} was built for another torch than {_version('torch')}, and others that find it break too: "
                f"uninstall it (pip uninstall {package}) or install the build that matches"
            )
        elif problem:
            mends.append(f"uninstall {package} (pip uninstall {package}), or mend what it says")
    return mends


def import_problem(module: str, timeout: float) -> str:
    """The error of importing a module in a fresh process; empty if there is none."""
    try:
        command = [sys.executable, "-c", f"import {module}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"the import took more than {timeout:g} s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return one_line(lines[-1] if lines else f"the import ended with code {done.returncode}", 200)


def writable(runs: Path) -> Path:
    """The runs folder, or the nearest existing folder above it, if files can be made there."""
    place = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise Failure(f"cannot write to {place}: change to another folder, or give one with --out")
    return place


def kept() -> str:
    """The cache of teacher samples: folder, entries, size and limit."""
    found = cache.of_the_user()
    if found is None:
        return "none (DISTILLKIT_CACHE_LIMIT=0)"
    sizes = [size for _, size, _ in found.entries()]
    return f"{found.folder}: {len(sizes):,} entries, {sum(sizes) / 2**30:.2f} of {found.limit / 2**30:g} GiB"


def _describe_torch() -> None:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "HIP" if torch.version.hip else "CPU"
    print(f"torch build    {build}; GPUs: {', '.join(gpus) or 'none'}")
    used = os.environ.get("DISTILLKIT_THREADS", "1")
    print(f"threads        {os.cpu_count()} cores; {used} used if there is no GPU (DISTILLKIT_THREADS changes it)")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
