"""The battery finds every method and every domain in conf and puts them through all proofs.

`method`: every yaml. `case`: every class, in the domain where it is the default; a preset, another
method with other settings, has the class of that one. `world`: every domain at each stage.
`per_family`: of the classes that share a base one stands for all, and of a domain's stages its
default one; the others run with -m slow.

So are the methods of an installed package that announces its configuration folder. Of any other
folder:

    python -m pytest PATH/tests/battery --conf conf --method my_method
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything

from distillkit.capabilities import gap, imported
from distillkit.cli import catalogue, config, pairing
from distillkit.cli.matrix import compatibility
from distillkit.cli.messages import keys_of
from distillkit.data import DistillData
from distillkit.methods.base import Distiller
from tests.conftest import COST

FOREIGN: list[str] = []  # what --conf adds to every command line
METHODS = catalogue.groups()["method"]
DOMAINS = catalogue.groups()["domain"]
TINY = ["network.width=16", "network.depth=2", "data.batch_size=32", "data.num_samples=256"]
WORLDS = {  # where the law is known: the words for a small network on few data; else for small data
    "toy": TINY,
    "discrete": ["data=world", "teacher=potts", *TINY],
    "lidar": [
        *("data.num_full=160", "data.num_part=20", "data.batch_size=2", "student=fresh", "fake_score=fresh"),
        *("network.cell=1.6", "network.bins=2", "network.channels=8", "network.width=16"),
    ],
    "scene": [
        *("data.train=16", "data.val=4", "data.test=4", "data.batch_size=2"),
        *("+student.part._target_=distillkit.students.makers.Fresh", "+student.part.network=${network}"),
        # before a norm of single channels a bias has no gradient but rounding, which Adam enlarges
        *("network.channels=12", "network.multipliers=[1]", "network.heads=0"),
    ],
}
FEW = {"num_pairs": 256, "steps": 4, "guard": 200}  # of a class that takes such an argument, where no law is proved
FEWER = {"num_pairs": 8, "steps": 4, "guard": 0}  # where a sample takes longer than on the plane


class Case(NamedTuple):
    """A class of methods, by a method and a domain that give it."""

    method: str
    domain: str = "toy"

    @property
    def path(self) -> str:
        """The class path."""
        return path_of(self.domain, self.method)

    @property
    def kind(self) -> type[Distiller]:
        return imported(self.path)

    def __str__(self) -> str:
        return self.method if self.domain == "toy" else f"{self.method}-{self.domain}"


@cache
def path_of(domain: str, method: str) -> str:
    """The class path of a method in a domain."""
    return pairing.target(method, FOREIGN, domain)


def pytest_addoption(parser):
    parser.addoption("--conf", action="append", default=[], help="configuration folder of methods outside the project")
    parser.addoption("--method", action="append", default=[], help="put this method alone through the battery")


def pytest_configure(config):
    folders = [f"file://{Path(folder).absolute()}" for folder in config.getoption("--conf", [])]
    FOREIGN[:] = [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []


def pytest_generate_tests(metafunc):
    """Parametrises `method` by each method, or each asked for, and `case` by their classes."""
    asked = tuple(metafunc.config.getoption("--method", []))
    alone = metafunc.definition.get_closest_marker("per_family")
    if "method" in metafunc.fixturenames:
        metafunc.parametrize("method", chosen(asked))
    if "world" in metafunc.fixturenames:
        found = worlds()
        marks = {world: [pytest.mark.slow] for world in found if alone and world.stage != default_stage(world.domain)}
        params = [pytest.param(world, id=str(world), marks=marks.get(world, ())) for world in found]
        metafunc.parametrize("world", params, scope="module")
    if "case" in metafunc.fixturenames:
        found = cases(asked)
        marks = {case: [pytest.mark.slow] for case in found if alone and case not in families(asked).values()}
        metafunc.parametrize("case", [pytest.param(case, id=str(case), marks=marks.get(case, ())) for case in found])


def chosen(asked: tuple[str, ...]) -> list[str]:
    there = catalogue.groups(FOREIGN)["method"]
    if strange := sorted(set(asked) - set(there)):
        raise pytest.UsageError(f"no method {strange[0]!r}: --conf FOLDER says where it is; there are: {there}")
    return [*asked] or there


@cache
def cases(asked: tuple[str, ...] = ()) -> list[Case]:
    """Every class once; on the plane if it is the default there."""
    found: dict[str, Case] = {}
    for domain in sorted(DOMAINS, key=lambda domain: domain != "toy"):
        for method in chosen(asked):
            case = Case(method, domain)
            if not preset(method) and case.path not in found and goes(domain, method):
                found[case.path] = case
    return [*found.values()]


@cache
def families(asked: tuple[str, ...] = ()) -> dict[type, Case]:
    """The abstract bases of the methods, each with the first class built on it.

    A class that is alone on a base of other bases is left out: a class of theirs stands for it.
    """
    found: dict[type, list[Case]] = defaultdict(list)
    kinds = {case.kind for case in cases(asked)}
    # Pairs for a reward take twice the samples, so a class that makes them stands for no other; of
    # the others a plain one does.
    for case in sorted(cases(asked), key=lambda case: ("reward" in case.kind.requires, len(case.kind.__mro__))):
        found[next(base for base in case.kind.__mro__ if base not in kinds)].append(case)
    above = {base for base in found for other in found if other is not base and issubclass(other, base)}
    return {base: of[0] for base, of in found.items() if len(of) > 1 or base not in above}


class World(NamedTuple):
    """A domain, at one of its stages if it has several."""

    domain: str
    stage: str | None = None

    @property
    def words(self) -> list[str]:
        return [f"domain={self.domain}", *([f"stage={self.stage}"] if self.stage else [])]

    def __str__(self) -> str:
        return "-".join(filter(None, self))


@cache
def worlds() -> list[World]:
    """Every domain, and each stage whose teacher lies where the domain's data lie."""
    found = []
    for domain in DOMAINS:
        chosen, _ = pairing.domain_alone(domain, ())
        if default_stage(domain) is None:
            found += [World(domain)] if at_home(chosen) else []
            continue
        for world in (World(domain, stage) for stage in catalogue.groups()["stage"] if domain in packages_of(stage)):
            found += [world] if at_home(config.compose(world.words)[0]) else []
    return found


