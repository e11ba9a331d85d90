"""Command-line options of the measuring subcommands, and the cases that they select."""

import argparse
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .cases import DTYPES, FORMATS, Case
from .peers import PEERS, TORCH, Peer
from .problems import LAYERS_FILE, load_problems

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Defaults:
    """What a subcommand measures where the command line does not say.

    Attributes:
        dtypes: Names of number formats.
        formats: Names of memory formats.
        names: Parts of the names of the layers of `LAYERS_FILE` to take; none mean every layer.
        peers: What to compare with beside torch.
        sampled: Of the dtypes, those that are measured on one layer of each family only.
        seconds: What the run should take.
    """

    dtypes: tuple[str, ...] = ("f32",)
    formats: tuple[str, ...] = ("contiguous",)
    names: tuple[str, ...] = ()
    peers: tuple[str, ...] = tuple(PEERS)
    sampled: tuple[str, ...] = ()
    seconds: float = 300.0


def add_options(parser: argparse.ArgumentParser, passes: Sequence[str], defaults: Defaults) -> None:
    """Adds the options of a subcommand that measures `passes`. Lists are comma-separated, and their options repeat."""

    def add_list(flag: str, dest: str, valid: Iterable[str], default: list[str], text: str) -> None:
        parse = _list_of(tuple(valid))
        parser.add_argument(
            flag, dest=dest, type=parse, action=_ExtendAction, default=default, metavar="LIST", help=text
        )

    text = f"where (default: {DEVICES[0]}); the defaults below are those of this device"
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[0], help=text)
    for flag, dest, valid, default, text in (
        ("--dtype", "dtypes", DTYPES, list(defaults.dtypes), "number formats"),
        ("--format", "formats", FORMATS, list(defaults.formats), "memory formats"),
        ("--pass", "passes", passes, list(passes), "passes"),
        ("--peer", "peers", PEERS, list(defaults.peers), "what to compare with; torch is always there"),
    ):
        described = f"{text}: {', '.join(valid)} (default: {', '.join(default)})"
        add_list(flag, dest, valid, default, described)
    usual = ", ".join(defaults.names) or "every layer"
    add_list("--name", "names", (), [], f"only layers whose name contains one of these; all for all (default: {usual})")
    parser.set_defaults(usual_names=defaults.names)
    add_list("--family", "families", (), [], "only families whose name contains one of these")
    parser.add_argument("--layers-file", type=Path, default=LAYERS_FILE, metavar="FILE", help="layers to measure")
    # --dtype makes a list of its own: a dtype that is asked for is measured on every layer.
    parser.set_defaults(sampled=defaults.sampled, default_dtypes=parser.get_default("dtypes"))
    text = "time to aim at (default: %(default)s)"
    parser.add_argument("--seconds", type=positive(float), default=defaults.seconds, help=text)
    parser.add_argument("--rounds", type=positive(int), default=30, help="rounds at most (default: %(default)s)")
    parser.add_argument("--threads", type=positive(int), help="CPU threads (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")


def select_cases(arguments: argparse.Namespace) -> tuple[list[Case], list[str]]:
    """The cases that the options ask for and torch knows, layer by layer, and what was left out.

    Args:
        arguments: What `add_options` parsed.

    Returns:
        The cases; and a sentence for each reason to leave some out.

    Raises:
        ValueError: There are none.
    """

    def chosen(value: str, parts: Sequence[str]) -> bool:
        return not parts or any(part in value for part in parts)

    names, families = arguments.names, arguments.families
    if not names and not families and arguments.layers_file == LAYERS_FILE:
        names = arguments.usual_names
    if "all" in names:
        names = []
    device = torch.device(arguments.device)
    problems = [
        problem
        for problem in load_problems(arguments.layers_file, device.type)
        if chosen(problem.name, names) and chosen(problem.family, families)
    ]
    # Fewest groups first: torch computes grouped float64 convolutions group by group, in seconds.
    costs = {problem: (problem.groups, problem.work("forward").flop) for problem in problems}
    sample = {problem.family: problem for problem in sorted(problems, key=costs.__getitem__, reverse=True)}
    sampled = arguments.sampled if arguments.dtypes is arguments.default_dtypes else ()
    cases, left_out = [], Counter[str]()
    for problem, dtype, memory_format, pass_ in itertools.product(
        problems, arguments.dtypes, arguments.formats, arguments.passes
    ):
        case = Case(problem, pass_, DTYPES[dtype], memory_format, device)
        if reason := case.refusal():
            left_out[reason] += 1
        elif dtype in sampled and problem is not sample[problem.family]:
            left_out[f"{dtype} is measured on one layer of each family, with --dtype {dtype} on all"] += 1
        else:
            cases.append(case)
    if not cases:
        why = next(iter(left_out), f"{arguments.layers_file.name} has no layer of such a name and family")
        raise ValueError(f"the options must leave at least one case, but got none: {why}")
    return cases, [f"{count} cases left out: {reason}" for reason, count in left_out.items()]


def select_peers(arguments: argparse.Namespace, cases: Sequence[Case]) -> list[Peer]:
    """The peers beside torch that the options ask for and that can do any of the cases."""
    others = (PEERS[name] for name in arguments.peers if name != TORCH.name)
    return [peer for peer in others if any(peer.refusal(case) is None for case in cases)]


class _ExtendAction(argparse.Action):
    """Adds to a list; the first use replaces the default, where argparse's own "extend" would add to it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest)
        chosen = [*([] if before is self.default else before), *(values or ())]
        setattr(namespace, self.dest, list(dict.fromkeys(chosen)))


def _list_of(valid: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        values = [value for value in text.split(",") if value]
        for value in values:
            if valid and value not in valid:
                raise argparse.ArgumentTypeError(f"must be among {', '.join(valid)}, but got {value}")
        return values

    return parse


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """A command line's number that must be positive."""

    def parse(text: str) -> float:
        if kind(text) <= 0:
            raise argparse.ArgumentTypeError(f"must be positive, but got {text}")
        return kind(text)

    return parse
