"""The links, commands and code of the documents are run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
from helpers import UNMEASURED

from distillkit.capabilities import imported
from distillkit.cli import catalogue, cluster, config, front, pairing
from distillkit.methods.base import Adam

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "examples" / "README.md",
]
EACH = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def links(page: Path) -> list[tuple[Path, str]]:
    """The files that a page links to, each with the section it names (or nothing)."""
    found = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", page.read_text())
    return [((page.parent / file).resolve() if file else page, section) for file, section in found]


def sections(page: Path) -> set[str]:
    """Its headings, as links name them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@EACH
def test_links_lead_somewhere(page):
    for file, section in links(page):
        assert file.exists(), f"{page.name} links to {file}"
        assert not section or section in sections(file), f"{page.name} links to {file.name}#{section}"


def test_every_page_is_reached_from_the_readme():
    reached, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page not in reached:
            reached.add(page)
            left += [file for file, _ in links(page) if file.suffix == ".md"]
    assert not {*PAGES} - reached


@EACH
def test_prose_is_no_wider_than_100_columns(page):
    """Tables, code and the addresses of links may be wider."""
    prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.S | re.M)
    for line in re.sub(r"\]\([^)]*\)", "]", prose).splitlines():
        assert len(line) <= 100 or line.startswith(("|", "    ")), f"{page.name}: {line}"


@EACH
def test_commands_compose(page):
    """The words of every `fit` command shown are accepted and its configuration is complete."""
    text = page.read_text().replace("\\\n", " ")
    commands = re.findall(r"^(?:.*&& \.venv/bin/)?python -m distillkit fit (.+)$", text, re.M)
    commands += re.findall(r"^\| .*\| `fit (.+?)` \|$", text, re.M)
    for command in commands:
        tokens = shlex.split(command, comments=True)
        if any(token.startswith(("--config", "--help", "hydra.")) for token in tokens):
            continue
        words = [token for token in tokens if not token.startswith("-") and "," not in token.partition("[")[0]]
        words = [word if not word.endswith("=...") else word.replace("...", "somewhere") for word in words]
        words = [word for word in cluster.translated(words) if not word.startswith("hydra")]
        handed = config.hand_over(config.compose(words)[0])
        assert handed["model"], command
        if "data=image_folder" in words:  # what the network is made for is what the data become
            folder, made_for = handed["data"]["init_args"], handed["model"]["init_args"].get("event_shape")
            shape = [folder["channels"], folder["resolution"], folder["resolution"]]
            assert made_for in (None, shape), command


def arguments(cls: type) -> set[str]:
    """The arguments of a class, those of its bases included."""
    return {name for base in cls.__mro__ if "__init__" in vars(base) for name in signature(base.__init__).parameters}


def model(method: str, domain: str = "toy") -> type:
    """The class of a method, which may be another one for discrete diffusion."""
    return imported(pairing.pair(domain, method).model._target_)


def test_every_switch_that_fidelity_names_is_there():
    """`model.X` is an argument of a class of its section; `model.student.X` one of Adam's."""
    _, everybody, *sections = re.split(r"^## ", (ROOT / "docs" / "fidelity.md").read_text(), flags=re.M)
    methods = {name: [name] for name in catalogue.groups()["method"]}
    named = {name: text for text in sections for name in re.findall(r"`(\w+)`", text.splitlines()[0])}
    assert named.keys() == methods.keys(), "a section for each method, and for no other"
    for method, text in named.items():
        taken = arguments(model(method)) | arguments(model(method, "discrete"))
        switches = set(re.findall(r"model\.(\w+(?:\.\w+)?)", everybody + text))
        assert len(switches) > 5
        for switch in switches:
            name, _, of = switch.partition(".")
            assert name in taken, f"{method} has no model.{name}"
            assert not of or of in arguments(Adam), f"a role has no {of}"