def default_stage(domain: str) -> str | None:
    return pairing.domain_alone(domain, ())[1].get("stage")


@cache
def packages_of(stage: str) -> set[str]:
    """The packages of domains that the files of a stage name, of which it may be a stage."""
    return {*re.findall(r"\bdomains\.(\w+)", str([part.keys for part in pairing.parts_of("stage", stage, ())]))}


def at_home(chosen: Any) -> bool:
    """Whether teacher and data of a configuration lie in one package."""
    teacher, data = (chosen[part]._target_.split(".")[:2] for part in ("teacher", "data"))
    return teacher == data


def pytest_ignore_collect(collection_path, config):
    """Who asks for one method does not want to see the domains again."""
    return True if config.getoption("--method", []) and collection_path.name == "test_domains.py" else None


def by_family() -> list[Any]:
    """Every method, for `parametrize`; those that stand for no family with -m slow."""
    first = {case.method for case in families().values()}
    return [pytest.param(method, marks=() if method in first else pytest.mark.slow) for method in METHODS]


def file_of(method: str) -> Path:
    """Its yaml."""
    (file,) = [file for top in catalogue.conf_dirs(FOREIGN) if (file := top / "method" / f"{method}.yaml").is_file()]
    return file


@cache
def preset(method: str) -> bool:
    """Whether its yaml builds on another method's and keeps the class: other settings alone."""
    entries = (yaml.safe_load(file_of(method).read_text()) or {}).get("defaults", ())
    bases = [entry for entry in entries if isinstance(entry, str) and entry != "_self_"]
    return any(pairing.target(base, FOREIGN) == pairing.target(method, FOREIGN) for base in bases)


@cache
def composed(*words: str) -> str:
    """JSON of the configuration LightningCLI would get for these words."""
    return json.dumps(config.hand_over(config.compose([*words])[0]))


def compose(*words: str) -> dict[str, Any]:
    return json.loads(composed(*FOREIGN, *words))


@cache
def read(chosen: str) -> tuple[ArgumentParser, Any]:
    """A parser and what it makes of the parts of a configuration, given as JSON.

    Objects are built of it as often as asked for.
    """
    parts, parser = json.loads(chosen), ArgumentParser(exit_on_error=False)
    for part, base in (("model", Distiller), ("data", DistillData)):
        if part in parts:
            parser.add_subclass_arguments(base, part)
    return parser, parser.parse_object(parts)


