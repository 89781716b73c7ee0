"""The parser's errors in one sentence; jsonargparse gives trees of keys, classes, alternatives."""

import re
from collections.abc import Iterable
from importlib import import_module
from inspect import signature
from typing import Any, get_type_hints

from distillkit.errors import did_you_mean, one_line

BESIDE = ("Subtypes:", "Given value type", "Does not validate", "Expected a path but")  # lines without a complaint
Context = list[tuple[int, str, str]]  # indentation, "key" or "class", name


def condense(text: str, keys: Iterable[str] = ()) -> str:
    """The one sentence in a parse error of jsonargparse: the deepest complaint, with its full key.

    Args:
        text: the error's text.
        keys: all keys of the command line, to propose the nearest one.
    """
    complaints, values = _tree(text)
    if not complaints:
        return one_line(text)
    depth = max(len(context) for context, _ in complaints)
    deepest = [(context, body) for context, body in complaints if len(context) == depth]
    bodies = [body for _, body in deepest if body != "Expected a <class 'NoneType'>"] or [deepest[0][1]]
    context = deepest[0][0]
    key = ".".join(name for _, kind, name in context if kind == "key")
    owner = next((name for _, kind, name in reversed(context) if kind == "class"), None)
    value = values.get(depth, "")
    return one_line(_sentence(key, owner, bodies, "" if re.search("class_path|Namespace", value) else value, keys))


def _tree(text: str) -> tuple[list[tuple[Context, str]], dict[int, str]]:
    """The complaints of a parse error, each with its context, and the given values by depth."""
    context: Context = []
    complaints: list[tuple[Context, str]] = []
    values: dict[int, str] = {}
    for line in text.splitlines():
        body = line.lstrip(" -")
        if not body:
            continue
        indent = len(line) - len(body)
        context = [entry for entry in context if entry[0] < indent]
        if match := re.match(r'Parser key "([^"]+)": ?(.*)', body):
            context.append((indent, "key", match[1]))
            body = match[2]
        elif match := re.match(r"Problem with given class_path '([^']+)':", body):
            context.append((indent, "class", match[1]))
            continue
        if body.startswith("Given value: "):
            values[len(context)] = body.removeprefix("Given value: ")
        elif body and not body.endswith(":") and not body.startswith(BESIDE):
            complaints.append((list(context), body))
    return complaints, values


def _sentence(key: str, owner: str | None, bodies: list[str], value: str, keys: Iterable[str]) -> str:
    first = bodies[0]
    dotted = f"{key}." if key else ""
    if match := re.match(
        r"(?:Option '(.+)' is not accepted|(Group|Subcommand) '(.+)' does not accept option '(.+)')", first
    ):
        wrong = match[1] or (f"{match[3]}.{match[4]}" if match[2] == "Group" else match[4])
        return f"no key {dotted}{wrong}{_nearest(wrong, owner, keys, dotted)}"
    if match := re.match(r"unrecognized arguments: (.+)", first):
        wrong = match[1].split()[0].lstrip("-").partition("=")[0]
        return f"no key {wrong}{_nearest(wrong, owner, keys, '')}"
    expected = [match for body in bodies if (match := re.match(r"Expected an? (.+?)(?:\. Got value: (.*))?$", body))]
    if expected:
        types = " or ".join(dict.fromkeys(_readable(match[1]) for match in expected))
        path = re.match("dot import path string: (.*)", expected[0][1])
        got = (path[1] if path else expected[0][2] if expected[0][2] is not None else value) or "nothing"
        return f"{key} must be {types}, got {got}"
    if match := re.match("Subclasses are disabled for (.+?), thus '(.*)' is not accepted", first):
        return f"{key}: {match[1]} cannot be another class, got {match[2]}; leave that out and give its keys"
    if match := re.match('Unable to load config "(.*)"', first):
        names = keys_of(owner) if owner else list(keys)
        return no_group(key, names if not owner else [f"{key.rpartition('.')[0]}.{name}" for name in names], match[1])
    if match := re.match(r"the following arguments are required: (.+)", first):
        return f"{key or 'the command'} needs a value for {match[1]}"
    if match := re.match(r"Not a valid subclass of (.+?)(?:\. Got value: (.*))?$", first):
        return f"{key} must be a {match[1]}, given as a class, got {match[2] or value or 'something else'}"
    return f"{key}: {first}" if key else first


def _nearest(wrong: str, owner: str | None, keys: Iterable[str], prefix: str) -> str:
    """Proposals for a wrong name, from the keys of the class or else of the command line."""
    if owner is None:
        return did_you_mean(wrong, keys)
    renamed = getattr(class_at(owner), "renamed", {})
    if mend := renamed.get(wrong) or renamed.get(wrong.partition(".")[0]):
        return f" any more: {mend}"
    names = keys_of(owner)
    tops = list(dict.fromkeys(name.partition(".")[0] for name in names))
    takes = f"; {owner.rpartition('.')[2]} takes {', '.join(tops)}" if tops else ""
    return did_you_mean(wrong, [*names, *tops], prefix) + takes


def no_group(key: str, names: Iterable[str], value: object) -> str:
    """The error of a value for a key that holds other keys (`names`: all keys, dotted)."""
    inner = next((name for name in names if name.startswith(f"{key}.")), None)
    return f"{key} holds further keys{f', such as {inner},' if inner else ''} and cannot be {value}"


def keys_of(path: str | None) -> list[str]:
    """The keys of the class at this path, dotted for groups; empty if there is no such class."""
    from jsonargparse import ArgumentParser

    try:
        parser = ArgumentParser()
        parser.add_class_arguments(class_at(path), fail_untyped=False)
        return list(parser.get_defaults().keys())
    except Exception:
        return []


def switches_of(path: str | None) -> set[str]:
    """The Boolean arguments of the class at this path."""
    found: set[str] = set()
    for base in getattr(class_at(path), "__mro__", ()):
        try:
            kinds, arguments = get_type_hints(base.__init__), signature(base.__init__).parameters
        except Exception:  # annotations with missing names
            continue
        found |= {name for name in arguments if kinds.get(name) is bool and arguments[name].default is not None}
    return found


def class_at(path: str | None) -> Any:
    """The class at this path, None if there is none."""
    try:
        module, _, name = (path or "").rpartition(".")
        return getattr(import_module(module), name)
    except Exception:
        return None


def _readable(kind: str) -> str:
    """A type in words: `<class 'float'>` as `a float`, a Literal as its choices."""
    if match := re.fullmatch(r"typing\.Literal\[(.*)\]", kind):
        return match[1].replace(", ", " or ")
    if kind.startswith("dot import path string"):
        return "a class, such as package.module.Name"
    if kind == "<class 'collections.abc.Iterable'>":
        return "a list"
    if match := re.fullmatch(r"<class '(.*)'>", kind):
        name = match[1].rpartition(".")[2]
        return f"an {name}" if name[0] in "aeiou" else f"a {name}"
    return kind if kind.startswith(("a ", "an ")) else f"a {kind}"


def original(error: BaseException) -> BaseException:
    """The exception of a class's constructor, without jsonargparse's wrapping."""
    while error.__cause__ and str(error).startswith(
        ("Does not validate", "Parser key", "Problem with given class_path")
    ):
        error = error.__cause__
    return error
