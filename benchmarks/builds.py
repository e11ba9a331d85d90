"""``python -m benchmarks builds``: how long it takes to build from cold, and after an edit.

Every build is of the CPU's code alone, with folders of its own and without a compiler cache; as many compilers run at a
time as there are processors, or as MAX_JOBS says.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from .hardware import busy_warning, device_name
from .report import print_line, run_facts, write_results

ROOT = Path(__file__).resolve().parents[1]
HEAD = f"{'build':<28} {'seconds':>8} {'goal':>6}"
# What is installed from, beside the sources of the package and of the library.
_PACKAGE_FILES = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
_LOAD = """
import sys, time
import torch, unfoldconv as uc
began = time.perf_counter()
uc.jit.load(sys.argv[1], name="timed")
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Build:
    """What is timed, and within how many seconds it should be done on two idle cores."""

    name: str
    goal: float
    edited: str | None = None


BUILDS = (
    Build("first build of the JIT", 35.0),
    Build("edited engine", 7.0, "cpu/correlate/correlate_lines.cpp"),
    Build("edited kernel body", 15.0, "cpu/kernels/tile.inl.h"),
)
INSTALL = Build("pip install", 75.0)


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the subcommand."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")


def measure_builds(arguments: argparse.Namespace, argv: Sequence[str], console: Console) -> int:
    """Times every build, one after the other, and prints a line for each.

    Args:
        arguments: What `add_build_options` parsed.
        argv: The command line after ``python -m benchmarks``.
        console: Where to print.

    Returns:
        The exit status: 0; a goal that is missed is said, but is no failure.
    """
    data = run_facts("builds", argv, {"jobs": os.environ.get("MAX_JOBS")}, torch.device("cpu"))
    data["builds"] = []
    for line in (device_name(data["hardware"]), busy_warning(), HEAD):
        if line:
            print_line(console, line)
    for build, seconds in times():
        data["builds"].append({"name": build.name, "seconds": seconds, "goal_seconds": build.goal})
        print_line(console, f"{build.name:<28} {seconds:8.1f} {build.goal:6.0f}{'  MISSED' * (seconds > build.goal)}")
    if arguments.json is not None:
        write_results(arguments.json, data)
    return 0


def times() -> Iterator[tuple[Build, float]]:
    """Makes each build in a folder that is gone afterwards, and yields its seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = Path(shutil.copytree(ROOT / "csrc", folder / "csrc"))
        for build in BUILDS:
            if build.edited is not None:
                with open(sources / build.edited, "a") as file:
                    file.write("// edited\n")
            printed = _run([sys.executable, "-c", _LOAD, str(sources)], folder)
            yield build, float(printed.split()[-1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkout = folder / "checkout"
        for part in ("_build_meta", "csrc", "unfoldconv"):
            shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        for part in _PACKAGE_FILES:
            shutil.copy(ROOT / part, checkout)
        command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--target"]
        yield INSTALL, _seconds(lambda: _run([*command, str(folder / "installed"), str(checkout)], folder))


def _run(command: Sequence[str], folder: Path) -> str:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        "TORCH_NO_COMPILER_WRAPPER": "1",
        "CCACHE_DISABLE": "1",
        "UNFOLDCONV_CUDA": "0",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise OSError(f"exit status {done.returncode}: {done.stdout}")
    return done.stdout


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
