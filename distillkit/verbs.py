"""Verbs that need no Trainer. Each takes its command line (without the verb) and returns an exit code (None is 0)."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distillkit import config
from distillkit.errors import Failure, UsageError, one_line

# ---- list


def list(args: Sequence[str]) -> None:
    """Domains, methods, and which go together."""
    parser = argparse.ArgumentParser(
        "python -m distillkit list", description="Show domains, methods, and which go together."
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(args)
    known = config.groups()
    domains = {name: config.describe("domain", name) for name in known.get("domain", ())}
    methods = {name: config.describe("method", name) for name in known.get("method", ())}
    matrix = {domain: {method: compatibility(domain, method) for method in methods} for domain in domains}
    if options.json:
        print(json.dumps({"domains": domains, "methods": methods, "matrix": matrix}, indent=1))
        return

    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for title, rows in (("domain", domains), ("method", methods)):
        table = Table(title, "what it is", box=None, title_justify="left", padding=(0, 2, 0, 0))
        for name, text in rows.items():
            table.add_row(name, text or "-")
        console.print(table)
        console.print()
    table = Table("", *domains, box=None, padding=(0, 2, 0, 0))
    reasons: dict[str, int] = {}
    for method in methods:
        cells = []
        for domain in domains:
            reason = matrix[domain][method]
            cells.append("yes" if reason is None else f"no [{reasons.setdefault(reason, len(reasons) + 1)}]")
        table.add_row(method, *(cell.replace("[", r"\[") for cell in cells))
    console.print(table)
    for reason, number in reasons.items():
        console.print(f"[{number}] {reason}", markup=False)
    console.print("\nrun one: python -m distillkit fit domain=DOMAIN method=METHOD", markup=False)


@cache
def compatibility(domain: str, method: str) -> str | None:
    """Why a method cannot be used in a domain with its default teacher and data; None if it can.

    A method class says what it `requires`, classes of teachers and data say what they `provide` (sets of names).
    """
    try:
        cfg, _ = config.compose([f"domain={domain}", f"method={method}"])
        handed = config.hand_over(cfg)
    except UsageError as error:
        return f"{method} does not compose with {domain}: {one_line(error)}"
    paths = [*class_paths({"model": handed.get("model"), "data": handed.get("data")})]
    try:
        classes = [getattr(import_module(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in paths]
    except Exception as error:
        return f"{method} in {domain} cannot be imported: {type(error).__name__}: {one_line(error)}"
    needed = {name for cls in classes for name in getattr(cls, "requires", ())}
    missing = needed - {name for cls in classes for name in getattr(cls, "provides", ())}
    if not missing:
        return None
    givers = [cls.__name__ for cls in classes if hasattr(cls, "provides")]
    return (
        f"{method} needs {', '.join(sorted(missing))}, which {domain} ({', '.join(givers) or 'no part'}) does not give"
    )


def class_paths(node: Any) -> Iterator[str]:
    """Every class path in a configuration, outermost first."""
    if isinstance(node, dict):
        if isinstance(node.get("class_path"), str):
            yield node["class_path"]
        for value in node.values():
            yield from class_paths(value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            yield from class_paths(value)


# ---- doctor

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
    "diffusers": ("diffusers", "full"),
    "transformers": ("transformers", "full"),
    "onnx": ("onnx", "onnx"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "tensorboard": ("tensorboard", "log"),
    "torch-fidelity": ("torch_fidelity", "fid"),
}


def doctor(args: Sequence[str]) -> int:
    """Whether this machine can run distillkit, and what to mend."""
    parser = argparse.ArgumentParser("python -m distillkit doctor", description="Check this machine and its packages.")
    parser.add_argument(
        "--timeout", type=float, default=60, help="seconds that one package may take to import (default: 60)"
    )
    options = parser.parse_args(args)
    mends: dict[str, None] = {}  # in order, each once
    broken = False

    print(f"python         {sys.version.split()[0]} ({sys.executable})")
    for package in CORE:
        problem = import_problem(CORE_MODULES.get(package, package), options.timeout)
        print(f"{package:<14} {_version(package) or 'missing'}{f'  BROKEN: {problem}' if problem else ''}")
        if problem:
            broken = True
            mends[f"reinstall {package}: pip install --force-reinstall --no-deps {package}"] = None
    if not broken:
        _describe_torch()
    for package, (module, extra) in OPTIONAL.items():
        if _version(package) is None:
            print(f"{package:<14} not installed (optional: pip install 'distillkit[{extra}]')")
            continue
        problem = import_problem(module, options.timeout)
        print(f"{package:<14} {_version(package)}{f'  INSTALLED BUT NOT IMPORTABLE: {problem}' if problem else ''}")
        if problem and package in ("torchvision", "torchaudio"):
            mends[
                f"{package} was built for another torch than {_version('torch')}, and others that find it break too: "
                f" uninstall it (pip uninstall {package}) or install the build that matches"
            ] = None
        elif problem:
            mends[f"uninstall {package} (pip uninstall {package}), or mend what it says"] = None

    try:
        place = writable(Path("runs"))
        print(f"runs folder    {place.resolve()} is writable, {shutil.disk_usage(place).free / 2**30:.1f} GiB free")
        if shutil.disk_usage(place).free < 2**30:
            mends["less than 1 GiB is free: make space, or give another folder with --out"] = None
    except Failure as error:
        broken = True
        mends[str(error)] = None
    for mend in mends:
        print(f"mend: {mend}")
    print("the core is broken" if broken else "all is well" if not mends else "the core is well")
    return int(broken)


def import_problem(module: str, timeout: float) -> str:
    """What goes wrong when a fresh process imports a module; nothing if nothing does."""
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
    """The runs folder, or the nearest folder above it that exists, if files can be made there."""
    place = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise Failure(f"cannot write to {place}: change to another folder, or give one with --out")
    return place


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
