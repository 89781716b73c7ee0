"""Capabilities that methods need and that teachers and data give, checked before anything is built.

A consumer (a method, a maker) declares `requires`, or a classmethod `needs(arguments)` where its
arguments matter. A provider (a teacher, data, a network) declares `provides`, or a classmethod
`offers(arguments)` where its arguments matter, which may only add to `provides`. What a method lets
its makers do stands in `allows`, and a sentence of its own for a word that a consumer lacks
in `refused`. All others are sets of these words:

- `denoiser`: the teacher is a denoiser of a Gaussian process.
- `log_probs`: the teacher is a discrete diffusion model.
- `features`: the teacher's network has activations for the head of a GAN.
- `data`: batches hold real samples under the key `data`.
- `numbers`: these samples are numbers to which noise can be added, not tokens.
- `points`: these samples are sets of points in space, [N, 3], in no order.
- `classes`: conditions have a null (a class, an empty scan), so that guidance is possible.
- `labels`: conditions are classes, each of which may have a network of its own.
- `decoder`: the teacher's codec decodes by a network that can be trained.
- `tower`: batches hold easier observations of the same samples too.
- `reward`: the data say how good a sample is, see `DistillData.reward`.
- `reward_gradient`: and what they say is differentiable in the sample.
- `approximation`: a condition holds an approximation of each sample, from which sampling may start.
- `judge`: the method looks at a student's samples alone, so that they need not be made of noise.
- `start`: the method lets a student start elsewhere than its teacher's sampling does.
- `scene`: the student is a scene, which makes samples of the conditions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

# by word, what is lacking where nobody gives it; the earlier ones say more
MEANS = {
    "denoiser": "a teacher that takes Gaussian noise away",
    "log_probs": "a teacher of tokens",
    "scene": "a scene as student",
    "features": "features of the teacher for a discriminator",
    "data": "real samples",
    "numbers": "samples that are numbers",
    "points": "samples that are points in space",
    "classes": "conditions with a null, for guidance",
    "labels": "classes as conditions",
    "decoder": "a decoder that can be trained",
    "tower": "easier observations of the samples",
    "reward": "a reward in the data",
    "reward_gradient": "a reward with a gradient",
    "approximation": "an approximation of each sample to start from",
}
WHERE = "`python -m distillkit list` shows what goes together"


def lacking(handed: Mapping[str, Any], find: Callable[[str], type] | None = None) -> str | None:
    """The gap of a composed configuration in one sentence; None if it lacks nothing.

    Args:
        handed: `model` and `data` as `config.hand_over` gives them, `{class_path, init_args}` at
            every depth.
        find: map from a class path to its class; None imports the class.
    """
    return (gap := _gap(handed, find or imported)) and f"{gap}; {WHERE}"


def gap(handed: Mapping[str, Any], find: Callable[[str], type]) -> str | None:
    """The first half of the sentence of `lacking`; classes that `find` cannot tell are imported."""
    try:
        return _gap(handed, find)
    except Exception:
        return _gap(handed, imported)


def refusal(kind: type, missing: frozenset[str], givers: Sequence[str], because: Sequence[str] = ()) -> str:
    """A refusal: `DMD with gan=0.1 needs data and features, which Wan and Prompts do not give`."""
    asked = f" with {' and '.join(because)}" if because else ""
    others = f"{' and '.join(givers)} {'do' if len(givers) > 1 else 'does'} not give" if givers else "no part gives"
    return f"{kind.__name__}{asked} needs {' and '.join(sorted(missing))}, which {others}"


def guidance(arguments: Mapping[str, Any]) -> frozenset[str]:
    """The needs of the argument `kappa`: classes, unless the guidance scale is the number 1."""
    kappa = arguments.get("kappa", 1)
    guided = isinstance(kappa, list | tuple) or (isinstance(kappa, int | float) and kappa != 1)
    return frozenset({"classes"} if guided else set())


def imported(path: str) -> type:
    """The class of a class path."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def plainly(handed: Mapping[str, Any], find: Callable[[str], type]) -> str | None:
    """The main gap in words that name no class, so that many pairs share them."""
    try:
        lack = _lack(handed, find)
    except Exception:
        lack = _lack(handed, imported)
    if lack is None:
        return None
    word = next((word for word in MEANS if word in lack.missing), min(lack.missing))
    return (lack.sentence or f"it needs {MEANS.get(word, word)}").format(method="the method")


class Lack(NamedTuple):
    """The first part of a configuration that lacks something.

    Args:
        kind: its class.
        missing: the words that nobody gives.
        givers: names of the classes that could.
        because: its arguments that need them.
        method: the name of the method's class.
        sentence: its own sentence about them, empty if it has none.
    """

    kind: type
    missing: frozenset[str]
    givers: list[str]
    because: list[str]
    method: str
    sentence: str


def _gap(handed: Mapping[str, Any], find: Callable[[str], type]) -> str | None:
    if (lack := _lack(handed, find)) is None:
        return None
    if lack.sentence:
        return lack.sentence.format(method=lack.method)
    return refusal(lack.kind, lack.missing, lack.givers, lack.because)


def _lack(handed: Mapping[str, Any], find: Callable[[str], type]) -> Lack | None:
    parts = [(find(path), arguments) for path, arguments in _parts([handed.get("model"), handed.get("data")])]
    providers = [(kind, arguments) for kind, arguments in parts if hasattr(kind, "provides") or hasattr(kind, "offers")]
    given = frozenset().union(*(getattr(kind, "provides", ()) for kind, _ in providers))
    given = given.union(*(getattr(kind, "allows", ()) for kind, _ in parts))
    if not any(_needs(kind, arguments) - given for kind, arguments in parts):
        return None  # no file was read so far
    given = given.union(*(kind.offers(arguments) for kind, arguments in providers if hasattr(kind, "offers")))
    for kind, arguments in parts:
        if missing := _needs(kind, arguments) - given:
            rest = {name: {k: v for k, v in arguments.items() if k != name} for name in arguments}
            because = [f"{name}={arguments[name]}" for name in rest if missing - _needs(kind, rest[name])]
            sentence = getattr(kind, "refused", {}).get(min(missing), "")
            givers = list(dict.fromkeys(giver.__name__ for giver, _ in providers))
            return Lack(kind, missing, givers, because, parts[0][0].__name__, sentence)
    return None


def _needs(kind: type, arguments: Mapping[str, Any]) -> frozenset[str]:
    return kind.needs(arguments) if hasattr(kind, "needs") else frozenset(getattr(kind, "requires", ()))


def _parts(node: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields every class path of a configuration with its arguments, outermost first."""
    if isinstance(node, Mapping):
        if isinstance(node.get("class_path"), str):
            yield node["class_path"], node.get("init_args") or {}
        for value in node.values():
            yield from _parts(value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            yield from _parts(value)
