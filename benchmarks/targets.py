"""What the ratios should be, and by how much they are not: from the entries of ``cases`` in a results file."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .problems import COLUMN_PASSES, CONVOLUTION_PASSES
from .results import geometric_mean

Case = dict[str, Any]
"""An entry of ``cases``."""

GROUPED_FAMILIES = ("depthwise", "grouped")
"""How the names of families with more than one group begin."""


@dataclass(frozen=True)
class Target:
    """Bounds on torch's time / our time over some cases.

    Attributes:
        name: Of these cases.
        mean: What their geometric mean should be at least.
        least: What each of them should be at least.
        covers: Whether a case is one of them.
    """

    name: str
    mean: float
    least: float
    covers: Callable[[Case], bool]


def _convolutions(dtype: str) -> Callable[[Case], bool]:
    return lambda case: case["dtype"] == dtype and case["pass"] in CONVOLUTION_PASSES


TARGETS = (
    Target("f32", 1.3, 0.9, _convolutions("f32")),
    Target("bf16", 1.3, 0.85, _convolutions("bf16")),
    Target("f64", 3.0, 1.0, _convolutions("f64")),
    Target(
        "depthwise and grouped",
        3.0,
        1.0,
        lambda case: case["family"].startswith(GROUPED_FAMILIES) and case["pass"] in CONVOLUTION_PASSES,
    ),
    Target("unfold and fold", 2.0, 1.0, lambda case: case["pass"] in COLUMN_PASSES),
)
"""On a CPU, torch's own op beside ours; each over every layer and both memory formats."""


def target_json(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """The results file's ``targets``: per target its bounds, and what was found (see `_extent`)."""
    measured = list(cases)
    found = [_extent([case for case in measured if target.covers(case)], target.least) for target in TARGETS]
    return [
        {
            "name": target.name,
            "mean_wanted": target.mean,
            "least_wanted": target.least,
            "reached": None if not extent["cases"] else _reached(target, extent),
            **extent,
        }
        for target, extent in zip(TARGETS, found, strict=True)
    ]


def overview_json(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """The results file's ``overview``: the same per family, per dtype, per format, per pass and of all cases."""
    measured = list(cases)
    groups: dict[tuple[str, str], list[Case]] = {}
    for key in ("family", "dtype", "format", "pass"):
        for case in sorted(measured, key=lambda case: str(case[key]) if key == "family" else ""):
            groups.setdefault((key, case[key]), []).append(case)
    groups["all", "all"] = measured
    return [{"by": by, "name": name, **_extent(members)} for (by, name), members in groups.items()]


def target_lines(targets: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A line for each entry of ``targets``."""
    for target in targets:
        if not target["cases"]:
            yield f"target {target['name']}: not measured in this run"
            continue
        mean = _against(target["ratio"], target["mean_wanted"])
        lowest = _against(target["lowest"], target["least_wanted"])
        line = f"target {target['name']}: {'reached' if target['reached'] else 'MISSED'}; mean {mean}"
        line += f"; lowest {lowest}, {target['lowest_case']}; {target['below']} of {target['cases']} cases below"
        if target["not_timed"]:
            line += f"; {target['not_timed']} more wrong, failed or skipped"
        yield line


def _extent(cases: list[Case], least: float | None = None) -> dict[str, Any]:
    """How far the ratios of some cases reach.

    Returns:
        ``cases``: how many were timed, and ``not_timed``: how many were wrong, failed or skipped; ``ratio``: the
        geometric mean; ``lowest``, and ``lowest_case``: its label; with `least`, ``below``: how many are lower.
    """
    timed = [case for case in cases if case["status"] == "ok"]
    ratios = [case["peers"]["torch"]["ratio"]["median"] for case in timed]
    lowest = min(range(len(ratios)), key=ratios.__getitem__, default=None)
    extent = {
        "cases": len(timed),
        "not_timed": len(cases) - len(timed),
        "ratio": geometric_mean(ratios),
        "lowest": None if lowest is None else ratios[lowest],
        "lowest_case": None if lowest is None else _label(timed[lowest]),
    }
    return extent if least is None else extent | {"below": sum(ratio < least for ratio in ratios)}


def _reached(target: Target, extent: dict[str, Any]) -> bool:
    spoiled = any(not math.isfinite(extent[key]) for key in ("ratio", "lowest"))
    return not spoiled and extent["ratio"] >= target.mean and not extent["below"] and not extent["not_timed"]


def _label(case: Case) -> str:
    return " ".join(case[key] for key in ("name", "dtype", "format", "pass"))


def _against(found: float, wanted: float) -> str:
    short = f", short of it by {wanted - found:.2f}" if found < wanted else ""
    return f"{found:.2f} of {wanted:g}{short}"
