"""What a build holds of the instruction sets: those that it was told to, and nothing that runs before one is chosen."""

import ctypes
import platform
import re
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

from instruction_sets import AVAILABLE, ISAS
from unfoldconv import _C

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has more than the generic set")

# isa.cpp alone. Kernels are never asked for, so those that the linker misses are those that the build left out.
PROGRAM = """
#include "cpu/isa/isa.cpp"
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT const char* in_use() { return unfoldconv::cpu::isa_in_use(); }
EXPORT const char* refusal(const char* name) {
  static std::string message;
  message.clear();
  try {
    unfoldconv::cpu::set_isa(name);
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
"""


def built_without(folder: Path, *names: str) -> tuple[ctypes.CDLL, str]:
    """The choice of a set in a build without some, and the functions that it wants of others."""
    source, library = folder / "sets.cpp", folder / "sets.so"
    source.write_text(PROGRAM)
    absent = [f"-DUNFOLDCONV_HAS_{name.upper()}=0" for name in names]
    includes = [f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in include_paths())]
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["g++", *flags, *absent, *includes, source, "-o", library], check=True)
    wanted = subprocess.run(["nm", "-uC", library], check=True, capture_output=True, text=True).stdout
    return ctypes.CDLL(str(library), mode=1), wanted  # 1: RTLD_LAZY


@pytest.mark.parametrize("absent", [("avx2",), ("avx512",), ("avx2", "avx512")], ids="-".join)
def test_a_build_may_leave_sets_out(absent: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without avx512 there is nothing that rests on it either."""
    monkeypatch.delenv("UNFOLDCONV_ISA", raising=False)
    gone = [name for name in ISAS if name in absent or ("avx512" in absent and name in ("avx512_bf16", "amx"))]
    library, wanted = built_without(tmp_path, *absent)
    library.in_use.restype = library.refusal.restype = ctypes.c_char_p

    for name in ISAS:
        assert (f"cpu::{name}::add_" in wanted) == (name not in gone), name
    there = [name for name in ISAS if name not in gone]
    usable = [name for name in there if name in AVAILABLE]
    assert library.in_use().decode() == usable[-1]
    listed = " or ".join([", ".join(there[:-1]), there[-1]] if there[1:] else there)
    for name in gone:
        message = library.refusal(name.encode()).decode()
        assert message == (
            f"unfoldconv: isa must be an instruction set that this library was built for ({listed}), but got {name}"
        )
    for name in usable:
        assert library.refusal(name.encode()) == b""
        assert library.in_use().decode() == name


def at_load(library: Path) -> list[int]:
    """The addresses of the functions that run when the library is loaded."""
    sections = subprocess.run(["readelf", "-SW", library], check=True, capture_output=True, text=True).stdout
    found = re.search(r"\.init_array +INIT_ARRAY +(\w+) \w+ (\w+)", sections)
    assert found
    start, size = (int(group, 16) for group in found.groups())
    relocations = subprocess.run(["readelf", "-rW", library], check=True, capture_output=True, text=True).stdout
    relative = re.findall(r"^(\w+) +\w+ R_X86_64_RELATIVE +(\w+)", relocations, re.MULTILINE)
    return [int(target, 16) for place, target in relative if start <= int(place, 16) < start + size]


def instructions(library: Path, address: int) -> list[str]:
    """Those of a function, up to its first return or jump to another one."""
    span = [f"--start-address={address}", f"--stop-address={address + 4096}"]
    command = ["objdump", "-d", "--no-show-raw-insn", *span, library]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = re.findall(r"^ +\w+:\t(.+)", text, re.MULTILINE)
    end = next((i for i, line in enumerate(lines) if line.startswith("ret")), len(lines) - 1)
    return lines[: end + 1]


def test_loading_needs_no_more_than_the_baseline() -> None:
    """A table of kernels that is made as the library is loaded would end the process on an older processor: the files
    of a set are compiled for the set as a whole.
    """
    library = Path(_C.__file__)
    functions, seen = at_load(library), set()
    assert functions
    while functions:
        address = functions.pop()
        seen.add(address)
        for instruction in instructions(library, address):
            # The names of AVX and everything after it, and no others, begin with a v.
            assert not instruction.startswith("v"), f"{address:x}: {instruction}"
            called = re.match(r"(?:call|jmp) +([0-9a-f]+) <(?!.*@plt)", instruction)
            if called and int(called[1], 16) not in seen:
                functions.append(int(called[1], 16))