def made_of(chosen: dict[str, Any], *parts: str, seed: int = 0) -> SimpleNamespace:
    """The `parts` of a configuration, built and type-checked as the command line does."""
    parser, parsed = read(json.dumps({part: chosen[part] for part in parts}))
    seed_everything(seed, verbose=False)
    made = parser.instantiate(copy.deepcopy(parsed))
    return SimpleNamespace(**{part: made[part] for part in parts}, config=chosen)


def build(*words: str, seed: int = 0) -> SimpleNamespace:
    """`model` and `data` for these words."""
    return made_of(compose(*words), "model", "data", seed=seed)


@cache
def loaded(chosen: str) -> DistillData:
    """The data of a configuration, given as JSON, set up once for all tests of this process."""
    began = cpu()
    data = made_of({"data": json.loads(chosen)}, "data").data
    data.setup()
    SHARED.append(cpu() - began)
    return data


def plane(method: str) -> list[str]:
    """The words for a method on the plane; one that needs classes has the modes of a mixture."""
    refused = compatibility("toy", method, tuple(FOREIGN))
    return ["domain=toy", f"method={method}", *(["teacher=labelled"] if refused else [])]


@cache
def goes(domain: str, method: str) -> bool:
    """Whether the domain's own teacher and data (of the toy domain `plane`'s) serve the method."""
    if compatibility(domain, method, tuple(FOREIGN)) is None:
        return True
    return domain == "toy" and gap(compose(*plane(method)), imported) is None


def home(method: str) -> str:
    """The plane, or the first other domain where the method goes; without any it is skipped."""
    found = [domain for domain in sorted(DOMAINS, key=lambda domain: domain != "toy") if goes(domain, method)]
    return found[0] if found else pytest.skip("no domain serves it by itself: its own tests prove it")


@cache
def takes(kind: type) -> set[str]:
    """The arguments of a class that the command line has; it may give its base some by itself."""
    return {name.partition(".")[0] for name in keys_of(f"{kind.__module__}.{kind.__qualname__}")}


def few(case: Case, numbers: Mapping[str, int] = FEW) -> list[str]:
    """Words for such of these numbers as the class takes."""
    return [f"model.{name}={value}" for name, value in numbers.items() if name in takes(case.kind)]


def small(case: Case) -> list[str]:
    """The words of a run of a class that takes seconds, in the domain where it is the default."""
    where = plane(case.method) if case.domain == "toy" else [f"domain={case.domain}", f"method={case.method}"]
    return [*where, *WORLDS.get(case.domain, ["data.batch_size=4"]), *few(case), *early(where)]


def early(where: list[str]) -> list[str]:
    """Words that let every role of a class train from the first step."""
    arguments = compose(*where)["model"]["init_args"]
    late = [name for name, value in arguments.items() if isinstance(value, dict) and value.get("start")]
    return [f"model.{name}.start=0" for name in late if isinstance(arguments[name]["start"], int)]


def tiny(case: Case | str, *words: str, seed: int = 0) -> SimpleNamespace:
    """A method with a network of a few hundred weights; at its home if only its name is given."""
    return build(*small(Case(case, home(case)) if isinstance(case, str) else case), *words, seed=seed)


def weights(model: Distiller) -> dict[str, torch.Tensor]:
    """A copy of everything a checkpoint would hold."""
    return {name: value.clone() for name, value in copy.copy(model.state_dict()).items()}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


# What it costs


SHARED: list[float] = []  # seconds of what no single test has to bear


def cpu() -> float:
    """Seconds of this process and of those it has waited for, without those that are shared."""
    return sum(os.times()[:4]) - sum(SHARED)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    item.began = cpu()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    result = yield
    given = getattr(getattr(item, "callspec", None), "params", {})
    if "case" in given:
        proof = item.get_closest_marker("per_family") or item.get_closest_marker("slow")
        of = "kill and law of a family" if proof else "class", str(given["case"])
    elif "method" in given:
        of = "preset" if preset(given["method"]) else "class", given["method"]
    else:
        of = "domain", str(next(iter(given.values()), "all"))
    item.user_properties.append((COST, [*of, cpu() - item.began]))
    return result
