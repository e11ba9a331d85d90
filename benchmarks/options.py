"""Command-line options of the measuring subcommands, and the cases that they select."""

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .cases import DTYPES, FORMATS, Case
from .peers import PEERS, TORCH, Peer
from .problems import LAYERS_FILE, Problem, load_problems


def add_options(parser: argparse.ArgumentParser, passes: Sequence[str]) -> None:
    """Adds the options of a subcommand that measures `passes`."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default: cpu)")
    for flag, dest, valid, default, text in (
        ("--dtype", "dtypes", DTYPES, ["f32"], "number formats"),
        ("--format", "formats", FORMATS, ["contiguous"], "memory formats"),
        ("--pass", "passes", passes, list(passes), "passes"),
        ("--peer", "peers", PEERS, list(PEERS), "what to compare with; torch is always there"),
    ):
        described = f"{text}: {', '.join(valid)} (default: {', '.join(default)})"
        parser.add_argument(flag, dest=dest, action=_ListAction, valid=valid, default=default, help=described)
    parser.add_argument("--name", action=_ListAction, default=[], help="only layers whose name contains one of these")
    parser.add_argument("--family", action=_ListAction, default=[], help="only families, in the same way")
    parser.add_argument("--layers-file", type=Path, default=LAYERS_FILE, metavar="FILE", help="layers to measure")
    parser.add_argument("--seconds", type=_positive(float), default=300.0, help="time to aim at (default: %(default)s)")
    parser.add_argument("--rounds", type=_positive(int), default=30, help="rounds at most (default: %(default)s)")
    parser.add_argument("--threads", type=_positive(int), help="CPU threads (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")


def select_cases(arguments: argparse.Namespace, suits: Callable[[Problem], bool]) -> list[Case]:
    """The cases that the options ask for and torch knows, layer by layer.

    Args:
        arguments: What `add_options` parsed.
        suits: Which layers the subcommand can measure.

    Raises:
        ValueError: There are none.
    """

    def chosen(value: str, parts: Sequence[str]) -> bool:
        return not parts or any(part in value for part in parts)

    device = torch.device(arguments.device)
    problems = [
        problem
        for problem in load_problems(arguments.layers_file, device.type)
        if suits(problem) and chosen(problem.name, arguments.name) and chosen(problem.family, arguments.family)
    ]
    cases = [
        Case(problem, pass_, DTYPES[dtype], memory_format, device)
        for problem, dtype, memory_format, pass_ in itertools.product(
            problems, arguments.dtypes, arguments.formats, arguments.passes
        )
    ]
    known = [case for case in cases if case.refusal() is None]
    if not known:
        refusals = (case.refusal() for case in cases)
        why = next(refusals, f"{arguments.layers_file.name} has no layer of such a name and family")
        raise ValueError(f"the options must leave at least one case, but got none: {why}")
    return known


def select_peers(arguments: argparse.Namespace) -> list[Peer]:
    """The peers beside torch that the options ask for."""
    return [PEERS[name] for name in arguments.peers if name != TORCH.name]


class _ListAction(argparse.Action):
    """A comma-separated list of valid values; repeating the option extends the list, the first use replaces the default."""

    def __init__(self, *, valid: Sequence[str] = (), **keywords: Any) -> None:
        super().__init__(metavar="LIST", **keywords)
        self._valid = tuple(valid)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest)
        added = [value for value in values.split(",") if value]
        for value in added:
            if self._valid and value not in self._valid:
                raise argparse.ArgumentError(self, f"must be among {', '.join(self._valid)}, but got {value}")
        setattr(namespace, self.dest, list(dict.fromkeys([*([] if before is self.default else before), *added])))


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def positive(text: str) -> float:
        if kind(text) <= 0:
            raise argparse.ArgumentTypeError(f"must be positive, but got {text}")
        return kind(text)

    return positive
