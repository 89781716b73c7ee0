"""Settings of every run of the tests: short garbage collection, the cost of the battery."""

from __future__ import annotations

import gc
import os
import tempfile
from collections import defaultdict
from pathlib import Path

COST = "battery_cost"  # (kind, name, CPU seconds) of a test, among its report's properties


def pytest_configure(config):
    """Keeps no samples, for a test that asks for them twice compares what is made."""
    os.environ["DISTILLKIT_CACHE_LIMIT"] = "0"
    os.environ["DISTILLKIT_CACHE"] = str(Path(tempfile.gettempdir(), "distillkit-tests"))


def pytest_collection_finish(session):
    """Freezes all objects imported so far, so that the collector does not look through them."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """One line for each kind: what one more method, preset or domain adds to the tests."""
    costs: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    reports = [report for group in terminalreporter.stats.values() for report in group]
    for report in reports:
        for key, value in getattr(report, "user_properties", ()) if getattr(report, "when", "") == "teardown" else ():
            if key == COST:
                kind, name, seconds = value
                costs[kind][name] += seconds
    for kind, of in sorted(costs.items()):
        worst = max(of, key=of.get)
        mean = sum(of.values()) / len(of)
        text = f"battery: {kind}: CPU seconds {mean:.1f} on average of {len(of)}, at most {of[worst]:.1f} ({worst})"
        terminalreporter.write_line(text)