def unpack(page: str, folder: Path) -> list[list[str]]:
    """Writes the files that a page shows below their names; returns the words of its commands."""
    text = (ROOT / "docs" / page).read_text()
    for name, content in re.findall(
        r"^`([\w/]+\.(?:py|yaml))`[^\n]*(?:\n[^`\n]+)*:\n\n```\w+\n(.*?)```", text, re.S | re.M
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    lines = "".join(blocks(ROOT / "docs" / page, "bash")).splitlines()
    return [shlex.split(line) for line in lines]


def run_from(folder: Path, monkeypatch, *commands: list[str], finish: list[str] = UNMEASURED) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for words in commands:
        assert words[:3] == ["python", "-m", "distillkit"]
        assert front.main([*words[3:], "trainer.max_steps=6", *finish]) == 0, words


def test_the_method_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    run, (*_, listed, place), _ = unpack("add_a_method.md", tmp_path)
    run_from(tmp_path, monkeypatch, [*run, "--out", "run"])
    capsys.readouterr()
    assert front.main([listed, place]) == 0 and "diff_instruct" in capsys.readouterr().out
    assert (tmp_path / "run" / "student" / "student.yaml").is_file()
    recipe = (tmp_path / "run" / "config.yaml").read_text()
    assert "ema_rampup: 0.2" in recipe and "t_init: 4" in recipe  # of the recipe, which nobody named


@pytest.mark.slow
def test_the_method_of_the_docs_passes_the_battery(tmp_path):
    """From its own folder, as the page says it."""
    *_, (_, *words) = unpack("add_a_method.md", tmp_path)
    words = [word.replace("PATH/TO/distillkit", str(ROOT)) for word in words]
    done = subprocess.run([sys.executable, *words, "-q"], cwd=tmp_path, timeout=1800, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"^\d+ passed, \d+ deselected", done.stdout, re.M)


def test_the_domain_of_the_docs_trains_a_teacher_and_a_student(tmp_path, monkeypatch):
    pretrain, distil = unpack("add_a_domain.md", tmp_path)
    run_from(
        tmp_path, monkeypatch, pretrain, [*distil, "--out", "run"], finish=["vars.callbacks.finish.num_samples=64"]
    )
    assert (tmp_path / "run" / "student" / "student.yaml").is_file()
    assert (tmp_path / "run" / "samples").is_dir()
    assert front.main(["sample", "run", "-n", "2"]) == 2  # its data are a class from outside
    assert front.main(["sample", "run", "-n", "2", "--trust", "waves"]) == 0


def test_the_network_of_the_docs_trains_and_samples(tmp_path, monkeypatch, capsys):
    train, (*_, verb, run, number, num, trust, name) = unpack("bring_your_own_network.md", tmp_path)
    run_from(tmp_path, monkeypatch, train)
    assert front.main([verb, run, number, num]) == 2 and f"{trust} {name}" in capsys.readouterr().err
    assert front.main([verb, run, number, num, trust, name]) == 0
    assert next(tmp_path.glob(f"{run}/samples-*/samples.npz")).is_file()


def test_the_teacher_of_the_docs_samples():
    names: dict = {}
    exec(blocks(ROOT / "docs" / "bring_your_own_teacher.md", "python")[0], names)
    assert names["samples"].shape == (4, 3, 16, 16)


def test_the_views_of_the_docs_are_drawn():
    names: dict = {}
    exec(blocks(ROOT / "docs" / "rendering.md", "python")[0], names)
    image, opacity, depth = (names[name] for name in ("image", "opacity", "depth"))
    assert image.shape == (2, 3, 32, 32) and opacity.shape == depth.shape == (2, 1, 32, 32)
    assert image.min() >= 0 and image.max() <= 1 and image[:, :, 0, 0].min() > 0.9 > image[:, :, 16, 16].max()


def test_readme_commands_are_single_lines():
    text = (ROOT / "README.md").read_text()
    for number in (1, 2):
        (block,) = re.findall(rf"<!-- command {number} -->\n```bash\n(.*?)```", text, re.S)
        assert len(block.strip().splitlines()) == 1
