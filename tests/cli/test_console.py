"""Warnings as lines on standard error."""

import warnings

from distillkit.cli import console


def test_a_warning_is_said_once_without_a_place(capsys):
    with console.warnings_in_words():
        for text in ("one\nof two lines", "two", "one\nof two lines"):
            with warnings.catch_warnings():  # forgets what was said
                warnings.warn(text, stacklevel=1)
    with console.warnings_in_words():
        warnings.warn("two", stacklevel=1)
    assert capsys.readouterr().err == "warning: one of two lines\nwarning: two\nwarning: two\n"
