"""``python -m benchmarks compare OLD NEW``: two results files side by side.

Times of two runs differ by what the machine was doing as well. So beside the change of our time stands the change of
torch's, which should be one: where it is not, the machine changed, and the change of (torch / ours) is what to believe.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .results import SCHEMA, case_key, geometric_mean

HEADINGS = ("case", "old ms", "new ms", "old/new", "torch old/new", "torch/ours old", "torch/ours new")


def compare(old_path: Path, new_path: Path, console: Console) -> int:
    """Prints a line per case that both files timed, and geometric means.

    Args:
        old_path: A results file.
        new_path: Another.
        console: Where to print.

    Returns:
        The exit status: 1 if they have no case in common, else 0.

    Raises:
        ValueError: A file is not of this version of the format.
    """
    old, new = (_timed_cases(path) for path in (old_path, new_path))
    common = [key for key in old if key in new]
    if not common:
        console.print("the two files have no timed case in common", style="bold red")
        return 1
    table = Table(title="above one: new is faster", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "case" else "right")
    rows = [_row(old[key], new[key]) for key in common]
    for key, row in zip(common, rows, strict=True):
        table.add_row(" ".join(key), *(f"{value:.3f}" for value in row))
    table.add_section()
    means = [geometric_mean(column) or 0.0 for column in list(zip(*rows, strict=True))[2:]]
    table.add_row(f"geometric mean of {len(common)}", "", "", *(f"{mean:.3f}" for mean in means))
    console.print(table)
    for name, keys in (("old", old.keys() - new.keys()), ("new", new.keys() - old.keys())):
        if keys:
            console.print(f"only in {name}: {_joined(keys)}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _timed_cases(path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    data = json.loads(path.read_text())
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"{path.name} must be a results file of schema {SCHEMA}, but got another")
    return {case_key(case): case for case in data["cases"] if case["status"] == "ok"}


def _row(old: dict[str, Any], new: dict[str, Any]) -> tuple[float, ...]:
    (old_ours, old_torch), (new_ours, new_torch) = (
        (case["ours"]["ms"]["median"], case["peers"]["torch"]["ms"]["median"]) for case in (old, new)
    )
    ratios = (case["peers"]["torch"]["ratio"]["median"] for case in (old, new))
    return (old_ours, new_ours, old_ours / new_ours, old_torch / new_torch, *ratios)


def _joined(keys: Iterable[tuple[str, ...]]) -> str:
    return ", ".join(" ".join(key) for key in sorted(keys))
