"""Students of pipelines for the package diffusers: a whole pipeline, or adapters for the original.

Both are tried before they are kept: the pipeline and the student make a sample of the same noise.
"""

from __future__ import annotations

import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.errors import Failure, one_line
from distillkit.files import read_tensors, save_tensors, write_text
from distillkit.networks.adapters import Adapters, LowRank
from distillkit.pipelines.few_step import Steps, steps
from distillkit.pipelines.files import READ, import_diffusers, load, read_index
from distillkit.pipelines.network import Network
from distillkit.pipelines.teacher import ask
from distillkit.report.card import template
from distillkit.runs import PARTIAL
from distillkit.students.base import Student
from distillkit.students.few_step import FewStepStudent

FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights_2.safetensors")  # of one model, and of the second
PROMPT = "a cat on the moon"
SEEDS = 0, 1  # of the start, and of the noise between steps
ALLOWED = 1e-3  # largest difference of latents, in units of the largest one: rounding of float32 in another order


def to_pipeline(student: Student, folder: Path, name: str) -> float:
    """Write a pipeline that the package diffusers loads and that samples as the student does.

    Args:
        student: a few-step student of a pipeline; adapters are merged.
        folder: where nothing is yet.
        name: by which README.md calls it: the folder's, or a repository's.

    Returns:
        The largest difference of a sample from the student's, see `difference`.

    Raises:
        ValueError: there is no such pipeline, in one sentence with what works.
        Failure: it samples otherwise, and was not kept.
    """
    network, root, plain = fitting(student), root_of(student), student.merged()
    found, index, dtype = steps_of(plain, root), read_index(root), _dtype(network)
    models = dict(zip(parts(network), plain.network.models, strict=True))

    def write(place: Path) -> float:
        _copy(root, place, index.keys() - {*models, "scheduler"})
        for part, model in models.items():
            model.register_to_config(_name_or_path=name)  # else where it was read on this machine
            model.save_pretrained(place / part)
        found.scheduler.save_pretrained(place / "scheduler")
        own = index | {"scheduler": ["diffusers", type(found.scheduler).__name__]}
        write_text(place / "model_index.json", json.dumps(own, indent=2))
        error = difference(pipeline_in(place), plain, found)
        _card(place, name, plain, found, source=_source(root), dtype=dtype, error=error)
        return error

    return _kept(folder, write)


def to_lora(student: Student, folder: Path, name: str) -> float:
    """Write a student's adapters as `load_lora_weights` of its pipeline reads them.

    The arguments, the result and the errors are those of `to_pipeline`. The alpha of adapters is
    their rank, which is what is taken where a file names none.
    """
    network, root = fitting(student), root_of(student)
    if not isinstance(student.network, Adapters):
        raise ValueError("this student is a whole network, not adapters: use --format diffusers")
    changes = {layer: change for layer, change in student.network.layers.named_modules() if isinstance(change, LowRank)}
    for layer, change in changes.items():
        if getattr(change.down, "groups", 1) > 1 or set(getattr(change.down, "dilation", ())) - {1}:
            raise ValueError(
                f"{layer} is a grouped or dilated convolution, whose adapters no loader reads: use --format diffusers"
            )
    plain = student.merged()
    found, dtype = steps_of(plain, root), _dtype(network)
    files = dict(zip(parts(network), FILES, strict=False))

    def write(place: Path) -> float:
        own = {}
        for i, (part, file) in enumerate(files.items()):
            tensors, begin = {}, f"models.{i}."
            for layer in (layer for layer in changes if layer.startswith(begin)):
                key = f"{network.part}.{layer.removeprefix(begin)}"  # that of the first model for the second too
                tensors[f"{key}.lora_A.weight"] = changes[layer].down.weight
                tensors[f"{key}.lora_B.weight"] = changes[layer].up.weight
            save_tensors(place / file, tensors)
            own[part] = load(root, part, network.kinds, network.models[0].dtype)
            add(own[part], read_tensors(place / file), network.part)
        found.scheduler.save_pretrained(place / "scheduler")
        pipeline = pipeline_in(root)
        pipeline.register_modules(**{part: model.float() for part, model in own.items()}, scheduler=found.scheduler)
        error = difference(pipeline, plain, found)
        _card(place, name, plain, found, source=_source(root), dtype=dtype, error=error, files=list(files.values()))
        return error

    return _kept(folder, write)


