"""Finds the CUDA toolkit, which the build uses whether or not there is a GPU or a CUDA build of torch."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .tools import BuildError, run

# Turing, Ampere and Hopper as machine code; everything newer compiles the PTX of 8.0 on first use.
DEFAULT_ARCHITECTURES = "7.5;8.0+PTX;9.0a"
# The first nvcc that knows C++20 and sm_90a.
MINIMUM_VERSION = (12, 0)


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit and the architectures that are built with it, written as in TORCH_CUDA_ARCH_LIST."""

    home: Path
    version: str
    architectures: tuple[str, ...]

    @property
    def nvcc(self) -> str:
        return str(self.home / "bin" / "nvcc")

    @property
    def library_directory(self) -> Path:
        """Where the static runtime library lies: that depends on who packaged the toolkit."""
        for name in ("lib64", "lib", f"targets/{os.uname().machine}-linux/lib"):
            if (self.home / name / "libcudart_static.a").exists():
                return self.home / name
        raise BuildError(f"the CUDA toolkit must have libcudart_static.a, but {self.home} has none")

    def architecture_flags(self) -> list[str]:
        """The options of nvcc that make machine code, and where asked for PTX, for every architecture."""
        flags = []
        for architecture in self.architectures:
            match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", architecture)
            if match is None:
                raise BuildError(f"TORCH_CUDA_ARCH_LIST must hold names like 8.0, 9.0a, 8.0+PTX, but got {architecture}")
            number = match[1] + match[2] + match[3]
            codes = [f"sm_{number}"] + ([f"compute_{number}"] if match[4] else [])
            flags.append(f"-gencode=arch=compute_{number},code=[{','.join(codes)}]")
        return flags

    def compression_flag(self) -> str:
        """The option of nvcc that makes machine code small.

        Drivers of CUDA 13 know the stronger compression, which nvcc has had since 12.8; older ones may not.
        """
        return "--compress-mode=size" if int(self.version.partition(".")[0]) >= 13 else "-Xfatbin=-compress-all"


def select_toolkit(default: bool) -> Toolkit | None:
    """The toolkit to build with, or None for a build without CUDA code.

    Args:
        default: Whether a toolkit that is there is used if the environment does not say. UNFOLDCONV_CUDA=0 says no,
            UNFOLDCONV_CUDA=1 says yes, and UNFOLDCONV_CUDA=auto says nothing.

    Raises:
        BuildError: UNFOLDCONV_CUDA=1, and there is no usable toolkit.
    """
    choice = os.environ.get("UNFOLDCONV_CUDA") or "auto"
    if choice not in ("0", "1", "auto"):
        raise BuildError(f"UNFOLDCONV_CUDA must be 0, 1 or auto, but got {choice!r}")
    if choice == "0" or (choice == "auto" and not default):
        return None
    toolkit = find_toolkit()
    if toolkit is None and choice == "1":
        raise BuildError(
            f"UNFOLDCONV_CUDA=1 needs nvcc {_dotted(MINIMUM_VERSION)} or newer, but none was found: "
            "set CUDA_HOME to the folder that holds bin/nvcc"
        )
    return toolkit


def find_toolkit() -> Toolkit | None:
    """The toolkit that CUDA_HOME or CUDA_PATH names, else that of the nvcc on PATH, else /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home)] if home else [*_home_of_nvcc_on_path(), Path("/usr/local/cuda")]
    for candidate in candidates:
        nvcc = candidate / "bin" / "nvcc"
        if not nvcc.exists():
            continue
        match = re.search(r"release (\d+)\.(\d+)", run([str(nvcc), "--version"]))
        if match is not None and (int(match[1]), int(match[2])) >= MINIMUM_VERSION:
            names = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
            return Toolkit(candidate, f"{match[1]}.{match[2]}", tuple(re.split(r"[; ]+", names.strip("; "))))
    return None


def _home_of_nvcc_on_path() -> list[Path]:
    """Asks nvcc itself where its toolkit is: the one on PATH may be a script that lies somewhere else."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return []
    match = re.search(r"^#\$ TOP=(.+)$", run([nvcc, "--dryrun", "-x", "cu", "-E", os.devnull]), re.MULTILINE)
    return [Path(match[1].strip()).resolve()] if match else []


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
