"""No import goes in a circle, and the rooms import one way. An import counts wherever it stands."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from distillkit.teachers.key import READ

ROOT = Path(__file__).parents[1]

# Rooms and the rooms that they import, beside themselves and the ground (the files without a
# room).
GROUND = {
    "cache",
    "capabilities",
    "checkpointing",
    "checks",
    "codec",
    "compiling",
    "data",
    "devices",
    "errors",
    "feeding",
    "files",
    "modules",
    "optimizers",
    "precision",
    "processes",
    "progress",
    "runs",
    "sharding",
    "signals",
    "sources",
    "spec",
}
ROOMS = {
    "diffusion": set(),
    "rollouts": {"diffusion"},
    "discrete": {"diffusion"},
    "networks": {"diffusion", "discrete"},
    "rendering": set(),
    "losses": {"diffusion", "discrete"},
    "teachers": {"networks", "rollouts", "diffusion", "discrete"},  # an exact teacher makes its students' networks
    "pipelines": {"teachers", "networks", "diffusion"},
    "pairs": {"teachers", "diffusion"},
    "students": {
        "teachers",
        "networks",
        "rollouts",
        "diffusion",
        "discrete",
    },  # one that is measured is called like its teacher
    "evaluation": {"students", "teachers", "diffusion"},
    "control": {"students", "teachers", "diffusion"},
    "report": {"evaluation"},  # the names of rows alone
    "methods": {
        "rollouts",
        "evaluation",
        "students",
        "losses",
        "pairs",
        "teachers",
        "networks",
        "diffusion",
        "discrete",
    },
    "watch": {"teachers", "evaluation", "losses", "diffusion", "discrete"},
    "planning": {"methods"},
    "callbacks": {"report", "evaluation", "students", "watch"},
    "cli": {
        "callbacks",
        "report",
        "methods",
        "evaluation",
        "control",
        "students",
        "teachers",
        "pipelines",
        "networks",
        "rollouts",
        "planning",
    },
    "__main__": {"cli"},
}
# The discrete teacher has the path `discrete.teacher` in users' files, but imports as a teacher.
# Export to pipelines stands beside what reads them, but imports as the command.
LODGERS = {"distillkit.discrete.teacher": "teachers", "distillkit.pipelines.export": "cli"}
# Domains made of others: of digits (data, metrics, pictures), for frames and photographs of image
# files; scenes of solids, of meshes and films; clips of scenes, of video and of what photographs
# are measured by.
BORROW = {
    "discrete": {"image"},
    "video": {"image"},
    "super_resolution": {"image"},
    "scene": {"image", "video", "super_resolution"},
    "text_to_3d": {"image", "threed", "video"},
}
READERS = ("distillkit.pipelines.teacher", "distillkit.pipelines.codec")  # what teachers of domains import of it
UNUSED_BY_DOMAINS = {"cli", "callbacks", "__main__"}


@cache
def modules() -> dict[str, Path]:
    paths = [path for package in ("distillkit", "domains") for path in (ROOT / package).rglob("*.py")]
    return {name(path.relative_to(ROOT)): path for path in paths}


def name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.AST, package: str) -> set[str]:
    """Dotted names of everything that a module imports: `from a import b` gives a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return found


@cache
def graph() -> dict[str, set[str]]:
    """For every module of ours the modules of ours that it imports."""
    found = {}
    for module, path in modules().items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        names = imported(ast.parse(path.read_text(encoding="utf-8")), package)
        found[module] = {known for full in names if (known := nearest(full))} - {module}
    return found


def nearest(full: str) -> str | None:
    """The module of ours that a dotted name is, or lies in."""
    while full and full not in modules():
        full = full.rpartition(".")[0]
    return full or None


