"""What the library is made of: sources, flags, definitions.

The library is written against PyTorch's stable ABI, so one file serves every torch from `TORCH_TARGET` on, and CUDA
code needs neither a CUDA build of torch nor one of its libraries.
"""

import hashlib
import os
import shlex
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .objects import BuildError, Compilation, compile_all, exclusive, link, run
from .toolkit import Toolkit

TORCH_TARGET = (2, 11)
PYTHON_TARGET = (3, 11)
HEADER_SUFFIXES = (".h", ".cuh")
SUFFIXES = (".cpp", ".cu", *HEADER_SUFFIXES)

# Definitions differ from build to build, so only the files that name them get them: a new namespace then leaves the
# kernels as they are.
NAMESPACE = "UNFOLDCONV_NAMESPACE"
BUILD_INFO = "UNFOLDCONV_BUILD_INFO"

# The entry point of the Python module `_C`; a library that is only loaded for its ops goes without.
PYTHON_MODULE_SOURCE = "module.cpp"


@dataclass(frozen=True)
class Profile:
    """Options for g++ (and, through nvcc, for the host code of CUDA sources) and for the linker."""

    compile: tuple[str, ...]
    link: tuple[str, ...]


RELEASE = Profile(compile=("-O3",), link=("-s", "-Wl,--gc-sections", "-Wl,-z,defs"))


def source_files(root: Path, *, cuda: bool, python_module: bool) -> list[Path]:
    """Every source below `root` that belongs to the library, in a fixed order.

    Args:
        root: A copy of csrc.
        cuda: With the CUDA sources.
        python_module: With the entry point of the Python module.

    Raises:
        BuildError: `root` is not a copy of csrc.
    """
    files = [*root.rglob("*.cpp")] + ([*root.rglob("*.cu")] if cuda else [])
    files = sorted(file for file in files if python_module or file.name != PYTHON_MODULE_SOURCE)
    if not files:
        raise BuildError(f"the source folder must hold the .cpp files of csrc, but {root} holds none")
    return files


