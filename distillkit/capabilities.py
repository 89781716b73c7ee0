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
from typing import Any

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


def _gap(handed: Mapping[str, Any], find: Callable[[str], type]) -> str | None:
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
            if sentence := getattr(kind, "refused", {}).get(min(missing)):
                return sentence.format(method=parts[0][0].__name__)
            return refusal(kind, missing, list(dict.fromkeys(giver.__name__ for giver, _ in providers)), because)
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
