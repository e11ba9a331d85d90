"""What the ratios should be, and by how much they are not: from the entries of ``cases`` in a results file."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .cases import FORMATS
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


Covers = Callable[[Case], bool]


def _convolutions(*families: str, dtypes: tuple[str, ...] = (), memory_format: str | None = None) -> Covers:
    """The passes of convolutions; of families whose names begin so, of dtypes and of a format, where they are told."""
    return lambda case: (
        case["pass"] in CONVOLUTION_PASSES
        and (not families or case["family"].startswith(families))
        and (not dtypes or case["dtype"] in dtypes)
        and memory_format in (None, case["format"])
    )


def _columns(case: Case) -> bool:
    return case["pass"] in COLUMN_PASSES


# On CUDA no case may be slower than this, whatever the mean of its kind.
_LEAST_ON_CUDA = 0.35

TARGETS = {
    "cpu": (
        Target("f32", 1.3, 0.9, _convolutions(dtypes=("f32",))),
        Target("bf16", 1.3, 0.85, _convolutions(dtypes=("bf16",))),
        Target("f64", 3.0, 1.0, _convolutions(dtypes=("f64",))),
        Target("depthwise and grouped", 3.0, 1.0, _convolutions(*GROUPED_FAMILIES)),
        Target("unfold and fold", 2.0, 1.0, _columns),
    ),
    "cuda": tuple(
        Target(name, mean, _LEAST_ON_CUDA, covers)
        for name, mean, covers in (
            ("depthwise, 3 to 7 taps a side", 1.3, _convolutions("depthwise_small", "depthwise_mid", "depthwise_1d")),
            ("depthwise, 13 to 31 taps a side", 3.0, _convolutions("depthwise_large")),
            ("few channels per group", 1.5, _convolutions("grouped_few_channels")),
            ("contiguous", 1.0, _convolutions(memory_format=FORMATS[0])),
            ("conv1d and conv3d", 1.0, _convolutions("conv1d", "dense3d", "video3d")),
            ("f32", 1.0, _convolutions(dtypes=("f32",))),
            ("f64", 1.0, _convolutions(dtypes=("f64",))),
            (
                "dense bf16 channels_last",
                0.6,
                _convolutions("dense2d", dtypes=("bf16",), memory_format="channels_last"),
            ),
            ("unfold and fold", 1.5, _columns),
        )
    ),
}
"""Per device, torch's own op beside ours; each over every layer and both memory formats where it does not say."""


def target_json(cases: Iterable[Case], device: str) -> list[dict[str, Any]]:
    """The results file's ``targets``: per target of a device its bounds, and what was found (see `_extent`)."""
    measured, targets = list(cases), TARGETS[device]
    found = [_extent([case for case in measured if target.covers(case)], target.least) for target in targets]
    return [
        {
            "name": target.name,
            "mean_wanted": target.mean,
            "least_wanted": target.least,
            "reached": None if not extent["cases"] else _reached(target, extent),
            **extent,
        }
        for target, extent in zip(targets, found, strict=True)
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