def add(model: nn.Module, adapters: dict[str, Tensor], begin: str) -> None:
    """Add adapters to the weights of a model.

    Args:
        model: the pipeline's.
        adapters: by key, as `to_lora` writes them.
        begin: the beginning of the keys.
    """
    for key in (key for key in adapters if key.endswith(".lora_A.weight")):
        layer = model.get_submodule(key.removeprefix(f"{begin}.").removesuffix(".lora_A.weight"))
        up, down = adapters[key.replace("lora_A", "lora_B")], adapters[key]
        change = (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
        layer.weight.data = (layer.weight + change).to(layer.weight.dtype)


def fitting(student: Student) -> Network:
    """The pipeline's network in a student that a pipeline can stand for.

    Raises:
        ValueError: it cannot.
    """
    network = getattr(student.network, "tree", student.network)
    if not isinstance(student, FewStepStudent) or not isinstance(network, Network):
        raise ValueError("this student's network is not that of a diffusers pipeline: use --format safetensors")
    told = " and ".join(student.denoiser.told)
    reasons = {
        f"was told {told}, which the pipeline's model does not know,": told,
        f"is asked about {' and '.join(student.context)}": student.context,
        "does not start from pure noise": not student.start.pure,
        f"draws noise of standard deviation {student.noise_scale:g}": student.noise_scale != 1,
        "has a decoder of its own": student.codec.tuned is not None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"a student that {reason} does not sample as a diffusers pipeline: use its folder")
    return network


def root_of(student: Student) -> Path:
    """The directory of the pipeline that a student was made from.

    Raises:
        ValueError: the student works on data, so that its folder does not say; or its folder may
            not read the pipeline, which is not there.
    """
    student.codec.data_shape(student.event_shape)  # raises where the folder may not read the pipeline
    if not hasattr(student.codec, "root"):
        raise ValueError("this student has no autoencoder, so its folder names no pipeline: use --format safetensors")
    return student.codec.root


def _dtype(network: Network) -> str:
    """The name of the precision of its models."""
    return str(network.models[0].dtype).removeprefix("torch.")


def parts(network: Network) -> tuple[str, ...]:
    """The folders of the network's models in a pipeline."""
    return (network.part, f"{network.part}_2")[: len(network.models)]


def steps_of(student: FewStepStudent, root: Path) -> Steps:
    """The scheduler of a student without adapters, and how its pipeline is called.

    Raises:
        ValueError: there is none.
    """
    network, denoiser = student.network, student.denoiser
    kind = getattr(import_diffusers(), read_index(root)["_class_name"])
    takes = inspect.signature(kind.__call__).parameters
    if missing := [
        name for name in ("latents", *network.asked(student.codec.data_shape(student.event_shape))) if name not in takes
    ]:
        raise ValueError(
            f"the call of {kind.__name__} takes no {missing[0]}, so it cannot be compared with the student: use --format "
            f"safetensors"
        )

    def visited(scheduler: Any, num: int) -> Tensor:
        return type(network).grid(scheduler, denoiser.process, num, student.event_shape)

    return steps(denoiser.process, denoiser.prediction, student.times, student.renoise, visited, takes)


def pipeline_in(root: Path) -> Any:
    """The pipeline in `root`, in float32.

    Raises:
        Failure: it does not load.
    """
    cls = import_diffusers().DiffusionPipeline
    try:
        made = cls.from_pretrained(str(root), local_files_only=True, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise Failure(f"the exported pipeline does not load, so it was not kept: {one_line(error, 200)}") from None
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def difference(pipeline: Any, student: FewStepStudent, found: Steps) -> float:
    """The largest difference of a pipeline's latents from a student's of the same noise.

    All is float32, and the unit is the largest latent. The start is given to the pipeline. Noise
    between steps is drawn by its scheduler from PyTorch's global generator, whose numbers the
    student gets too.

    Args:
        pipeline: with `found.scheduler`.
        student: without adapters.
        found: how the pipeline is called.
    """
    student.denoiser.float()
    network, shape = student.network, student.event_shape
    start = torch.randn(1, *shape, generator=torch.Generator().manual_seed(SEEDS[0]))
    given = {"prompt": PROMPT} if network.given == "prompt" else {}
    call = {
        **network.asked(student.codec.data_shape(shape)),
        **found.call,
        "latents": network.packed(found.std * start),
    }
    found.prepare(pipeline)
    with torch.random.fork_rng(), _asked(student, given):
        torch.manual_seed(SEEDS[1])
        drawn = [network.unpacked(torch.randn(network.packed(start).shape), shape) for _ in range(student.draws - 1)]
        expected = student(start, student.default_condition(1), lambda i: drawn[i - 1])
        torch.manual_seed(SEEDS[1])
        got = network.unpacked(pipeline(**given, **call, output_type="latent", return_dict=False)[0], shape)
    return float((got - expected).abs().max() / expected.abs().max())


@contextmanager
def _asked(student: FewStepStudent, given: dict[str, str]) -> Iterator[None]:
    """A context in which the student's only prompt is the given one."""
    network = student.network
    texts, classes = network.texts, student.classes
    if given:
        ask(student, [given["prompt"]])
    try:
        yield
    finally:
        network.texts, student.classes = texts, classes


def _kept(folder: Path, write: Callable[[Path], float]) -> float:
    """Write a folder that is there as a whole, and only if its sample is the student's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder.parent) as made:
        place = Path(made) / folder.name
        place.mkdir()
        if not (error := write(place)) <= ALLOWED:
            raise Failure(
                f"the exported pipeline differs from the student by {error:.1e} of the largest latent (allowed {ALLOWED:.0e}), "
                f"so it was not kept"
            )
        place.rename(folder)
    return error


def _copy(root: Path, target: Path, parts: Collection[str]) -> None:
    """Copy parts of a pipeline: settings, vocabularies and weights, no code and no pickles.

    Raises:
        ValueError: a file is a link to elsewhere, other than the hub's cache makes them.
    """
    homes = (root.resolve(), root.resolve().parents[1] / "blobs")  # the hub's cache links to its blobs
    for file in (file for pattern in READ for file in root.glob(pattern)):
        if file.parent.name in parts and file.parent != root:
            if not any(file.resolve().is_relative_to(home) for home in homes):
                raise ValueError(f"{file} is a link that leads out of the pipeline: put the file itself there")
            place = target / file.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def _card(place: Path, name: str, student: FewStepStudent, found: Steps, **more: Any) -> None:
    """Write README.md, with the call that makes the student's samples.

    Args:
        place: the folder.
        name: by which the text calls it.
        student: without adapters.
        found: how the pipeline is called.
        more: further words of the template: `source`, `dtype`, `error` and, of adapters, `files`.
    """
    network, shape = student.network, student.event_shape
    noise = {"fresh": "new noise", "implied": "the noise that the sample holds", "first": "its first noise"}
    options = {**network.asked(student.codec.data_shape(shape)), **found.call}
    text = template("pipeline.md.j2").render(
        name=name,
        prompt=PROMPT if network.given == "prompt" else "",
        call={name: repr(value) for name, value in options.items()},
        told=found.sigmas or found.call.keys() & {"sigmas", "timesteps"},
        sigmas=found.sigmas,
        std=round(found.std, 6),
        latents=list(network.packed(torch.empty(1, *shape, device="meta")).shape),
        times=[f"{t:g}" for t in student.times],
        between=noise[student.renoise],
        kappa=f"{student.config.get('kappa', 1):g}",
        scheduler=type(found.scheduler).__name__,
        **{"files": (), **more, "error": f"{more['error']:.0e}"},
    )
    write_text(place / "README.md", text)


def _source(root: Path) -> str:
    """The name of a pipeline: that of a repository if it is in the hub's cache, else its folder."""
    cached = root.parent.parent.name
    return cached.removeprefix("models--").replace("--", "/") if cached.startswith("models--") else root.name
