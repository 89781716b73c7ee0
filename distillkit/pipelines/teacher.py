"""Pipelines of the package diffusers as teachers."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import torch
from torch import Tensor, nn

from distillkit import checks, devices
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.process import expand
from distillkit.files import hash_weights
from distillkit.networks.dtypes import DTYPES, Dtype
from distillkit.pipelines import schedulers
from distillkit.pipelines.files import import_diffusers, local, print_of, read_index
from distillkit.pipelines.network import Network, PipelineBase, released
from distillkit.pipelines.prompts import read_prompts
from distillkit.pipelines.texts import Texts, in_chunks, kept
from distillkit.spec import to_spec
from distillkit.teachers.base import Teacher


class PipelineTeacher(Teacher):
    """A pipeline of the package diffusers, whose family its model_index.json tells.

    Of a family that reads texts the class `prompt` is the number of a prompt, and the null class is
    the negative prompt, so kappa is the pipeline's `guidance_scale`. The text encoders are run
    once, at the start, and dropped; the embeddings are kept in memory and, where a cache is
    switched on, on disk.

    Args:
        path: directory of the pipeline; with `download` also the name of a repository on the hub.
        prompts: file or folder with the prompts, see `read_prompts`; the one that the data read.
        size: of a sample, such as `height` and `width`, or `seconds`; None is the pipeline's own.
        negative_prompt: the prompt that guidance leads away from; None is the pipeline's own.
        steps: number of steps with which the teacher counts as at its best; None is the family's.
        dtype: of the pipeline's weights; what is trained is float32.
        download: fetch the pipeline from the hub.
        asked: further arguments of a family, see `Network.read_settings`.

    Attributes:
        domain: the domain of its samples.
        families: networks by the class of the pipeline.
        limit: see `Network.limit`; methods that train do not cut.
        base_kind: the record of a frozen network, see there.
    """

    provides = frozenset({"denoiser"})
    apart = Teacher.apart | {"codec", "root", "scheduler", "_base"}
    renamed = {
        "lora": "adapters are student=lora student.rank=..., of the fake score fake_score=lora",
        "checkpointing": "it is model.checkpointing=true, for every network",
    }
    retired = ("lora", "checkpointing")  # in older folders; students are what they are now without them
    domain: str
    families: Mapping[str, type[Network]]
    base_kind: type[PipelineBase]

    def __init__(
        self,
        path: str,
        prompts: str | None = None,
        size: Mapping[str, int | float | None] | None = None,
        negative_prompt: str | None = None,
        steps: int | None = None,
        dtype: Dtype = "float32",
        download: bool = False,
        asked: Mapping[str, Any] | None = None,
    ):
        size = dict(size or {})
        counts = {name: value for name, value in {**size, "steps": steps}.items() if value is not None}
        counts.pop("seconds", None)  # need not be whole; the family checks them
        checks.whole(1, **counts)
        root = local(path, download)
        family = self.family(root)
        if family.given == "prompt" and prompts is None:
            raise ValueError("this teacher is asked for prompts: say data=prompts data.path=FILE")
        wanted = read_prompts(prompts) if family.given == "prompt" else []
        scheduler = family.scheduler(root)
        shape = family.latent_shape(root, size)
        process, prediction = family.process(scheduler, shape)
        settings = family.read_settings(root, shape, dict(asked or {}))
        tables = embed(root, family, wanted, negative_prompt, settings, dtype) if wanted else {}
        shapes = {name: [len(table) - 1, *table.shape[1:]] for name, table in tables.items()}
        network = released(family, root, shapes, DTYPES[dtype], settings)
        network.texts = Texts.of(tables)
        classes = {"prompt": len(wanted)} if wanted else family.classes(network)
        codec = family.make_codec(root, size)
        super().__init__(Denoiser(network, process, prediction), shape, classes, family.context, codec)
        self.best = {"solver": schedulers.solver(scheduler), "steps": steps or family.best_steps(scheduler)}
        self._id, self.root, self.scheduler = Path(path).name, root, scheduler
        self.limit = family.limit(scheduler)
        more = (settings,) if settings else ()
        self._base = self.base_kind(str(root), family.__name__, shapes, dtype, *more)
        self._base.network = network  # it is in memory already
        # what the tables follow from; their last bits differ between machines
        self.wording = [wanted, negative_prompt, dtype, print_of(root, family.text_parts) if wanted else ""]

    @classmethod
    def family(cls, root: Path) -> type[Network]:
        """The family of the pipeline in `root`.

        Raises:
            ValueError: there is none, in this domain or at all.
        """
        kind = read_index(root).get("_class_name")
        if kind in cls.families:
            return cls.families[kind].variant(root)
        known = {name: found.domain for found in teachers() for name in found.families}
        if kind in known:
            raise ValueError(
                f"{root} holds a {kind}, which makes samples of the domain {known[kind]}: say domain={known[kind]}"
            )
        raise ValueError(
            f"{root} holds a {kind}, which is not read here; in the domain {cls.domain} there are {', '.join(cls.families)}"
        )

    @classmethod
    def offers(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """`provides`, and `classes` and `labels` as the pipeline in `path` has them.

        A pipeline that cannot be read has all of them: what is wrong is said when it is.
        """
        with suppress(ValueError, KeyError, OSError, AttributeError):
            given = cls.families[read_index(Path(str(arguments["path"])).expanduser())["_class_name"]].given
            return cls.provides | {"prompt": {"classes"}, "label": {"classes", "labels"}}.get(given, set())
        return cls.provides | {"classes", "labels"}

    @property
    def id(self) -> str:
        return self._id

    def fingerprint(self) -> str:
        """As any teacher's, but of the texts and their encoders instead of the embeddings."""
        said = json.dumps([to_spec(self.denoiser), self.wording, self.begins()], sort_keys=True)
        digest = hashlib.sha256(said.encode())
        hash_weights(digest, self.denoiser.network.models)
        return digest.hexdigest()

    def condition(self, batch):
        """As any teacher's, with what the codec encodes: once for a batch, where the teacher is."""
        cond = super().condition(batch)
        seen = self.codec.conditions({name: value.to(self.device) for name, value in cond.items()}, self.event_shape)
        return {name: seen[name].to(value.device) for name, value in cond.items()}

    def grid(self, steps: int) -> Tensor:
        """The pipeline's own times."""
        return type(self.denoiser.network).grid(self.scheduler, self.process, steps, self.event_shape)

    def stepper(self, cond: Cond, kappa: float | Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """As any teacher's, with the pipeline's guidance and with samples cut to `limit`."""
        denoise, limit = self._guided(cond, kappa), self.limit
        return denoise if limit is None else lambda x, t: denoise(x, t).clamp(-limit, limit)

    def _guided(self, cond: Cond, kappa: float | Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The denoiser with the pipeline's own guidance, see `Network.guide`."""
        guide = self.denoiser.network.guide
        if guide is None or not isinstance(kappa, Tensor) and kappa <= 1:
            return super().stepper(cond, kappa)
        null = self.null_condition(cond)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            x_0, without = self.denoiser(x, t, cond), self.denoiser(x, t, null)
            scale = expand(torch.as_tensor(self.guidance(t, kappa), dtype=x.dtype, device=x.device), x)
            guided = without + scale * (x_0 - without)
            return torch.where(scale > 1, guide(x, x_0, guided), guided)

        return denoise

    def base(self) -> PipelineBase:
        """The pipeline's own weights, which adapters change."""
        return self._base

    def new_denoiser(self, network: nn.Module | None = None) -> Denoiser:
        """As any teacher's; a full copy is float32."""
        made = super().new_denoiser(network)
        if network is None:
            made.network.models.float()
        return made


def teachers() -> list[type[PipelineTeacher]]:
    """The pipelines' teacher of every domain that has one."""
    places = find_spec("domains").submodule_search_locations
    for domain in iter_modules(places):
        if find_spec(f"domains.{domain.name}.pipelines"):
            import_module(f"domains.{domain.name}.pipelines")
    return [kind for kind in PipelineTeacher.__subclasses__() if kind.__module__.startswith("domains.")]


@torch.no_grad()
def embed(
    root: Path,
    family: type[Network],
    prompts: list[str],
    negative_prompt: str | None,
    settings: Mapping[str, Any],
    dtype: str,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """The tables of embeddings of prompts and, in the last row, of the negative one; on the CPU.

    The encoders are dropped again. Within
    `distillkit.cache.using` the tables are kept on disk, and no encoder is loaded for those found.

    Args:
        root: the pipeline's directory.
        family: its family.
        prompts: different texts.
        negative_prompt: see `PipelineTeacher`.
        settings: see `Network.read_settings`.
        dtype: of the encoders and the tables.
        device: where the encoders run; None is this process's GPU if there is one.
    """

    def make() -> dict[str, Tensor]:
        pipeline = encoders(root, family, DTYPES[dtype]).to(device or devices.own())
        made = in_chunks(lambda some: family.encode(pipeline, some, settings), family.wordings(prompts))
        null = {name: row.cpu() for name, row in family.encode_negative(pipeline, negative_prompt, settings).items()}
        return {name: torch.cat([made[name], null[name].to(made[name].dtype)]) for name in made}

    about = {"family": family.__name__, "pipeline": print_of(root, family.text_parts), "dtype": dtype}
    about |= {"prompts": prompts, "negative": negative_prompt, "settings": dict(settings), "index": read_index(root)}
    about |= {"code": [inspect.getsource(kind) for kind in family.__mro__ if issubclass(kind, Network)]}
    return family.trim(kept(about, make))


def encoders(root: Path, family: type[Network], dtype: torch.dtype) -> Any:
    """The pipeline with the parts that read texts alone."""
    index = read_index(root)
    absent = {
        part: None
        for part, value in index.items()
        if isinstance(value, list) and (value[0] is None or not part.startswith((*family.text_parts, "scheduler")))
    }
    parts = absent | family.stand_ins(root)
    cls = getattr(import_diffusers(), index["_class_name"])
    try:
        pipeline = cls.from_pretrained(str(root), local_files_only=True, use_safetensors=True, dtype=dtype, **parts)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"the text encoder in {root} does not load: {str(error).splitlines()[0]}") from None
    return pipeline


def ask(student: Any, prompts: list[str], path: str | None = None, negative_prompt: str | None = None) -> None:
    """Gives a student these prompts as classes; the text encoders of its pipeline read them.

    A network that reads texts itself is asked itself, see `distillkit.networks.base.Reader`.

    Args:
        student: a student of a pipeline's teacher, or one whose network reads texts.
        prompts: some texts.
        path: the pipeline's directory; None is where the student says that it is.
        negative_prompt: the prompt that guidance leads away from, for a student that is told kappa.

    Raises:
        ValueError: the student reads no texts, there are none, or the pipeline is not there.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts are a list of texts, such as ['a cat on the moon'], got {prompts!r:.60}")
    network = getattr(student.network, "tree", student.network)  # the one that adapters change
    if hasattr(network, "ask"):
        network.ask(prompts)
        _given(student, len(prompts))
        return
    if not isinstance(network, Network) or network.given != "prompt":
        raise ValueError("this student was not made from a pipeline that reads texts, so there is no prompt to give")
    if path is not None:
        root = local(path)
    else:
        student.codec.data_shape(student.event_shape)  # raises where the folder may not read the pipeline
        root = student.codec.root
    family, dtype = type(network), "bfloat16" if network.models[0].dtype == torch.bfloat16 else "float32"
    tables = embed(root, family, prompts, negative_prompt, network.settings, dtype, student.device)
    texts = Texts.of({name: table.to(student.device) for name, table in tables.items()})
    for each in {student.network, network}:  # adapters keep a reference of their own
        each.texts = texts
    _given(student, len(prompts))


def _given(student: Any, num: int) -> None:
    """Make `num` prompts, in turn, what a student is asked for."""
    student.classes = {"prompt": num}
    if student.examples:  # what else they hold, such as first frames, stays
        student.examples["prompt"] = torch.arange(len(student.examples["prompt"])) % num
