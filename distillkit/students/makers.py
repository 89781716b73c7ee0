"""Makers of a role's trainable denoiser from the teacher: `make(teacher) -> Denoiser`."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distillkit import checks
from distillkit.codec import Codec
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import Process
from distillkit.diffusion.start import Start
from distillkit.files import read_yaml
from distillkit.networks.adapters import Adapters
from distillkit.networks.encoded import Encoded
from distillkit.networks.routed import Routed as RoutedNetwork
from distillkit.spec import Recorded
from distillkit.students.base import CONFIG, load_student
from distillkit.students.few_step import FewStepStudent
from distillkit.students.leap import LeapStudent
from distillkit.teachers.base import Teacher


class Maker(Recorded, ABC):
    """Makes the trainable denoiser of a role.

    Attributes:
        sampling: settings of the sampling that come with the denoiser: `times`, `renoise`, of which
            a method's own settings win, `start`, which wins over the teacher's, and `policy`, a
            pair of the policy that chooses where a sample starts and the levels among which it
            does.
    """

    sampling: dict[str, Any] = {}

    @abstractmethod
    def make(self, teacher: Teacher) -> Denoiser:
        """Returns a denoiser on the teacher's process, whose trained parameters require gradients.

        Raises:
            ValueError: the teacher does not fit the denoiser.
        """


class Copy(Maker):
    """A copy of the teacher's network, weights included."""

    def make(self, teacher):
        return teacher.new_denoiser()


class Fresh(Maker):
    """Another network, untrained, with the teacher's prediction type.

    Args:
        network: the network; each role gets a copy.
    """

    def __init__(self, network: nn.Module):
        self.network = network

    def make(self, teacher):
        return teacher.new_denoiser(self.network)


