"""The op tests on a library built with AddressSanitizer and UndefinedBehaviorSanitizer; they abort at a first fault."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import get_cxx_compiler

from amx.build import SOURCES, build_modelled
from unfoldconv._build import Profile, exclusive
from unfoldconv._build.library import build_library
from unfoldconv._build.recipe import source_files, write_registration

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitizers"
OP_TESTS = [
    "test_columns.py",
    "test_patches.py",
    "test_depthwise.py",
    "test_grouped.py",
    "test_convolution.py",
    "test_engines.py",
    "test_errors.py",
    "test_fuzz.py",
]
SANITIZE = "-fsanitize=address,undefined"
SANITIZED = Profile(
    compile=(SANITIZE, "-fno-sanitize-recover=undefined", "-fno-wrapv", "-fno-omit-frame-pointer", "-O1", "-g1"),
    link=(SANITIZE,),
)

# Faults of the kinds that the kernels could have, in memory that torch has allocated.
FAULTS = r"""
#define PUBLIC extern "C" __attribute__((visibility("default")))
PUBLIC float element(const float* data, long index) { return data[index]; }
PUBLIC int sum(int left, int right) { return left + right; }
PUBLIC int quotient(int left, int right) { return left / right; }
"""
USE_FAULTS = """
import ctypes, sys, torch
library = ctypes.CDLL(sys.argv[1])
library.element.restype = ctypes.c_float
data = torch.ones(1000)
def element(index):
    return library.element(ctypes.c_void_p(data.data_ptr()), ctypes.c_long(index))
print(CALL)
"""


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


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "faults.cpp").write_text(FAULTS)
    return build(folder, folder / "build")[0]


@pytest.mark.parametrize(
    ("call", "report"),
    [
        ("element(999)", None),
        ("element(1000)", "AddressSanitizer: heap-buffer-overflow"),
        ("element(-1)", "AddressSanitizer: heap-buffer-overflow"),
        ("library.sum(2**31 - 2, 1)", None),
        ("library.sum(2**31 - 1, 1)", "signed integer overflow"),
        ("library.quotient(1, 0)", "division by zero"),
    ],
)
def test_sanitizers_see_planted_faults(faults: Path, call: str, report: str | None) -> None:
    done = run_sanitized("-c", USE_FAULTS.replace("CALL", call), faults)
    if report is None:
        assert_passed(done)
    else:
        with pytest.raises(AssertionError, match=report):
            assert_passed(done)
        assert "faults.cpp:" in done.stdout


@pytest.fixture(scope="module")
def library() -> Path:
    return build(ROOT / "csrc", BUILD)[0]


def test_sanitized_library_takes_the_place_of_the_module(library: Path) -> None:
    code = "import unfoldconv; print([line.split()[-1] for line in open('/proc/self/maps')])"
    done = run_sanitized("-c", code, library=library)
    assert str(library) in done.stdout
    assert "_C.abi3.so" not in done.stdout


def test_ops_pass_under_the_sanitizers(library: Path) -> None:
    files = [Path("tests") / name for name in OP_TESTS]
    # With pytest's usual capture, the report would die with the process. Of the instruction sets the best one: the
    # engines around the inner loops are the same for all. How well sums are rounded is not for this build to show.
    chosen = "not generic and not avx2 and not errors_are_not_above_torchs"
    options = ["-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-k", chosen]
    done = run_sanitized("-m", "pytest", *options, *files, library=library)
    assert_passed(done)


def test_amx_kernels_pass_under_the_sanitizers() -> None:
    """On a model of their tile instructions (test_amx.py): it reads and writes what the instructions would."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("all but the tiles of these kernels needs a processor with AVX-512")
    _, objects = build(ROOT / "csrc", BUILD)
    modelled = build_modelled(BUILD / "amx", objects, None, SANITIZED)
    options = ["-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-k", "values or small_workspaces"]
    done = run_sanitized("-m", "pytest", *options, SOURCES / "engines.py", library=modelled)
    assert_passed(done)
