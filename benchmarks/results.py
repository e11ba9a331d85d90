"""What a run yields: per case, per family, and as JSON. Milliseconds and bytes here; seconds everywhere else."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from .accuracy import Error
from .cases import Case
from .peers import OURS, Peer
from .timing import Quartiles

SCHEMA = 1
"""Raised when a key of the results file changes its meaning."""


@dataclass
class Side:
    """What was measured of one implementation in one case.

    Attributes:
        peer: The implementation.
        refusal: Why it was left out, or None.
        error: Against the float64 result.
        extra_bytes: Peak memory above operands and result; None where it cannot be measured.
        seconds: Time of one call. Ours is that of the comparison with torch.
        ratio: Its time / our time, round by round; None for ourselves.
        rounds: How many rounds that was.
    """

    peer: Peer
    refusal: str | None = None
    error: Error | None = None
    extra_bytes: int | None = None
    seconds: Quartiles | None = None
    ratio: Quartiles | None = None
    rounds: int = 0


@dataclass
class CaseResult:
    """What was measured in one case.

    Attributes:
        case: The case.
        floor_seconds: See `benchmarks.ceilings`.
        status: ``"ok"``; ``"wrong"`` (our error is above the bound; not timed); ``"failed"`` (our op raised);
            ``"skipped"`` (torch's own op cannot do it, so there is nothing to compare with).
        message: Why it is not ok.
        bound: What our error may be.
        ours: unfoldconv.
        theirs: The peers, torch first.
    """

    case: Case
    floor_seconds: float
    status: str = "ok"
    message: str = ""
    bound: Error | None = None
    ours: Side = field(default_factory=lambda: Side(OURS))
    theirs: list[Side] = field(default_factory=list)

    @property
    def times_floor(self) -> float | None:
        """Our time as a multiple of the floor."""
        return self.ours.seconds.median / self.floor_seconds if self.ours.seconds else None

    @property
    def flop_rate(self) -> float | None:
        """Our FLOPs per second, by the customary count."""
        flop = self.case.problem.work(self.case.pass_).flop * self.case.dtype.flop_factor
        return flop / self.ours.seconds.median if self.ours.seconds else None

    @property
    def byte_rate(self) -> float | None:
        """Our bytes per second, operands and result counted once."""
        moved = self.case.problem.work(self.case.pass_).elements * self.case.dtype.stored.itemsize
        return moved / self.ours.seconds.median if self.ours.seconds else None

    def side(self, name: str) -> Side | None:
        """The peer of that name, if it took part."""
        return next((side for side in self.theirs if side.peer.name == name), None)


def case_json(result: CaseResult) -> dict[str, Any]:
    """One entry of the results file's ``cases``. Every case has every key; what was not measured is null."""
    case = result.case
    problem = asdict(case.problem)
    work = case.problem.work(case.pass_)
    factor = case.dtype.flop_factor
    return {
        "name": problem.pop("name"),
        "family": problem.pop("family"),
        "dtype": case.dtype.name,
        "format": case.memory_format,
        "pass": case.pass_,
        "status": result.status,
        "message": result.message,
        "problem": problem,
        "flop": work.flop * factor,
        "valid_flop": work.valid_flop * factor,
        "bytes": work.elements * case.dtype.stored.itemsize,
        "columns_bytes": case.columns_bytes,
        "floor_ms": result.floor_seconds * 1e3,
        "times_floor": result.times_floor,
        "flop_per_second": result.flop_rate,
        "bytes_per_second": result.byte_rate,
        "error_bound": asdict(result.bound) if result.bound else None,
        "ours": _side_json(result.ours),
        "peers": {side.peer.name: _side_json(side) for side in result.theirs},
    }


def case_key(case: dict[str, Any]) -> tuple[str, ...]:
    """What identifies an entry of ``cases`` across results files."""
    return tuple(case[key] for key in ("name", "dtype", "format", "pass"))


def geometric_mean(values: Iterable[float]) -> float | None:
    """The exponential of the mean logarithm; None of no values."""
    logarithms = [math.log(value) for value in values]
    return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else None


def summary_json(cases: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means of peer time / our time, per dtype, format, pass and family, from the entries of ``cases``.

    In each entry ``pass`` or ``family`` may be ``"all"``; ``ratio`` has one mean per peer that took part.
    """
    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for case in cases:
        if case["status"] == "ok":
            for family in (case["family"], "all"):
                for pass_ in (case["pass"], "all"):
                    groups.setdefault((case["dtype"], case["format"], pass_, family), []).append(case)
    return [
        {
            **dict(zip(("dtype", "format", "pass", "family"), key, strict=True)),
            "cases": len(members),
            "ratio": {name: _mean_ratio(members, name) for name in members[0]["peers"]},
            "times_floor": geometric_mean(case["times_floor"] for case in members),
        }
        for key, members in groups.items()
    ]


def _mean_ratio(cases: list[dict[str, Any]], peer: str) -> float | None:
    sides = (case["peers"][peer] for case in cases)
    return geometric_mean(side["ratio"]["median"] for side in sides if side["ratio"] is not None)


def _side_json(side: Side) -> dict[str, Any]:
    milliseconds = {key: value * 1e3 for key, value in asdict(side.seconds).items()} if side.seconds else None
    return {
        "refusal": side.refusal,
        "error": asdict(side.error) if side.error else None,
        "extra_bytes": side.extra_bytes,
        "ms": milliseconds,
        "ratio": asdict(side.ratio) if side.ratio else None,
        "rounds": side.rounds,
    }
