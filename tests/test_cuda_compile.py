"""Every CUDA source compiles, to machine code for each architecture that is promised. Needs nvcc but no GPU."""

import re
from pathlib import Path

import pytest

from unfoldconv import _build
from unfoldconv._build import Toolkit
from unfoldconv._build.objects import run

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = {"sm_75", "sm_80", "sm_90a"}


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
def test_source_compiles_for_every_architecture(source: Path, objects: Path, toolkit: Toolkit) -> None:
    cuobjdump = toolkit.home / "bin" / "cuobjdump"
    if not cuobjdump.exists():
        pytest.skip("no cuobjdump in the CUDA toolkit")
    machine_code = run([str(cuobjdump), "--list-elf", str(objects / "cuda" / f"{source.name}.o")])
    assert set(re.findall(r"sm_\w+", machine_code)) >= ARCHITECTURES
