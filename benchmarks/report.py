"""What a run shows: a progress bar, one line per case, geometric means; and the results file it writes."""

import datetime
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .cases import Case
from .ceilings import Ceilings
from .hardware import busy_warning, device_name, hardware, versions
from .harness import Observer
from .problems import CONVOLUTION_PASSES
from .results import SCHEMA, CaseResult, Side, case_json, summary_json
from .targets import overview_json, target_json, target_lines

MEBIBYTE = 1 << 20
SHORT_FORMAT = {"contiguous": "contig", "channels_last": "chlast"}


class Report(Observer):
    """Shows a run as it goes and collects what the results file holds.

    Args:
        console: Where to print.
        benchmark: The subcommand.
        arguments: The command line after ``python -m benchmarks``.
        settings: What else the run depended on.
        device: The device of all cases.
    """

    def __init__(
        self, console: Console, benchmark: str, arguments: Sequence[str], settings: dict[str, Any], device: torch.device
    ) -> None:
        self._console = console
        self._progress: tuple[Progress, Any] | None = None
        self._data = run_facts(benchmark, arguments, {"device": device.type, **settings}, device)
        self._data |= {"ceilings": {}, "cases": []}
        self._failures = 0

    def ceilings(self, dtype: str, ceilings: Ceilings) -> None:
        """Shows the ceilings of a dtype."""
        self._data["ceilings"][dtype] = {
            "bytes_per_second": ceilings.bandwidth,
            "flop_per_second": ceilings.flop_rate,
        }
        bandwidth, rate = ceilings.bandwidth / 1e9, ceilings.flop_rate / 1e9
        self._print(f"ceilings {dtype}: {bandwidth:.1f} GB/s, {rate:.1f} GFLOP/s")

    def begin(self, case: Case) -> None:
        """Names the case at the progress bar."""
        if self._progress:
            bar, task = self._progress
            bar.update(task, description=case.label)

    def show(self, results: Iterable[CaseResult], total: int) -> None:
        """Prints each result as it comes, under a progress bar.

        Args:
            results: May be a generator that measures.
            total: How many will come.
        """
        versions_ = self._data["versions"]
        self._print(f"unfoldconv {versions_['unfoldconv']} beside torch {versions_['torch']}", style="bold")
        self._print(device_name(self._data["hardware"]))
        if warning := busy_warning():
            self._print(warning, style="yellow")
        for sentence in self._data["settings"]["left_out"]:
            self._print(sentence)
        with self._bar(total):
            for result in results:
                if not self._data["cases"]:
                    self._print(HEAD, style="bold")
                self._data["cases"].append(case_json(result))
                bad = result.status in ("wrong", "failed")
                self._failures += bad
                self._print(case_line(result), style="bold red" if bad else None)
                if self._progress:
                    bar, task = self._progress
                    bar.advance(task)

    def finish(self, path: Path | None) -> int:
        """Prints the geometric means, says whether the targets are reached, and writes the results file.

        Args:
            path: The results file, or None for none.

        Returns:
            The exit status: 1 if any case was wrong or failed, else 0.
        """
        self._data["summary"] = summary_json(self._data["cases"])
        for table in summary_tables(self._data["summary"]):
            self._console.print(table)
        self._data["overview"] = overview_json(self._data["cases"])
        self._data["targets"] = target_json(self._data["cases"], self._data["settings"]["device"])
        self._console.print(overview_table(self._data["overview"]))
        for line in target_lines(self._data["targets"]):
            self._print(line)
        if self._failures:
            self._print(f"{self._failures} of {len(self._data['cases'])} cases WRONG or FAILED", style="bold red")
        if path is not None:
            write_results(path, self._data)
            self._print(f"results: {path}")
        return int(self._failures > 0)

    @contextmanager
    def _bar(self, total: int) -> Iterator[None]:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        described = TextColumn("{task.description}", markup=False)
        with Progress(*columns, described, console=self._console, disable=not self._console.is_terminal) as bar:
            self._progress = (bar, bar.add_task("", total=total))
            try:
                yield
            finally:
                self._progress = None

    def _print(self, text: str, style: str | None = None) -> None:
        print_line(self._console, text, style)


