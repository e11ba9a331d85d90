"""Every CUDA source compiles, to machine code for each architecture that is promised. Needs nvcc but no GPU."""

import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from unfoldconv import _build
from unfoldconv._build import Toolkit

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
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
def objects(toolkit: Toolkit) -> Path:
    """The folder in which setup.py keeps the objects: what it has compiled by the same command is not done again."""
    folder = ROOT / "build" / "objects"
    _build.build_library(
        ROOT / "csrc", ROOT / "build" / "cuda_compile.so", folder, version=_build.VERSION, toolkit=toolkit
    )
    return folder


def test_there_are_cuda_sources() -> None:
    assert {"im2col.cu", "col2im.cu"} <= {source.name for source in SOURCES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_source_compiles_for_every_architecture(source: Path, objects: Path) -> None:
    assert set(embedded_code(objects / "cuda" / f"{source.name}.o")) == PROMISED


# Kernels whose inner loops must stay in registers.
MAIN_KERNELS = ("correlate_tiles", "sum_weights")


def test_main_kernels_spill_no_registers(toolkit: Toolkit, objects: Path) -> None:
    """Prints the registers, shared memory and stack of every kernel (pytest -s)."""
    seen = set()
    for source in SOURCES:
        print(f"\n{source.name}\n{'':9}{'registers':>9}{'shared':>8}{'stack':>7}  kernel")
        for architecture, kernel, numbers in resources(toolkit, objects / "cuda" / f"{source.name}.o"):
            stack = numbers["STACK"] + numbers["LOCAL"]
            print(f"{architecture:9}{numbers['REG']:9}{numbers['SHARED']:8}{stack:7}  {kernel}")
            main = next((name for name in MAIN_KERNELS if name in kernel), None)
            if main is not None:
                seen.add((main, architecture))
                assert stack == 0, f"{kernel} on {architecture}"
                assert numbers["SHARED"] <= 48 << 10, "more must be asked for at the launch"
    assert seen == {(name, architecture) for name in MAIN_KERNELS for architecture in ("sm_75", "sm_80", "sm_90a")}


def resources(toolkit: Toolkit, file: Path) -> Iterator[tuple[str, str, dict[str, int]]]:
    """What cuobjdump says of each kernel of an object: architecture, name and numbers by their names."""
    command = [str(toolkit.home / "bin" / "cuobjdump"), "-res-usage", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    architecture = kernel = ""
    for line in text.splitlines():
        if found := re.match(r"arch = (\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function (\S+):", line):
            kernel = subprocess.run(["c++filt", found[1]], capture_output=True, text=True, check=True).stdout.strip()
        elif "REG:" in line:
            yield architecture, kernel, {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}


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
