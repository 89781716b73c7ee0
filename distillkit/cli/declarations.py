"""The declarations of classes, read from their source.

The module of a method or a teacher imports torch and Lightning, which takes seconds. Its
declarations do not need them: a docstring, the sets of `distillkit.capabilities` and what goes with
them.
"""

from __future__ import annotations
import __future__

import ast
import sys
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DECLARED = {"requires", "provides", "needs", "offers", "allows", "refused", "home"}
PLAIN = {"torch", "lightning", *sys.stdlib_module_names}  # packages without such declarations


@cache
def read(path: str) -> type:
    """A class with the name, docstring, declarations and declaring bases of the class at `path`.

    Raises:
        Exception: of any kind, if the source is not enough; then the class has to be imported.
    """
    module, _, name = path.rpartition(".")
    classes, origins, space = _module(module)
    if name not in classes:
        return read(origins[name])
    whole, node = classes[name], ast.parse(f"class {name}: pass").body[0]
    node.bases = [base for base in whole.bases if _root(base, classes, origins) not in PLAIN]
    node.body = [part for part in whole.body if _names(part) & DECLARED] or node.body
    used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - {name}
    found = {use: _look_up(f"{module}.{use}") for use in used & classes.keys()}
    found |= {use: _look_up(origins[use]) for use in used & origins.keys() if origins[use].split(".")[0] not in PLAIN}
    space = {**space, **found}
    flags = __future__.annotations.compiler_flag
    exec(compile(ast.Module([node], []), space["__file__"], "exec", flags), space)
    made = space[name]
    made.__doc__ = ast.get_docstring(whole)
    return made


def _look_up(path: str) -> Any:
    """The object of a name in another module: a class by `read`, a constant, else by import."""
    try:
        return read(path)
    except (KeyError, SyntaxError, OSError):
        module, _, name = path.rpartition(".")
        constants = _module(module)[2]
        return constants[name] if name in constants else getattr(import_module(module), name)


def _names(node: ast.stmt) -> set[str]:
    """The names that a statement of a class defines."""
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _root(base: ast.expr, classes: dict, origins: dict[str, str]) -> str:
    """The package that a base class comes from; an empty name for one of the same module."""
    name = ast.unparse(base).partition("[")[0].partition(".")[0]
    return "" if name in classes else origins.get(name, "builtins").partition(".")[0]


@cache
def _module(module: str) -> tuple[dict[str, ast.ClassDef], dict[str, str], dict[str, Any]]:
    """A module's classes, the paths of its imported names, and its standard-library constants."""
    file = _file(module)
    classes, origins, space = {}, {}, {"__name__": module, "__file__": str(file)}
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.ClassDef):
            classes[node.name] = node
            continue
        if isinstance(node, ast.ImportFrom) and not node.level:
            origins |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            local = node.module.partition(".")[0] in sys.stdlib_module_names
        elif isinstance(node, ast.Import):
            origins |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
            local = all(alias.name.partition(".")[0] in sys.stdlib_module_names for alias in node.names)
        else:
            local = isinstance(node, ast.Assign | ast.AnnAssign)
        if local:
            with suppress(Exception):  # a constant that needs more
                exec(compile(ast.Module([node], []), str(file), "exec", __future__.annotations.compiler_flag), space)
    return classes, origins, space


def _file(module: str) -> Path:
    """The source file of a module, found without importing its packages."""
    root, *rest = module.split(".")
    spec = find_spec(root)
    for place in spec.submodule_search_locations or ():
        for file in (Path(place, *rest, "__init__.py"), Path(place, *rest).with_suffix(".py")):
            if file.is_file():
                return file
    if rest or not spec.origin:
        raise FileNotFoundError(module)
    return Path(spec.origin)
