"""What the documents say is run: links, commands, code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from distillkit import config

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


def test_the_method_of_the_docs_runs(tmp_path):
    page = ROOT / "docs" / "add_a_method.md"
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "diff_instruct.py").write_text(blocks(page, "python")[0])
    (tmp_path / "conf" / "method" / "diff_instruct.yaml").write_text(blocks(page, "yaml")[0])
    (command,) = blocks(page, "bash")
    words = [
        *shlex.split(command.strip())[1:],
        "trainer.max_steps=12",
        "vars.callbacks.finish.num_samples=64",
        "--out",
        "run",
    ]
    subprocess.run([sys.executable, *words], check=True, cwd=tmp_path, timeout=120)
    assert (tmp_path / "run" / "student" / "student.yaml").is_file()


def test_the_teacher_of_the_docs_samples():
    names: dict = {}
    exec(blocks(ROOT / "docs" / "bring_your_own_teacher.md", "python")[0], names)
    assert names["samples"].shape == (4, 3, 16, 16)


def test_readme_commands_are_single_lines():
    text = (ROOT / "README.md").read_text()
    for number in (1, 2):
        (block,) = re.findall(rf"<!-- command {number} -->\n```bash\n(.*?)```", text, re.S)
        assert len(block.strip().splitlines()) == 1