def fingerprint(root: Path, toolkit: Toolkit | None, profile: Profile = RELEASE) -> str:
    """Twelve hexadecimal digits that change with any source, flag, compiler, toolkit or torch."""
    import torch

    digest = hashlib.sha256()
    compiler = _cxx()
    flags = [*_common_flags(profile), os.environ.get("CXXFLAGS")]
    facts = (compiler, run([*compiler, "--version"]), flags, toolkit, torch.__version__)
    digest.update(repr(facts).encode())
    for file in sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES):
        text = file.read_bytes()
        digest.update(f"{file.relative_to(root)} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:12]


def build_library(
    root: Path,
    output: Path,
    build_directory: Path,
    *,
    version: str,
    toolkit: Toolkit | None,
    namespace: str = "unfoldconv",
    python_module: bool = False,
    profile: Profile = RELEASE,
    definitions: Mapping[str, str] | None = None,
    echo: Callable[[str], None] = print,
    echo_waiting: Callable[[str], None] = print,
) -> None:
    """Builds the library of the sources below `root`, compiling only what has changed since the last time.

    Args:
        root: A copy of csrc.
        output: The library to write.
        build_directory: Where objects are kept. Two builds that share it take turns.
        version: The version that the library reports.
        toolkit: The CUDA toolkit for the .cu sources, or None to leave them out.
        namespace: The op namespace, as in `torch.ops.<namespace>`.
        python_module: Makes the library importable as a module named `_C`.
        profile: The optimisation and debugging options.
        definitions: Macros and their values, beside those of the namespace and the version.
        echo: Is told each step.
        echo_waiting: Is told that another process is building in the same directory, before this one waits for it.

    Raises:
        BuildError: A compiler is missing, or failed.
    """
    root = root.resolve()
    sources = source_files(root, cuda=toolkit is not None, python_module=python_module)
    definitions = {NAMESPACE: namespace, BUILD_INFO: f'"{_build_info(version, toolkit)}"', **(definitions or {})}
    # A header passes what it names on to whoever includes it.
    headers = [path for path in root.rglob("*") if path.suffix in HEADER_SUFFIXES]
    shared = [name for name in definitions if any(name in header.read_text() for header in headers)]
    compiler, flags = _cxx(), [f"-I{root}", *_common_flags(profile)]
    if toolkit is not None:
        flags.append("-DUNFOLDCONV_WITH_CUDA")

    compilations = []
    for source in sources:
        text = source.read_text()
        own = [f"-D{name}={value}" for name, value in definitions.items() if name in shared or name in text]
        if source.name == PYTHON_MODULE_SOURCE:
            own.append(f"-I{sysconfig.get_path('include')}")
        if source.suffix == ".cu":
            assert toolkit is not None
            command = [toolkit.nvcc, "-c", *_nvcc_flags(toolkit, flags)]
        else:
            command = [*compiler, "-c", *flags, *shlex.split(os.environ.get("CXXFLAGS", ""))]
        relative = source.relative_to(root)
        target = build_directory / relative.parent / (relative.name + ".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        compilations.append(Compilation(source, target, (*command, *own)))

    options = _link_flags(toolkit, profile)
    if python_module:
        options.append("-Wl,-z,undefs")  # the interpreter that imports the module has the C API

    with exclusive(build_directory, lambda: echo_waiting(f"waiting for another process that builds in {build_directory}")):
        compile_all(compilations, echo)
        echo(f"linking {output}")
        link(compiler, [compilation.output for compilation in compilations], output, options)


def _cxx() -> list[str]:
    from torch.utils.cpp_extension import get_cxx_compiler

    command = shlex.split(get_cxx_compiler())
    if shutil.which(command[0]) is None:
        raise BuildError(
            f"building needs a C++20 compiler, but {command[0]!r} was not found: install one, such as g++, "
            "or set CXX to its name"
        )
    return command


def _common_flags(profile: Profile) -> list[str]:
    from torch.utils.cpp_extension import include_paths

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
        f"-DPy_LIMITED_API=0x{PYTHON_TARGET[0]:02x}{PYTHON_TARGET[1]:02x}0000",
        *(f"-isystem{path}" for path in include_paths()),
    ]


def _nvcc_flags(toolkit: Toolkit, flags: list[str]) -> list[str]:
    """The same flags in the words of nvcc: it takes these itself and hands the rest to the host compiler."""
    return [
        *(_nvcc_flag(flag) for flag in flags),
        *toolkit.architecture_flags(),
        toolkit.compression_flag(),
        "--resource-usage",  # registers and shared memory, which the record of the object keeps
        "--expt-relaxed-constexpr",
    ]


def _nvcc_flag(flag: str) -> str:
    if flag.startswith("-isystem"):
        return flag.replace("-isystem", "-isystem=")
    return flag if flag.startswith(("-O", "-std=", "-D", "-I")) else f"-Xcompiler={flag}"


def _link_flags(toolkit: Toolkit | None, profile: Profile) -> list[str]:
    from torch.utils.cpp_extension import library_paths

    flags = [*profile.link, "-Wl,--as-needed", *(f"-L{path}" for path in library_paths()), "-ltorch_cpu"]
    if toolkit is not None:
        # The static runtime, hidden: the library then loads where there is no CUDA, and beside any other CUDA.
        flags += [f"-L{toolkit.library_directory}", "-lcudart_static", "-Wl,--exclude-libs,ALL"]
        flags += ["-lrt", "-ldl", "-lpthread"]
    return flags


def _build_info(version: str, toolkit: Toolkit | None) -> str:
    facts = {
        "version": version,
        "torch_target": ".".join(map(str, TORCH_TARGET)),
        "cuda": toolkit.version if toolkit else "",
        "architectures": ",".join(toolkit.architectures) if toolkit else "",
    }
    return ";".join(f"{name}={value}" for name, value in facts.items())
