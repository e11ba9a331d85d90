"""A library built with AddressSanitizer and UndefinedBehaviorSanitizer, and tests that run on it; a first fault aborts.

Of the instruction sets the best one runs: the engines around the inner loops are the same for all, and the inner loops
are one source.
"""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import get_cxx_compiler

from unfoldconv._build import Profile, exclusive
from unfoldconv._build.library import build_library
from unfoldconv._build.recipe import source_files, write_registration

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = "-fsanitize=address,undefined"
SANITIZED = Profile(
    compile=(SANITIZE, "-fno-sanitize-recover=undefined", "-fno-wrapv", "-fno-omit-frame-pointer", "-O1", "-g1"),
    link=(SANITIZE,),
)


def build(root: Path, folder: Path) -> tuple[Path, dict[Path, Path]]:
    """Returns the library of the sources below `root`, and the object of each source."""
    library = folder / "sanitized.so"
    sources = source_files(root, root.rglob("*"), cuda=False, python_module=False)
    with exclusive(folder, lambda: None):
        write_registration(folder, "unfoldconv", None)
        build_library(library, sources, folder, profile=SANITIZED, toolkit=None, include=[root, folder])
    return library, {source: folder / f"{source.stem}.o" for source in sources}


def run_sanitized(*arguments: str | Path, library: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs Python with the run-time libraries of the sanitizers, and the package bound to `library`."""
    compiler = shlex.split(get_cxx_compiler())
    preloaded = []
    for name in ("libasan.so", "libstdc++.so.6"):
        path = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not Path(path).is_absolute():
            pytest.skip(f"{compiler[0]} has no {name}: no sanitizers here")
        preloaded.append(path)
    environment = os.environ | {
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(ROOT),
        "UNFOLDCONV_TEST_ISAS": "best",
    }
    if library is not None:
        environment["UNFOLDCONV_LIBRARY"] = str(library)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def assert_passed(done: subprocess.CompletedProcess[str]) -> None:
    """Shows how the first report begins, which is far above the end: it lists Python's own frames as well."""
    report = re.search(r".*(runtime error|ERROR: AddressSanitizer)(.*\n){1,25}", done.stdout)
    assert done.returncode == 0, f"{report[0] if report else 'no report'}\n...\n{done.stdout[-5_000:]}"


@functools.cache
def library() -> tuple[Path, dict[Path, Path]]:
    """The one of the package, and its objects."""
    return build(ROOT / "csrc", ROOT / "build" / "sanitizers")


def assert_tests_pass(*files: Path, selection: str, library: Path) -> None:
    """Runs those tests of the files that pytest's -k selects."""
    # With pytest's usual capture, the report would die with the process.
    options = ["-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-k", selection]
    assert_passed(run_sanitized("-m", "pytest", *options, *files, library=library))
