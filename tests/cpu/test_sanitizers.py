"""The tests of the ops on a library with sanitizers, and that the sanitizers see what they are there for."""

from pathlib import Path

import pytest

from sanitized import ROOT, assert_passed, assert_tests_pass, build, library, run_sanitized

OP_TESTS = [
    "ops/test_columns.py",
    "ops/test_convolution.py",
    "ops/test_errors.py",
    "ops/test_fuzz.py",
    "cpu/test_patches.py",
    "cpu/test_depthwise.py",
    "cpu/test_grouped.py",
]

# Faults of the kinds that the kernels could have, in memory that torch has allocated.
FAULTS = r"""
#define PUBLIC extern "C" __attribute__((visibility("default")))
PUBLIC float element(const float* data, long index) { return data[index]; }
PUBLIC int sum(int left, int right) { return left + right; }
PUBLIC int quotient(int left, int right) { return left / right; }
"""
USE_FAULTS = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.element.restype = ctypes.c_float
def element(index):
    import torch
    data = torch.ones(1000)
    return library.element(ctypes.c_void_p(data.data_ptr()), ctypes.c_long(index))
print(CALL)
"""


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


def test_sanitized_library_takes_the_place_of_the_module() -> None:
    code = "import unfoldconv; print([line.split()[-1] for line in open('/proc/self/maps')])"
    done = run_sanitized("-c", code, library=library()[0])
    assert str(library()[0]) in done.stdout
    assert "_C.abi3.so" not in done.stdout


def test_ops_pass_under_the_sanitizers() -> None:
    assert_tests_pass(*(ROOT / "tests" / name for name in OP_TESTS), selection="test", library=library()[0])
