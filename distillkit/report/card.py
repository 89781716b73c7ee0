"""The model card of a student or a teacher, with the parts that it shares with the report."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from distillkit.files import write_text
from distillkit.report.quality import quality_table, shortfalls, verdict
from distillkit.report.sounds import sounds_in

NAMED = 8  # classes that a card names, at most
VARIETY = ("recall", "coverage")  # metrics that fall when samples become alike
_LICENSES = {"These weights": "", "The teacher": "teacher_", "The data": "data_"}


def write_card(
    folder: Path, kind: str, config: dict[str, Any], evaluation: dict[str, Any] | None, command: str | None
) -> None:
    """Write README.md, the model card, into a student or teacher folder.

    Args:
        folder: the folder of the weights; its samples.png is shown if there is one, and sounds are
            linked.
        kind: "student" or "teacher".
        config: student.yaml or teacher.yaml as a dict; its `license` and `data_license` are quoted.
        evaluation: evaluation.json as a dict.
        command: the command that made the weights.
    """
    if kind not in ("student", "teacher"):
        raise ValueError(f'kind must be "student" or "teacher", got {kind!r}.')
    folder, evaluation = Path(folder), evaluation or {}
    facts = facts_of({}, config, evaluation)
    card = template("card.md.j2").render(
        title=_title(kind, facts, config.get("num_steps")),
        name=folder.resolve().name,
        kind=kind,
        facts=facts,
        config=config,
        classes=classes_of(config),
        evaluation=evaluation,
        verdict=verdict(evaluation, config),
        shortfalls=shortfalls(evaluation),
        table=quality_table(evaluation),
        variety=[name for name in VARIETY if name in evaluation.get("better", {})],
        protocol=evaluation.get("protocol", {}),
        picture=(folder / "samples.png").is_file(),
        sounds=[path.name for path in sounds_in(folder)],
        licenses={of: either(config, f"{key}license", f"{key}licence") for of, key in _LICENSES.items()},
        command=command,
    )
    write_text(folder / "README.md", card)


def facts_of(config: dict[str, Any], student: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    """Domain, method, its class, teacher and version, from the files that know them.

    The method is the word that was typed, or the name of its class where no word is known. Its
    class is None where it adds nothing to that.
    """
    model = config.get("model")
    mechanism = (path_of(model) or student.get("mechanism") or student.get("method") or "").rpartition(".")[2] or None
    method = config.get("method") or student.get("method") or mechanism
    protocol = evaluation.get("protocol", {})
    teacher = protocol.get("teacher") or student.get("teacher")
    if isinstance(teacher, dict):
        teacher = teacher.get("id")
    return {
        "domain": student.get("domain") or protocol.get("evaluator", {}).get("domain"),
        "method": method,
        "mechanism": mechanism if mechanism and mechanism.lower() != str(method).replace("_", "").lower() else None,
        "teacher": teacher or (path_of(arguments_of(model).get("teacher")) or "").rpartition(".")[2] or None,
        "version": student.get("distillkit") or protocol.get("distillkit"),
    }


def classes_of(config: dict[str, Any]) -> dict[str, str]:
    """What the student takes for each of its conditions that are classes, in words."""
    found, prompts = {}, config.get("prompts")
    for condition, num in (config.get("classes") or {}).items():
        names = (config.get("names") or {}).get(condition) or ()
        made = [f"{i} {name}" for i, name in enumerate(names) if not prompts or name in prompts]
        more = f" and {len(made) - NAMED} more" if len(made) > NAMED else ""
        called = f": {', '.join(made[:NAMED])}{more}" if made else ""
        found[condition] = f"the class of each sample, a number from 0 to {num - 1}{called}"
    return found


def _title(kind: str, facts: dict[str, Any], steps: Any) -> str:
    """A title such as "image-sid: one-step student of digits"."""
    run = "-".join(filter(None, (facts["domain"], (facts["method"] or "").lower())))
    calls = {1: "one-step ", None: ""}.get(steps, f"{steps}-step ") if kind == "student" else ""
    of = f" of {facts['teacher']}" if kind == "student" and facts["teacher"] else ""
    return f"{run}: {calls}{kind}{of}" if run else f"{calls}{kind}{of}".capitalize()


def path_of(node: Any) -> str | None:
    """The class path of a config node."""
    return node if isinstance(node, str) else either(node, "class_path", "_target_") if isinstance(node, dict) else None


def arguments_of(node: Any) -> dict[str, Any]:
    return (node.get("init_args", node) or {}) if isinstance(node, dict) else {}


def either(config: dict[str, Any], *keys: str) -> Any:
    return next((config[key] for key in keys if config.get(key)), None)


def markdown(text: Any) -> str:
    """Text as one line that Markdown shows literally, without HTML, links, pictures or emphasis."""
    line = re.sub(r"([\\`*_{}\[\]<>#!|~&@])", r"\\\1", " ".join(str(text).split()))
    return re.sub(r":(?=\S)|(?<=\bwww)\.", r"\\\g<0>", line)  # addresses become links by themselves


def template(name: str) -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"words": markdown, "code": lambda text: " ".join(str(text).replace("`", "'").split())}
    return environment.get_template(name)
