"""Compiles the CUDA sources for the emulator, as they are or with a fault planted in a copy, and imports the result."""

import functools
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from unfoldconv._build import Profile, exclusive
from unfoldconv._build.library import build_library
from unfoldconv._build.recipe import write_registration
from unfoldconv._build.tools import write_if_changed

EMULATOR = Path(__file__).parent
ROOT = EMULATOR.parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "emulator"

_PROFILE = Profile(compile=("-O1",), link=())
_FLAGS = ("-Werror", "-Wno-unknown-pragmas", "-DUNFOLDCONV_WITH_CUDA")

# Host code that calls the kernels. What it asks of the CPU's engines is left out, and never called.
_HOST_SOURCES = (
    *("columns_engine.cpp", "convolution.cpp", "depthwise_cuda_engine.cpp", "engine.cpp", "implicit_gemm_engine.cpp"),
    "stem_engine.cpp",
)
_REGISTERS_OPS = "engine.cpp"

# An included file is taken for a header, whose unnamed namespaces g++ warns of.
_INCLUDED = ("-Wno-subobject-linkage",)

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
    """Where the ops of engine.cpp are in a build: `torch.ops.<namespace>`."""
    return f"unfoldconv_{name}"


@functools.cache
def _load(name: str, planted: tuple[tuple[str, Edits], ...]) -> ModuleType:
    kernels = [*sorted(EMULATOR.glob("*.cu")), *sorted(CSRC.rglob("*.cu"))]
    host = [*sorted(EMULATOR.glob("*.cpp")), *map(_source, _HOST_SOURCES)]
    with exclusive(BUILD, lambda: None):
        library, objects = _build("emulated", kernels, host, CSRC)
        if planted:
            copy = BUILD / name / "csrc"
            edits = {_source(file): edits for file, edits in planted}
            _copy(copy, edits)
            copies = {source: copy / source.relative_to(CSRC) for source in edits}
            # Ops of the same name in two libraries would be the same ops.
            copies.setdefault(_source(_REGISTERS_OPS), _source(_REGISTERS_OPS))
            own_kernels = [copies[source] for source in kernels if source in copies]
            own_host = [copies[source] for source in host if source in copies]
            others = [objects[source] for source in (*kernels, *host) if source not in copies]
            library, _ = _build(name, own_kernels, own_host, copy, others)
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


def _build(
    name: str, kernels: Sequence[Path], host: Sequence[Path], root: Path, others: Sequence[Path] = ()
) -> tuple[Path, dict[Path, Path]]:
    """Returns the library of these sources and of other objects, and the object of each source.

    Kernels are compiled by themselves, with checks that the rest goes without, and each as part of a file that g++
    knows for C++.
    """
    folder = BUILD / name
    write_registration(folder, namespace(name), None)
    wrappers = [folder / "kernels" / f"{source.stem}_cu.cpp" for source in kernels]
    for source, wrapper in zip(kernels, wrappers, strict=True):
        write_if_changed(wrapper, f'#include "{source}"\n'.encode())
    library = folder / f"{name}.so"
    objects: dict[Path, Path] = {}
    for part, sources, flags in ((folder / "kernels", wrappers, (*_CHECKS, *_INCLUDED)), (folder, host, ())):
        build_library(
            part / f"{name}.so",
            sources,
            part,
            profile=_PROFILE,
            toolkit=None,
            include=[EMULATOR, root, folder],  # the emulator's cuda_runtime.h
            flags=[*_FLAGS, *flags],
            objects=[*others, *objects.values()] if part == folder else [],
        )
        originals = kernels if sources is wrappers else host
        objects |= {source: part / f"{made.stem}.o" for source, made in zip(originals, sources, strict=True)}
    return library, objects


def _source(name: str) -> Path:
    """The only file of that name in csrc."""
    (found,) = CSRC.rglob(name)
    return found


def _copy(copy: Path, planted: Mapping[Path, Edits]) -> None:
    """Copies csrc with the faults in it. Files that are already there and right stay, and so do their objects."""
    for source in CSRC.rglob("*"):
        if not source.is_file():
            continue
        path = source.relative_to(CSRC)
        text = source.read_text()
        for old, new in planted.get(source, ()):
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