class Scene(Maker):
    """A network that makes samples of the conditions, such as renders of a 3D scene by a camera.

    It is trained through its samples alone: it takes no noise out of its input, which may at most
    choose among several scenes. Where the teacher works on latents, samples are encoded.

    Args:
        network: the network; its output is the sample as data, see `networks.base.Blind`. Its
            attribute `event_shape`, if it has one, says of what shape.
    """

    requires = frozenset({"judge"})
    refused = {
        "judge": "a scene makes its samples without noise, and {method} learns a map from noise to samples: take a method "
        "that judges samples alone (sds, vsd, asd, dmd, sid), or student=copy",
        "scene": "this domain has no scenes: say student=copy, or another domain",
    }

    def __init__(self, network: nn.Module | None = None):
        if network is None:
            raise ValueError("this domain has no scenes: say student=copy")
        self.network, self.provides = network, frozenset({"scene"})

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """Returns `judge`, and `scene` if there is no network."""
        return cls.requires | ({"scene"} - cls.offers(arguments))

    @classmethod
    def offers(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """Returns `scene`, if there is a network."""
        return frozenset({"scene"} if arguments.get("network") else set())

    def make(self, teacher):
        network = copy.deepcopy(self.network)
        if type(teacher.codec) is not Codec:
            network = Encoded(network, teacher.codec, teacher.codec.data_shape(teacher.event_shape)[-2:])
        elif (made := tuple(getattr(network, "event_shape", teacher.event_shape))) != tuple(teacher.event_shape):
            raise ValueError(
                f"the scene makes samples of shape {made}, {teacher.id} judges {tuple(teacher.event_shape)}: leave the "
                f"sizes in vars.scene as the data have them"
            )
        made = Denoiser(network, teacher.process, "x0")
        return made.requires_grad_(True).train()


class Leap(Maker):
    """Sampling starts below the largest level, from a known approximation of the sample.

    A coarse render leaves only its errors to mend (VideoScene, arXiv 2504.01956).

    Args:
        base: the condition that holds the approximation, shaped like a sample.
        level: the time at which sampling starts, in the process's units; None means its largest.
        part: the maker of the denoiser; None copies the teacher's.
    """

    requires = frozenset({"start"})
    refused = {
        "start": "this student starts from an approximation, and {method} makes pairs of noise and the teacher's samples: say "
        "student=copy, or take another method"
    }

    def __init__(self, base: str | None = None, level: float | None = None, part: Maker | None = None):
        if base is None:
            raise ValueError("these data have no approximation of their samples to start from: say student=copy")
        self.part = part or Copy()
        self.sampling = {**self.part.sampling, "start": Start(base, level)}

    def make(self, teacher):
        return self.part.make(teacher)


class Lora(Maker):
    """Low-rank adapters (arXiv 2106.09685) on the teacher's frozen network, in memory once.

    Args:
        rank: rank of the adapters.
        targets: endings of the names of the layers that get one; None means every linear layer and
            convolution.
    """

    def __init__(self, rank: int = 16, targets: list[str] | None = None):
        checks.whole(1, rank=rank)
        self.rank, self.targets = rank, targets

    def make(self, teacher):
        return teacher.new_denoiser(Adapters(teacher.base(), self.rank, self.targets))


class Routed(Maker):
    """Several networks as one, each for some classes or for some noise levels.

    Classes are those of multi-student distillation, noise levels those of phases.

    Args:
        parts: number of parts.
        by: `time`, or the name of a categorical condition; None means the teacher's first.
        owner: by class, the index of the part of each class; None gives each part equally many
            classes in a row.
        edges: by time, the `parts - 1` decreasing times between the parts, in the process's units.
        only: the index of the trained part, the others are frozen; None trains all.
        part: the maker of each part; None copies the teacher's network.
    """

    def __init__(
        self,
        parts: int = 2,
        by: str | None = None,
        owner: list[int] | None = None,
        edges: list[float] | None = None,
        only: int | None = None,
        part: Maker | None = None,
    ):
        checks.whole(1, 1000, parts=parts)
        self.parts, self.by, self.owner, self.edges, self.only = parts, by, owner, edges, only
        if by == "time" and owner is not None:
            raise ValueError("owner says whose part each class is, and routing by time asks no class: leave it out")
        if by != "time" and edges is not None:
            raise ValueError(
                f"edges lie between times, and routing by {by or 'class'} asks no time: say student.by=time"
            )
        self.part = part or Copy()
        self.sampling = self.part.sampling

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """Returns `labels` if it routes by class: the teacher must have classes."""
        return frozenset() if arguments.get("by") == "time" else frozenset({"labels"})

    def make(self, teacher):
        if self.by == "time":
            routing = {"by": "time", "edges": self._edges(teacher.process), "owner": self.owner}
        else:
            by, owner = self._owner(teacher)
            routing = {"by": by, "edges": self.edges, "owner": owner}
        made = [self.part.make(teacher) for _ in range(self.parts)]
        first = made[0]  # its prediction type and told conditions hold for all parts
        told, first.told = first.told, {}
        denoiser = first.with_network(RoutedNetwork([each.network for each in made], **routing, only=self.only))
        denoiser.told = told  # the parts have these conditions already
        return denoiser.requires_grad_(True).train()

    def _edges(self, process: Process) -> list[float]:
        """The network times between the parts."""
        edges = self.edges or []
        for edge in edges:
            checks.within(f"({process.t_min}, {process.t_max})", edges=edge)
        if len(edges) != self.parts - 1 or edges != sorted(set(edges), reverse=True):
            raise ValueError(
                f"between {self.parts} parts there are {self.parts - 1} falling times, got edges={edges}: say them"
            )
        return process.network_time(torch.tensor(edges, dtype=torch.float64)).tolist()

    def _owner(self, teacher: Teacher) -> tuple[str, list[int]]:
        """The condition, and the part of each of its classes."""
        by = self.by or next(iter(teacher.classes), None)
        if by not in teacher.classes:
            raise ValueError(
                f"a student routed by {by or 'class'} needs a teacher with such classes, {teacher.id} has "
                f"{', '.join(teacher.classes) or 'none'}: say student=copy, or student.by=time"
            )
        num = teacher.classes[by]
        owner = self.owner or [k * self.parts // num for k in range(num)]
        if len(owner) != num:
            raise ValueError(f"owner must name a part for each of the {num} classes, got {len(owner)}")
        if idle := sorted(set(range(self.parts)) - set(owner)):
            raise ValueError(
                f"{num} classes among {self.parts} parts leave part {idle[0]} without any: lower student.parts, or give it some "
                f"with student.owner=[...]"
            )
        return by, owner


class FromFolder(Maker):
    """Starts from a finished student; its times and renoising are the defaults of the run.

    Args:
        path: its folder, or the run folder around it.
        trust: additional permissions of that folder, see `load_student`.
    """

    refused = {
        "judge": "the student to go on from makes its samples without noise, and {method} learns a map from noise to samples: "
        "take a method that judges samples alone (sds, vsd, asd, dmd, sid)"
    }

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """Returns `judge` if the student is a scene."""
        return frozenset({"judge"} if cls.offers(arguments) else set())

    @classmethod
    def offers(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """Returns `scene` if the student is one, as student.yaml, the only file read, says.

        The constructor raises the errors of a folder.
        """
        folder = Path(str(arguments.get("path")))
        file = next((file for file in (folder / "student" / CONFIG, folder / CONFIG) if file.is_file()), None)
        with suppress(OSError, ValueError):
            return frozenset({"scene"} if file and read_yaml(file).get("scene") is True else set())
        return frozenset()

    def __init__(self, path: str, trust: Sequence[str] = ()):
        self.student = load_student(path, tuple(trust))
        if not isinstance(self.student, FewStepStudent):
            raise ValueError(
                f"{path} holds a {type(self.student).__name__}, which has no network of its own to go on from"
            )
        own = self.student
        if own.config.get("scene") is True:
            self.provides = frozenset({"scene"})
        self.sampling = {"times": own.times, "renoise": own.renoise, "start": own.start}
        if isinstance(own, LeapStudent):
            self.sampling["policy"] = own.policy, own.actions

    def make(self, teacher):
        own = self.student
        for what, ours, theirs in (
            ("samples of shape", own.event_shape, teacher.event_shape),
            ("the classes", own.classes, teacher.classes),
            ("the context", own.context, teacher.context),
            ("the process", own.denoiser.process, teacher.process),
        ):
            if ours != theirs:
                raise ValueError(
                    f"the student to go on from has {what} {ours}, the teacher {theirs}: give a student of this teacher"
                )
        return copy.deepcopy(own.denoiser).requires_grad_(True).train()  # each role and part has its own
