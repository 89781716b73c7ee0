"""What a student does worse than its teacher, by what it is about."""

from typing import Any

from distillkit.report.numbers import loss_of, metric_of, noise, number, pretty, row_of

# What a metric is about, by its name or by words in it, of which the longest counts; else looks.
GROUPS = {
    "variety": ("coverage", "recall", "spread", "diversity", "within", "clusters", "distinct", "entropy", "zeros")
    + ("modes_found", "weight_error", "mode_std_error", "std_error", "opacity_spread"),
    "copies": ("nearest_train", "copied", "copies", "novelty"),
    "obedience": ("accuracy", "agreement", "obedience", "rank", "r_precision", "consistency", "clip", "clap_score")
    + ("psnr_to_solid", "onset_f", "pitch_error", "first_error", "janus"),
    "looks": ("nearest_accuracy", "hit_accuracy", "bond_spread"),
}


def shortfalls(evaluation: dict[str, Any]) -> dict[str, list[str]]:
    """What the student is more than a tenth worse in than its teacher at its best, beyond noise.

    Texts by group of metrics, see `GROUPS`. Values outside of the range have a sentence of their
    own.
    """
    student, best, real = (row_of(evaluation.get("rows", []), which) for which in ("student", "best", "real"))
    found: dict[str, list[str]] = {}
    for name, better in evaluation.get("better", {}).items():
        ours, theirs = (loss_of(row, name, better, real) for row in (student, best))
        if name.startswith("outside") or ours is None or theirs is None:
            continue
        if ours - theirs > max(0.1 * abs(theirs), noise(best, name)):
            target = f" (real data {number(metric_of(real, name))})" if better == "target" else ""
            text = f"{number(metric_of(student, name))} against {number(metric_of(best, name))}"
            found.setdefault(group_of(name), []).append(f"{pretty(name)} {text}{target}")
    return {group: found[group] for group in ("looks", "variety", "copies", "obedience") if group in found}


def behind(evaluation: dict[str, Any]) -> str:
    """The shortfalls as a sentence; empty if there are none."""
    parts = [f"{group}: {', '.join(texts)}" for group, texts in shortfalls(evaluation).items()]
    return f"More than a tenth behind the teacher in {'; in '.join(parts)}." if parts else ""


def group_of(metric: str) -> str:
    """The group of `GROUPS` that a metric belongs to."""
    known = {word: group for group, words in GROUPS.items() for word in words if f"_{word}_" in f"_{metric}_"}
    return known[max(known, key=len)] if known else "looks"
