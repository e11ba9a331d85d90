"""Every CUDA source compiles, to machine code for each architecture that is promised. Needs nvcc but no GPU."""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from module_build import module_objects
from unfoldconv import _build
from unfoldconv._build import Toolkit

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc").rglob("*.cu"))
# Turing, Ampere, Hopper; PTX for all that is newer.
PROMISED = {("machine code", 75), ("machine code", 80), ("ptx", 80), ("machine code", 90)}


@pytest.fixture(scope="module")
def toolkit() -> Toolkit:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
        found = _build.find_toolkit()
    if found is None:
        pytest.skip("no nvcc: the CUDA sources are not compiled here")
    return found


@pytest.fixture(scope="module")
def objects(toolkit: Toolkit) -> dict[Path, Path]:
    return module_objects(toolkit, TORCH_CUDA_ARCH_LIST="")


def test_there_are_cuda_sources() -> None:
    assert {"im2col.cu", "col2im.cu"} <= {source.name for source in SOURCES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_source_compiles_for_every_architecture(source: Path, objects: dict[Path, Path]) -> None:
    assert set(embedded_code(objects[source])) == PROMISED


# Kernels whose inner loops must stay in registers.
MATRIX_PRODUCTS = ("correlate_tiles", "sum_weights")
MAIN_KERNELS = (*MATRIX_PRODUCTS, "convolve_stem", "sum_stem")


def test_main_kernels_spill_no_registers(objects: dict[Path, Path]) -> None:
    """Prints the registers, shared memory and stack of every kernel (pytest -s)."""
    seen = set()
    for source in SOURCES:
        print(f"\n{source.name}\n{'':9}{'registers':>9}{'shared':>8}{'stack':>7}  kernel")
        for kernel in kernels(objects[source].with_suffix(".o.log").read_text()):
            print(f"{kernel.architecture:9}{kernel.registers:9}{kernel.shared:8}{kernel.stack:7}  {kernel.name}")
            main = next((name for name in MAIN_KERNELS if name in kernel.name), None)
            if main is not None:
                seen.add((main, kernel.architecture))
                assert kernel.stack == kernel.spills == 0, kernel
                assert kernel.shared <= 48 << 10, "more must be asked for at the launch"
                if main in MATRIX_PRODUCTS and "N3c104HalfE" in kernel.name and kernel.architecture != "sm_75":
                    assert blocks_at_once(kernel) >= 2, kernel
    assert seen == {(name, architecture) for name in MAIN_KERNELS for architecture in ("sm_75", "sm_80", "sm_90a")}


@dataclass(frozen=True)
class Kernel:
    """What a kernel takes: registers of a thread, and bytes. The name is mangled."""

    name: str
    architecture: str
    registers: int
    shared: int
    stack: int
    spills: int


def blocks_at_once(kernel: Kernel) -> int:
    """How many blocks of a matrix product an Ampere or Hopper multiprocessor has registers and shared memory for."""
    (warps,) = re.findall(r"TileShapeILi\d+ELi(\d+)ELi(\d+)E", kernel.name)
    registers = -(-kernel.registers // 8) * 8 * 32 * math.prod(map(int, warps))
    return min((64 << 10) // registers, (164 << 10) // (kernel.shared + (1 << 10)))


def kernels(printed: str) -> Iterator[Kernel]:
    """From what ptxas says of each kernel as it compiles it."""
    for part in printed.split("Compiling entry function ")[1:]:
        name, architecture = re.findall(r"'(\w+)'", part)[:2]
        found = {key: int(value) for value, key in re.findall(r"(\d+) (registers|bytes \w+ ?\w*)", part)}
        spills = found["bytes spill stores"] + found["bytes spill loads"]
        yield Kernel(
            name, architecture, found["registers"], found.get("bytes smem", 0), found["bytes stack frame"], spills
        )


def test_what_ptxas_prints_is_read() -> None:
    printed = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3sumv' for 'sm_80'
ptxas info    : Function properties for _Z3sumv
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 384 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z3mulv' for 'sm_75'
ptxas info    : Function properties for _Z3mulv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 400 bytes cmem[0]
"""
    assert list(kernels(printed)) == [
        Kernel("_Z3sumv", "sm_80", 40, 384, 16, 12),
        Kernel("_Z3mulv", "sm_75", 255, 0, 0, 0),
    ]


def embedded_code(file: Path) -> Iterator[tuple[str, int]]:
    """What nvcc has embedded: machine code or PTX, each with the architecture that its header names."""
    data = file.read_bytes()
    start = data.index(bytes.fromhex("50ed55ba"))
    _, header_size, size = struct.unpack_from("<HHQ", data, start + 4)
    entry = start + header_size
    end = entry + size
    while entry < end:
        kind, _, entry_header_size, entry_size = struct.unpack_from("<HHIQ", data, entry)
        (architecture,) = struct.unpack_from("<I", data, entry + 28)
        yield {1: "ptx", 2: "machine code"}[kind], architecture
        entry += entry_header_size + entry_size