def run_facts(
    benchmark: str, arguments: Sequence[str], settings: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """What a results file says before its results; see `Report` for the arguments."""
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "settings": settings,
        "versions": versions(),
        "hardware": hardware(device),
    }


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Prints a line as it is, however long."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def write_results(path: Path, data: dict[str, Any]) -> None:
    """Writes a results file, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(results_text(data))


def results_text(data: dict[str, Any]) -> str:
    """The results file: JSON with a line per case, numbers to six digits."""
    blocks = []
    for key, value in data.items():
        if isinstance(value, list):
            lines = ",\n".join(f" {json.dumps(_rounded(item))}" for item in value)
            blocks.append(f"{json.dumps(key)}: [\n{lines}\n]")
        else:
            blocks.append(f"{json.dumps(key)}: {json.dumps(_rounded(value))}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


HEAD = (
    f"{'layer':<20} {'family':<26} {'dtype':<5} {'format':<6} {'pass':<11} {'ours ms':>9} {'torch ms':>9} "
    f"{'torch/ours [quartiles]':>23} {'rate':>12} {'x floor':>8} {'MiB ours':>9} {'torch':>8}  others/ours"
)


def case_line(result: CaseResult) -> str:
    """One line for one case; the columns are those of `HEAD`."""
    case = result.case
    head = (
        f"{case.problem.name:<20} {case.problem.family:<26} {case.dtype.name:<5} "
        f"{SHORT_FORMAT[case.memory_format]:<6} {case.pass_:<11}"
    )
    ours, (torch_side, *others) = result.ours, result.theirs
    if ours.seconds is None or torch_side.seconds is None or torch_side.ratio is None:
        return f"{head} {result.status.upper()}: {result.message}"
    ratio = torch_side.ratio
    rest = "  ".join(_other(side) for side in others)
    return (
        f"{head} {ours.seconds.median * 1e3:9.3f} {torch_side.seconds.median * 1e3:9.3f} "
        f"{ratio.median:8.2f} [{ratio.q1:5.2f}, {ratio.q3:5.2f}] {_rate(result):>12} "
        f"{result.times_floor or 0:8.2f} {_mebibytes(ours):>9} {_mebibytes(torch_side):>8}  {rest}"
    ).rstrip()


def summary_tables(summary: Sequence[dict[str, Any]]) -> Iterator[Table]:
    """One table per dtype and format: families by passes, each cell the geometric mean of torch's time / ours."""
    for dtype, memory_format in dict.fromkeys((entry["dtype"], entry["format"]) for entry in summary):
        entries = {(e["family"], e["pass"]): e for e in summary if (e["dtype"], e["format"]) == (dtype, memory_format)}
        families = sorted({family for family, _ in entries}, key=lambda family: (family == "all", family))
        passes = [pass_ for pass_ in dict.fromkeys(pass_ for _, pass_ in entries) if pass_ != "all"]
        peers = list(entries["all", "all"]["ratio"])
        table = Table(title=f"peer time / our time, geometric means, {dtype}, {memory_format}", title_justify="left")
        table.add_column("family")
        measured = (*(f"torch {pass_}" for pass_ in passes), *(f"{peer} all" for peer in peers))
        for heading in ("cases", *measured, "x floor"):
            table.add_column(heading, justify="right")
        for family in families:
            whole = entries[family, "all"]
            parts = (entries.get((family, pass_)) for pass_ in passes)
            cells = [part and part["ratio"]["torch"] for part in parts]
            cells += [*whole["ratio"].values(), whole["times_floor"]]
            if family == "all":
                table.add_section()
            table.add_row(family, str(whole["cases"]), *("-" if cell is None else f"{cell:.2f}" for cell in cells))
        yield table


def overview_table(overview: Sequence[dict[str, Any]]) -> Table:
    """A row per family, dtype, format, pass and for all: the geometric mean of torch's time / ours, and the lowest."""
    table = Table(title="torch's time / our time", title_justify="left")
    for heading in ("by", "of", "cases", "mean", "lowest", "lowest of"):
        table.add_column(heading, justify="left" if heading in ("by", "of", "lowest of") else "right")
    by = None
    for entry in overview:
        if entry["by"] != by:
            table.add_section()
            by = entry["by"]
        numbers = ("-" if entry[key] is None else f"{entry[key]:.2f}" for key in ("ratio", "lowest"))
        table.add_row(entry["by"], entry["name"], str(entry["cases"]), *numbers, entry["lowest_case"] or "-")
    return table


def _mebibytes(side: Side) -> str:
    return "-" if side.extra_bytes is None else f"{side.extra_bytes / MEBIBYTE:.1f}"


def _rate(result: CaseResult) -> str:
    """What bounds the pass: arithmetic of a convolution, bytes of unfolding and folding."""
    if result.case.pass_ in CONVOLUTION_PASSES:
        return f"{(result.flop_rate or 0) / 1e9:.1f} GF/s"
    return f"{(result.byte_rate or 0) / 1e9:.1f} GB/s"


def _other(side: Side) -> str:
    if side.ratio is None:
        return f"{side.peer.title} -"
    return f"{side.peer.title} {side.ratio.median:.2f}, {_mebibytes(side)} MiB"
