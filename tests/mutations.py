"""Proof that a test can fail: it must notice one replaced piece of a function's source."""

import __future__

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType

import pytest


@dataclass(frozen=True)
class Mutation:
    """A fault, and a test that must notice it.

    Args:
        says: the fault in words.
        function: in which it is made.
        old, new: what is replaced, which stands exactly once in the function's statements, and by
            what.
        check: a test with its arguments bound, which passes on the code as it is.
    """

    says: str
    function: Callable
    old: str
    new: str
    check: Callable[[], None]

    def __str__(self) -> str:
        return f"{self.function.__qualname__}: {self.says}"


def prove(mutation: Mutation) -> None:
    """The check passes on the code as it is, and fails by an assertion under the mutation."""
    mutation.check()
    with mutated(mutation.function, mutation.old, mutation.new), pytest.raises(AssertionError):
        mutation.check()


@contextmanager
def mutated(function: Callable, old: str, new: str) -> Iterator[None]:
    """A context in which `function` runs with `old` replaced, for everyone who holds it.

    Its code is exchanged, the object stays.

    Raises:
        ValueError: `old` does not stand exactly once in its statements, which then have changed.
    """
    function = inspect.unwrap(function)
    own, function.__code__ = function.__code__, _code(function, old, new)
    try:
        yield
    finally:
        function.__code__ = own


def _code(function: Callable, old: str, new: str) -> CodeType:
    """The function's code with one replacement, without its docstring, which repeats much of it."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines(keepends=True)
    (parsed,) = ast.parse("".join(lines)).body
    documented = ast.get_docstring(parsed) is not None
    head = lines[parsed.lineno - 1 : parsed.body[0].lineno - 1]  # without decorators, which are on it already
    body = "".join(lines[parsed.body[documented].lineno - 1 :])
    if (found := body.count(old)) != 1:
        raise ValueError(f"{old!r} stands {found} times in {function.__qualname__}, not once: make the mutation anew")
    free = function.__code__.co_freevars  # a method's `__class__`, say: bound by a function around it
    head[0] = head[0].replace(
        f"def {function.__name__}(", "def mutant(", 1
    )  # a method may call a function of its own name
    inner = textwrap.indent("".join(head) + body.replace(old, new), "    ")
    outer = f"def outer({', '.join(free)}):\n{inner}\n    return mutant\n"
    made: dict = {}
    flags = __future__.annotations.compiler_flag
    exec(compile(outer, f"<{function.__qualname__} with {new!r}>", "exec", flags), dict(function.__globals__), made)
    return made["outer"](*free).__code__
