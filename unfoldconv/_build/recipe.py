"""What the library is made of: sources, flags, and the header that its registration files include.

The library is written against PyTorch's stable ABI, so one file serves every torch from `TORCH_TARGET` on, and CUDA
code needs neither a CUDA build of torch nor one of its libraries.
"""

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .toolkit import Toolkit
from .tools import BuildError, write_if_changed

VERSION = "0.1.0"
TORCH_TARGET = (2, 11)
PYTHON_TARGET = (3, 11)
PYTHON_TARGET_HEX = f"0x{PYTHON_TARGET[0]:02x}{PYTHON_TARGET[1]:02x}0000"

# The entry point of the Python module `_C`; a library that is only loaded for its ops goes without.
PYTHON_MODULE_SOURCE = "module.cpp"

# Where the files that register ops find the namespace: `#include "generated/registration.h"`. A new namespace then
# compiles them alone.
REGISTRATION = "generated/registration.h"


@dataclass(frozen=True)
class Profile:
    """Options for g++ (and, through nvcc, for the host code of CUDA sources) and for the linker."""

    compile: tuple[str, ...]
    link: tuple[str, ...]


RELEASE = Profile(compile=("-O3",), link=("-s", "-Wl,--gc-sections", "-Wl,-z,defs"))


def source_files(root: Path, paths: Iterable[Path], *, cuda: bool, python_module: bool) -> list[Path]:
    """Those of the files that belong to the library, in a fixed order.

    Args:
        root: A copy of csrc, for the message.
        paths: What is in it.
        cuda: With the CUDA sources.
        python_module: With the entry point of the Python module.

    Raises:
        BuildError: There is none.
    """
    suffixes = (".cpp", ".cu") if cuda else (".cpp",)
    files = [path for path in paths if path.suffix in suffixes and (python_module or path.name != PYTHON_MODULE_SOURCE)]
    if not files:
        raise BuildError(f"the source folder must hold the .cpp files of csrc, but {root} holds none")
    return sorted(files)


def compile_flags(profile: Profile, toolkit: Toolkit | None) -> list[str]:
    """The options of the C++ compiler, without those for include folders."""
    return [*_common_flags(profile, toolkit), *shlex.split(os.environ.get("CXXFLAGS", ""))]


def nvcc_flags(profile: Profile, toolkit: Toolkit, flags: Sequence[str] = ()) -> list[str]:
    """The same in the words of nvcc: it takes some options itself and hands the rest to the host compiler."""
    import torch

    found = [
        flag if flag.startswith(("-O", "-std=", "-D")) else f"-Xcompiler={flag}"
        for flag in (*_common_flags(profile, toolkit), *flags)
    ]
    # Registers and shared memory of every kernel are told as it is compiled.
    found += [*toolkit.architecture_flags(), toolkit.compression_flag(), "--resource-usage"]
    if torch.version.cuda is None:
        found.append("-MMD")  # a torch without CUDA gives ninja no rule that asks nvcc for the headers
    return found


def _common_flags(profile: Profile, toolkit: Toolkit | None) -> list[str]:
    return [
        *profile.compile,
        "-std=c++20",
        "-fPIC",
        "-fvisibility=hidden",
        # Else two libraries in one process would share the static variables of inline functions.
        "-fno-gnu-unique",
        "-ffunction-sections",
        "-fdata-sections",
        "-Wall",
        "-Wextra",
        f"-DTORCH_TARGET_VERSION=0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000",
        "-DTORCH_STABLE_ONLY",
        *(["-DUNFOLDCONV_WITH_CUDA"] if toolkit is not None else []),
    ]


def link_flags(profile: Profile, toolkit: Toolkit | None) -> list[str]:
    """The options of the linker, without those for torch's libraries."""
    flags = [*profile.link]
    if toolkit is not None:
        # The static runtime, hidden: the library then loads where there is no CUDA, and beside any other CUDA.
        flags += [f"-L{toolkit.library_directory}", "-lcudart_static", "-Wl,--exclude-libs,ALL"]
        flags += ["-lrt", "-ldl", "-lpthread"]
    return flags


def write_registration(folder: Path, namespace: str, toolkit: Toolkit | None) -> None:
    """Writes the header with the op namespace and the facts of `build_info` below an include folder."""
    facts = {
        "version": VERSION,
        "torch_target": ".".join(map(str, TORCH_TARGET)),
        "cuda": toolkit.version if toolkit else "",
        "architectures": ",".join(toolkit.architectures) if toolkit else "",
    }
    text = ";".join(f"{name}={value}" for name, value in facts.items())
    header = f'#pragma once\n#define UNFOLDCONV_NAMESPACE {namespace}\n#define UNFOLDCONV_BUILD_INFO "{text}"\n'
    write_if_changed(folder / REGISTRATION, header.encode())
