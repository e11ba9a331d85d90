"""Compiles the CUDA sources for the emulator, as they are or with a fault planted in a copy, and imports the result."""

import functools
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from torch.utils.cpp_extension import include_paths, library_paths

from unfoldconv._build.objects import Compilation, compile_all, exclusive, link
from unfoldconv._build.recipe import TORCH_TARGET

EMULATOR = Path(__file__).parent
ROOT = EMULATOR.parents[2]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "emulator"

_COMMAND = (
    *("g++", "-c", "-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    f"-I{EMULATOR}",  # its cuda_runtime.h
    *(f"-isystem{path}" for path in include_paths()),
    f"-isystem{sysconfig.get_path('include')}",
    *("-DUNFOLDCONV_WITH_CUDA", "-DTORCH_STABLE_ONLY"),
    f"-DTORCH_TARGET_VERSION=0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000",
)

# Host code that calls the kernels, and registers ops. What it asks of the CPU's engines is left out, and never called.
_REGISTERING = ("choice.cpp", "report.cpp")
_HOST_SOURCES = (
    *("convolution.cpp", "input_grad_phases.cpp", "cuda_engines.cpp"),
    *("correlate_columns.cpp", "weight_grad_columns.cpp"),
    *("depthwise_cuda_engine.cpp", "implicit_gemm_correlate.cpp", "implicit_gemm_weight_grad.cpp", "stem_engine.cpp"),
    *_REGISTERING,
)

# What kernels do with indices, pointers and integers is checked as they run. The emulator turns the trap of a violation
# into an error of the launch.
_CHECKS = (
    "-fsanitize=bounds-strict,alignment,signed-integer-overflow,shift,integer-divide-by-zero",
    "-fsanitize-undefined-trap-on-error",
)

# Replacements in one file: what stands there exactly once, and what comes instead.
Edits = Sequence[tuple[str, str]]


def load(planted: Mapping[str, Edits] | None = None, name: str = "emulated") -> ModuleType:
    """Returns the module of module.cpp, built anew where a source has changed.

    Args:
        planted: Faults by the name of the file, which is the only one in csrc. They are edited in a copy.
        name: Tells the builds of different faults apart.
    """
    return _load(name, tuple((path, tuple(edits)) for path, edits in (planted or {}).items()))


def namespace(name: str = "emulated") -> str:
    """Where the ops of choice.cpp and report.cpp are in a build: `torch.ops.<namespace>`."""
    return f"unfoldconv_{name}"


@functools.cache
def _load(name: str, planted: tuple[tuple[str, Edits], ...]) -> ModuleType:
    library = BUILD / f"{name}.so"
    with exclusive(BUILD, lambda: None):
        sources = [
            *sorted(EMULATOR.glob("*.c*")),
            *sorted(CSRC.rglob("*.cu")),
            *(_source(name) for name in _HOST_SOURCES),
        ]
        if planted:
            copy = BUILD / name / "csrc"
            planted = tuple((str(_source(file).relative_to(CSRC)), edits) for file, edits in planted)
            _copy(copy, dict(planted))
            edited = {CSRC / path: copy / path for path, _ in planted}
            sources = [edited.get(source, source) for source in sources]
        objects = []
        for source in sources:
            # Ops of the same name in two libraries would be the same ops.
            registers = source.name in _REGISTERING
            own = registers or source.is_relative_to(BUILD)
            root = copy if planted and source.is_relative_to(BUILD) else CSRC
            command = [*_COMMAND, f"-I{root}", *(_CHECKS if source.suffix == ".cu" else ())]
            command += [f"-DUNFOLDCONV_NAMESPACE={namespace(name)}"] if registers else []
            output = BUILD / (name if own else "") / f"{source.name}.o"
            output.parent.mkdir(parents=True, exist_ok=True)
            objects.append(Compilation(source, output, (*command, "-x", "c++")))
        compile_all(objects, lambda line: None)
        options = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu"]
        link(["g++"], [compilation.output for compilation in objects], library, options)
    # A full name of its own, by which pybind11 tells modules apart.
    spec = importlib.util.spec_from_file_location(f"{name}.emulated", library)
    assert spec is not None
    assert spec.loader is not None
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY)  # a copy may lack what its test does not call
    try:
        module = importlib.util.module_from_spec(spec)
    finally:
        sys.setdlopenflags(before)
    spec.loader.exec_module(module)
    return module


def _source(name: str) -> Path:
    """The only file of that name in csrc."""
    (found,) = CSRC.rglob(name)
    return found


def _copy(copy: Path, planted: Mapping[str, Edits]) -> None:
    """Copies csrc with the faults in it. Files that are already there and right stay, and so do their objects."""
    for source in CSRC.rglob("*"):
        if not source.is_file():
            continue
        path = source.relative_to(CSRC)
        text = source.read_text()
        for old, new in planted.get(str(path), ()):
            assert text.count(old) == 1, (
                f"{path} must contain exactly once, but contains {text.count(old)} times: {old}"
            )
            text = text.replace(old, new)
        target = copy / path
        if not target.exists() or target.read_text() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    for target in [path for path in copy.rglob("*") if path.is_file() and not (CSRC / path.relative_to(copy)).exists()]:
        target.unlink()
