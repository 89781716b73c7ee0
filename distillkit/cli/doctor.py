"""`doctor`: checks whether this machine can run distillkit, and says what to mend."""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import wait
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
    "scikit-image",
)
CORE_MODULES = {"hydra-core": "hydra", "scikit-learn": "sklearn", "scikit-image": "skimage"}
OPTIONAL = {  # package: (module, the extra that installs it)
    "torchvision": ("torchvision", "vision"),
    "torchaudio": ("torchaudio", "audio"),
    "open3d": ("open3d", "threed"),
    "trimesh": ("trimesh", "threed"),
    "av": ("av", "video"),
    "diffusers": ("diffusers", "hf"),
    "transformers": ("transformers", "hf"),
    "onnx": ("onnx", "onnx"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "tensorboard": ("tensorboard", "log"),
    "wandb": ("wandb", "log"),
    "submitit": ("submitit", "slurm"),
    "gemmi": ("gemmi", "protein"),
    "tmtools": ("tmtools", "protein"),
    "torch-fidelity": ("torch_fidelity", "vision"),
    "gsplat": ("gsplat", "gsplat"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
}
# Forks have what their parent has imported. Elsewhere processes begin anew: there is no fork, or
# Apple's libraries do not survive one.
START = "fork" if sys.platform == "linux" else "spawn"
AT_ONCE = min(os.cpu_count() or 1, 8)  # processes


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
    modules = [CORE_MODULES.get(package, package) for package in CORE]
    modules += [module for package, (module, _) in OPTIONAL.items() if _version(package) is not None]
    problems = import_problems(modules, options.timeout)
    mends = _check_core(problems)
    broken = bool(mends)
    if not broken:
        [(problem, text)] = apart([_torch_build], options.timeout)
        print(f"torch build    {text or problem}")
        used = os.environ.get("DISTILLKIT_THREADS", "1")
        print(f"threads        {os.cpu_count()} cores; {used} used if there is no GPU (DISTILLKIT_THREADS changes it)")
    mends += _check_optional(problems)
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


def _check_core(problems: Iterator[str]) -> list[str]:
    """Print a line for each package that every run needs; returns the mends of broken ones."""
    mends = []
    for package in CORE:
        problem = next(problems)
        print(f"{package:<14} {_version(package) or 'missing'}{f'  BROKEN: {problem}' if problem else ''}", flush=True)
        if problem:
            mends.append(f"reinstall {package}: pip install --force-reinstall --no-deps {package}")
    return mends


def _check_optional(problems: Iterator[str]) -> list[str]:
    """Print a line for each optional package; returns the mends of installed but broken ones."""
    mends = []
    for package, (_, extra) in OPTIONAL.items():
        if _version(package) is None:
            print(f"{package:<14} not installed (optional: {install(extra)})")
            continue
        problem = next(problems)
        said = f"  INSTALLED BUT NOT IMPORTABLE: {problem}" if problem else ""
        print(f"{package:<14} {_version(package)}{said}", flush=True)
        if problem and package in ("torchvision", "torchaudio"):
            mends.append(
                f"{package} was built for another torch than {_version('torch')}, and others that find it break too: "
                f"uninstall it (pip uninstall {package}) or install the build that matches"
            )
        elif problem:
            mends.append(f"uninstall {package} (pip uninstall {package}), or mend what it says")
    return mends


def import_problems(modules: Sequence[str], timeout: float) -> Iterator[str]:
    """Yield, in order, the error of importing each module in a process of its own; empty if none.

    The first one, if it is well, is imported here too: forks for the others need not do that again.

    Args:
        modules: their names; torch comes first, for most others import it.
        timeout: seconds that each may take.
    """
    works = [partial(import_module, module) for module in modules]
    [(problem, _)] = apart(works[:1], timeout)
    yield problem
    if not problem and START == "fork":
        works[0]()
    for problem, _ in apart(works[1:], timeout):
        yield problem


def apart(works: Sequence[Callable[[], object]], timeout: float) -> Iterator[tuple[str, str]]:
    """Do each work in a process of its own, some at once, and yield their outcomes in order.

    An outcome is the error in one line, empty if there is none, and the text that the work returns.

    Args:
        works: functions without arguments.
        timeout: seconds that each may take.
    """
    context = multiprocessing.get_context(START)
    waiting, running, outcomes = deque(range(len(works))), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number in range(len(works)):
                while number not in outcomes:
                    while waiting and len(running) < AT_ONCE:
                        one = waiting.popleft()
                        child = context.Process(target=_work, args=(works[one], os.path.join(folder, str(one))))
                        child.start()
                        running[one] = child, time.monotonic() + timeout
                    soonest = min(end for _, end in running.values())
                    wait([child.sentinel for child, _ in running.values()], max(0, soonest - time.monotonic()))
                    for one, (child, end) in [*running.items()]:
                        if not child.is_alive():
                            outcomes[one] = _outcome(child.exitcode, Path(folder, str(one)))
                        elif time.monotonic() >= end:
                            outcomes[one] = f"the import took more than {timeout:g} s", ""
                        else:
                            continue
                        running.pop(one)[0].kill()
                        child.join()
                yield outcomes[number]
        finally:
            for child, _ in running.values():
                child.kill()


def _work(work: Callable[[], object], said: str) -> None:
    """The life of a process: it leaves the work's text, or the error and all output, in a file."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 1
    try:
        text = work()
        os.truncate(said, 0)
        os.write(file, text.encode() if isinstance(text, str) else b"")
        code = 0
    except BaseException as error:
        os.write(file, "".join(["\n", *traceback.format_exception_only(error)]).encode())
    finally:
        os._exit(code)


def _outcome(code: int, file: Path) -> tuple[str, str]:
    """The outcome of a process that ended with an exit code, negative for a signal."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    if code == 0:
        return "", text
    last = text.strip().splitlines()[-1:]
    if code < 0:
        last = [f"the import was ended by signal {-code} ({signal.strsignal(-code)})", *last]
    return one_line(": ".join(last) or f"the import ended with code {code}", 200), ""


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
        return "none (DISTILLKIT_CACHE_LIMIT is 0, or this user has no home: then give a folder as DISTILLKIT_CACHE)"
    try:
        writable(found.folder)
    except Failure:
        return f"none: {found.folder} cannot be written; give another folder as DISTILLKIT_CACHE"
    sizes = [size for _, size, _ in found.entries()]
    return f"{found.folder}: {len(sizes):,} entries, {sum(sizes) / 2**30:.2f} of {found.limit / 2**30:g} GiB"


def _torch_build() -> str:
    """What torch was built for, the GPUs that it sees, and the precision of a run on them."""
    import torch

    from distillkit import precision

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "HIP" if torch.version.hip else "CPU"
    taken = f"; runs take {precision.default('gpu', precise=False)} by themselves" if gpus else ""
    return f"{build}; GPUs: {', '.join(gpus) or 'none'}{taken}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
