"""Runs compilers: only what is out of date, several at a time, never leaving half a file behind.

Own code rather than ninja, because nothing but torch and a compiler is sure to be there when a user builds.
"""

import fcntl
import json
import os
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class BuildError(RuntimeError):
    """`load` could not build the compiled library; the message says what is missing or what the compiler wrote."""


@dataclass(frozen=True)
class Compilation:
    """One source file, the object made from it, and the command that does it (without the output options)."""

    source: Path
    output: Path
    command: tuple[str, ...]

    @property
    def record(self) -> Path:
        """Where the command, what it printed and the state of every file that it read are kept."""
        return _beside(self.output, ".json")

    def is_fresh(self) -> bool:
        """Whether the object was made by this very command from sources and headers that are unchanged since."""
        if not (self.output.exists() and self.record.exists()):
            return False
        made = json.loads(self.record.read_text())
        return made["command"] == list(self.command) and all(
            state is not None and state == _state(name) for name, state in made["inputs"].items()
        )

    def run(self) -> None:
        """Compiles, and records what was read. A file that was edited meanwhile is recorded as unknown."""
        began = time.time_ns()
        self.record.unlink(missing_ok=True)
        depfile = _beside(self.output, ".d")
        with _replacing(self.output) as partial:
            printed = run([*self.command, "-MD", "-MF", str(depfile), "-o", str(partial), str(self.source)])
        inputs = {name: _state(name) for name in _dependencies(depfile.read_text())}
        known = {name: state if state and state[0] < began else None for name, state in inputs.items()}
        with _replacing(self.record) as partial:
            partial.write_text(json.dumps({"command": self.command, "inputs": known, "printed": printed}))
        depfile.unlink()


def compile_all(compilations: Sequence[Compilation], echo: Callable[[str], None]) -> None:
    """Brings every object up to date.

    As many compilers run at a time as there are processors, or as MAX_JOBS says.
    """
    stale = [compilation for compilation in compilations if not compilation.is_fresh()]
    one_at_a_time = threading.Lock()

    def compile_one(compilation: Compilation) -> None:
        with one_at_a_time:
            echo(f"compiling {compilation.source}")
        compilation.run()

    with ThreadPoolExecutor(max_workers=_job_count()) as pool:
        futures = [pool.submit(compile_one, compilation) for compilation in stale]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def link(command: Sequence[str], objects: Sequence[Path], output: Path, options: Sequence[str]) -> None:
    """Links the objects into a shared library that appears whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(output) as partial:
        run([*command, "-shared", "-o", str(partial), *map(str, objects), *options])


def run(command: Sequence[str]) -> str:
    """Runs a tool and returns what it wrote; raises BuildError with its own message where it fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} must be a program that can be run, but got: {error.strerror}") from error
    if done.returncode:
        raise BuildError(f"exit status {done.returncode} of this command:\n{shlex.join(command)}\n{done.stdout}")
    return done.stdout


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


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """Gives a name to write to, which takes the place of `output` in one step if all goes well."""
    partial = _beside(output, f".{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _state(name: str) -> list[int] | None:
    """What changes when a file is edited or replaced, even by an older one."""
    try:
        status = os.stat(name)
    except FileNotFoundError:
        return None
    return [status.st_mtime_ns, status.st_size]


def _dependencies(depfile: str) -> list[str]:
    """The file names after the colon of a make rule, as g++ and nvcc write it."""
    names = depfile.replace("\\\n", " ").partition(": ")[2]
    return [re.sub(r"\\(.)", r"\1", name).replace("$$", "$") for name in re.findall(r"(?:\\.|\S)+", names)]


def _job_count() -> int:
    return int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))
