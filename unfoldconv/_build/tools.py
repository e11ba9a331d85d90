"""The programs of a build: how they are found, run, and told to torch's own build."""

import fcntl
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class BuildError(RuntimeError):
    """`load` could not build the compiled library; the message says what is missing or what the compiler wrote."""


def run(command: Sequence[str], folder: Path | None = None) -> str:
    """Runs a tool and returns what it wrote; raises BuildError with its own message where it fails."""
    try:
        done = subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        raise BuildError(f"{command[0]} must be a program that can be run, but got: {error.strerror}") from error
    if done.returncode:
        raise BuildError(f"exit status {done.returncode} of this command:\n{shlex.join(command)}\n{done.stdout}")
    return done.stdout


def cxx() -> list[str]:
    """The C++ compiler, with the options that CXX may hold."""
    from torch.utils.cpp_extension import get_cxx_compiler

    command = shlex.split(get_cxx_compiler())
    if shutil.which(command[0]) is None:
        raise BuildError(
            f"building needs a C++20 compiler, but {command[0]!r} was not found: install one, such as g++, "
            "or set CXX to its name"
        )
    return command


def ninja_folder() -> str | None:
    """What PATH lacks for ninja to be found: nothing, or the folder in which the Python package of that name has it."""
    if shutil.which("ninja"):
        return None
    try:
        import ninja  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise BuildError(
            "building needs ninja, but none was found: pip install 'unfoldconv[jit]', or ninja by itself"
        ) from error
    return str(ninja.BIN_DIR)


@contextmanager
def exclusive(directory: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the build directory for one process. The kernel drops the lock of a process that dies."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "unfoldconv.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


_environment_in_use = threading.RLock()


@contextmanager
def environment(folder: Path, **variables: str) -> Iterator[None]:
    """What torch's build reads from the environment while it runs.

    Args:
        folder: Where a program may be made that stands for a compiler with options: torch quotes CXX as one word.
        variables: What else is set.
    """
    # Ninja would run two compilers more than there are processors.
    variables["MAX_JOBS"] = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    compiler = cxx()
    if len(compiler) > 1:
        program = folder / "cxx"
        write_if_changed(program, f'#!/bin/sh\nexec {shlex.join(compiler)} "$@"\n'.encode())
        program.chmod(0o755)
        # A ccache in CXX need not have another one before it.
        variables |= {"CXX": str(program), "TORCH_NO_COMPILER_WRAPPER": "1"}
    extra = ninja_folder()
    if extra is not None:
        variables["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), extra])
    with _environment_in_use:
        before = dict(os.environ)
        os.environ.update(variables)
        try:
            yield
        finally:
            for name in variables:
                os.environ.pop(name)
                if name in before:
                    os.environ[name] = before[name]


@contextmanager
def cuda_home(home: Path | None) -> Iterator[None]:
    """Tells torch's build which toolkit to use: where torch itself has no CUDA, it does not look for one."""
    from torch.utils import cpp_extension

    before = cpp_extension.CUDA_HOME
    if home is not None:
        cpp_extension.CUDA_HOME = str(home)
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = before


def write_if_changed(path: Path, content: bytes) -> None:
    """Leaves a file with that content alone, and so its time, which ninja goes by."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