def circle(edges: dict[str, set[str]]) -> list[str] | None:
    """Some circle, or None."""
    done: set[str] = set()

    def follow(at: str, way: list[str]) -> list[str] | None:
        if at in way:
            return [*way[way.index(at) :], at]
        if at in done:
            return None
        found = next((found for after in sorted(edges.get(at, ())) if (found := follow(after, [*way, at]))), None)
        done.add(at)
        return found

    return next((found for start in sorted(edges) if (found := follow(start, []))), None)


def room(module: str) -> str:
    """The room of a module of `distillkit`, or "" for the package itself, which loads on demand."""
    if module in LODGERS:
        return LODGERS[module]
    part = module.removeprefix("distillkit").lstrip(".").partition(".")[0]
    return "ground" if part in GROUND else part


def edges(package: str) -> list[tuple[str, str]]:
    inside = [(a, b) for a, found in graph().items() for b in sorted(found)]
    return [(a, b) for a, b in inside if a.partition(".")[0] == package]


def test_the_imports_are_all_seen():
    text = """
import one
if TYPE_CHECKING:
    from two import a
def f():
    from . import b
    from ..three.four import c as d
    return import_module("five")
"""
    assert imported(ast.parse(text), "x.y") == {"one", "two.a", "x.y.b", "x.three.four.c", "five"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) is None
    assert len(graph()) > 100 and sum(map(len, graph().values())) > 300


def test_no_circle():
    found = circle(graph())
    assert not found, " -> ".join(found)


def test_no_circle_of_rooms():
    assert not (found := circle(ROOMS)), " -> ".join(found)


@pytest.mark.parametrize("own", ["ground", *ROOMS])
def test_rooms_import_one_way(own):
    allowed = ROOMS.get(own, set()) | {own, "ground", ""}
    assert not [f"{a} -> {b}" for a, b in edges("distillkit") if room(a) == own and room(b) not in allowed]


def test_every_room_is_in_the_table():
    assert {room(module) for module in modules() if module.startswith("distillkit")} <= {"", "ground", *ROOMS}


def test_the_framework_knows_no_domain():
    assert not [f"{a} -> {b}" for a, b in edges("distillkit") if b.startswith("domains")]


def test_the_code_that_samples_depend_on_is_read_for_their_key():
    """All that teachers import, or are read with, but for what speaks, stores or names a run."""
    seen, left = set(), [*READERS, *(module for module in graph() if room(module) == "teachers")]
    while left:
        module = left.pop()
        left += graph()[module] - seen
        seen.add(module)
    parts = {module.split(".")[1] for module in seen if "." in module}
    assert parts - {"cache", "errors", "feeding", "progress", "runs", "signals", "sources"} == {
        part.removesuffix(".py") for part in READ
    }


def test_domains_use_neither_the_door_nor_callbacks():
    found = edges("domains")
    assert not [f"{a} -> {b}" for a, b in found if b.startswith("distillkit.") and room(b) in UNUSED_BY_DOMAINS]


def test_domains_borrow_from_few():
    for a, b in edges("domains"):
        own, other = a.split(".")[1], b.partition(".")[2].partition(".")[0]
        if b.startswith("domains."):
            assert other in {own} | BORROW.get(own, set()), f"{a} -> {b}"


def test_commands_on_students_start_without_lightning():
    """It takes longer to import than torch; only data, which some commands read, bring it."""
    waiting, seen, others = {"distillkit.cli.products", "distillkit.cli.exports"}, set(), set()
    while waiting:
        seen.add(module := waiting.pop())
        tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
        first = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]  # before any call
        names = imported(ast.Module(first, []), module)
        others |= {name.partition(".")[0] for name in names}
        waiting |= {nearest(name) for name in names} - {None} - seen
    assert "torch" in others and "distillkit.students.few_step" in seen
    assert "lightning" not in others, "distillkit.data" in seen


def test_scripts_that_train_what_is_shipped_are_imported_by_nobody():
    scripts = {module for module in modules() if module.endswith(".ship")}
    assert scripts
    assert not [f"{a} -> {b}" for a, found in graph().items() for b in found & scripts]
