"""What the documents say is run: links, commands, code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from distillkit.cli import config, front
from distillkit.methods.base import Adam

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples" / "README.md",
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_compose(page):
    """Every `fit` command that is shown: its words are accepted and its configuration is complete."""
    text = page.read_text().replace("\\\n", " ")
    commands = re.findall(r"^(?:.*&& \.venv/bin/)?python -m distillkit fit (.+)$", text, re.M)
    commands += re.findall(r"^\| .*\| `fit (.+?)` \|$", text, re.M)
    for command in commands:
        tokens = shlex.split(command, comments=True)
        if any(token.startswith(("--config", "--help", "hydra.")) for token in tokens):
            continue
        words = [token for token in tokens if not token.startswith("-") and "," not in token.partition("[")[0]]
        words = [word if not word.endswith("=...") else word.replace("...", "somewhere") for word in words]
        handed = config.hand_over(config.compose(words)[0])
        assert handed["model"], command
        if "data=image_folder" in words:  # what the network is made for is what the data become
            folder, made_for = handed["data"]["init_args"], handed["model"]["init_args"].get("event_shape")
            shape = [folder["channels"], folder["resolution"], folder["resolution"]]
            assert made_for in (None, shape), command


def arguments(cls: type) -> set[str]:
    """What a class takes, its bases' arguments included."""
    return {name for base in cls.__mro__ if "__init__" in vars(base) for name in signature(base.__init__).parameters}


def test_every_switch_that_fidelity_names_is_there():
    """`model.X` is an argument of the classes of its section; `model.student.X` one of Adam's."""
    _, everybody, *sections = re.split(r"^## ", (ROOT / "docs" / "fidelity.md").read_text(), flags=re.M)
    methods = {name: [name] for name in config.groups()["method"]}
    named = {name: text for text in sections for name in re.findall(r"`(\w+)`", text.splitlines()[0])}
    assert named.keys() == methods.keys(), "a section for each method, and for no other"
    for method, text in named.items():
        module, _, cls = config.hand_over(config.compose([f"method={method}"])[0])["model"]["class_path"].rpartition(
            "."
        )
        taken = arguments(getattr(import_module(module), cls))
        switches = set(re.findall(r"model\.(\w+(?:\.\w+)?)", everybody + text))
        assert len(switches) > 5
        for switch in switches:
            name, _, of = switch.partition(".")
            assert name in taken, f"{method} has no model.{name}"
            assert not of or of in arguments(Adam), f"a role has no {of}"


def unpack(page: str, folder: Path) -> list[list[str]]:
    """Write the files that a page shows, each below its name in backticks; gives the words of its commands."""
    text = (ROOT / "docs" / page).read_text()
    for name, content in re.findall(
        r"^`([\w/]+\.(?:py|yaml))`[^\n]*(?:\n[^`\n]+)*:\n\n```\w+\n(.*?)```", text, re.S | re.M
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    lines = "".join(blocks(ROOT / "docs" / page, "bash")).splitlines()
    return [shlex.split(line) for line in lines]


SHORT = ["trainer.max_steps=6", "vars.callbacks.finish.num_samples=64"]


def run_from(folder: Path, monkeypatch, *commands: list[str]) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for words in commands:
        assert words[:3] == ["python", "-m", "distillkit"] and front.main([*words[3:], *SHORT]) == 0, words


def test_the_method_of_the_docs_runs(tmp_path, monkeypatch):
    run, _ = unpack("add_a_method.md", tmp_path)
    run_from(tmp_path, monkeypatch, [*run, "--out", "run"])
    assert (tmp_path / "run" / "student" / "student.yaml").is_file()
    recipe = (tmp_path / "run" / "config.yaml").read_text()
    assert "ema_rampup: 0.2" in recipe and "t_init: 4" in recipe  # of the recipe, which nobody named


@pytest.mark.slow
def test_the_method_of_the_docs_passes_the_battery(tmp_path):
    """From its own folder, as the page says it."""
    _, (_, *words) = unpack("add_a_method.md", tmp_path)
    words = [word.replace("PATH/TO/distillkit", str(ROOT)) for word in words]
    done = subprocess.run([sys.executable, *words, "-q"], cwd=tmp_path, timeout=1800, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"^19 passed, 3 deselected", done.stdout, re.M)


def test_the_domain_of_the_docs_trains_a_teacher_and_a_student(tmp_path, monkeypatch):
    pretrain, distil = unpack("add_a_domain.md", tmp_path)
    run_from(tmp_path, monkeypatch, pretrain, [*distil, "--out", "run"])
    assert (tmp_path / "run" / "student" / "student.yaml").is_file()
    assert (tmp_path / "run" / "samples").is_dir()


def test_the_teacher_of_the_docs_samples():
    names: dict = {}
    exec(blocks(ROOT / "docs" / "bring_your_own_teacher.md", "python")[0], names)
    assert names["samples"].shape == (4, 3, 16, 16)


def test_readme_commands_are_single_lines():
    text = (ROOT / "README.md").read_text()
    for number in (1, 2):
        (block,) = re.findall(rf"<!-- command {number} -->\n```bash\n(.*?)```", text, re.S)
        assert len(block.strip().splitlines()) == 1
