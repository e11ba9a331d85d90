"""Objects are known by the content of what they were made from, and not, as ninja has it, by time alone.

Ninja compiles again what is older than a file that it was made from. An edit that keeps the time of a file, or puts an
older one in its place, it does not see; nor, beside a torch without CUDA, an edit of a header of a CUDA source.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .tools import run

_RECORD = "contents.json"


@contextmanager
def by_content(folder: Path) -> Iterator[None]:
    """Wraps a build in that folder: objects made from something else than what is there now are deleted before it."""
    recorded = made_from(folder)
    current = contents({name for files in recorded.values() for name in files})
    for name in _dependencies(folder):
        files = recorded.get(name)
        if files is None or any(digest is None or digest != current[file] for file, digest in files.items()):
            (folder / name).unlink(missing_ok=True)
    (folder / _RECORD).unlink(missing_ok=True)
    began = time.time_ns()
    try:
        yield
    finally:
        _remember(folder, began)


def made_from(folder: Path) -> dict[str, dict[str, str | None]]:
    """The files that each object of the folder was made from, and what they held; None means that it is not known."""
    try:
        return dict(json.loads((folder / _RECORD).read_text()))
    except FileNotFoundError:
        return {}


def contents(names: Iterable[str]) -> dict[str, str | None]:
    """What stands for the content of each file; None for one that is not there."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = hashlib.sha256(Path(name).read_bytes()).hexdigest()
        except OSError:
            found[name] = None
    return found


def _remember(folder: Path, began: int) -> None:
    """Records what the objects of the folder were made from. A file that was edited meanwhile is recorded as unknown."""
    dependencies = {name: files for name, files in _dependencies(folder).items() if (folder / name).exists()}
    digests = contents({name for files in dependencies.values() for name in files})
    for name in digests:
        try:
            edited = os.stat(name).st_mtime_ns > began
        except FileNotFoundError:
            edited = True
        if edited:
            digests[name] = None
    record = {name: {file: digests[file] for file in files} for name, files in dependencies.items()}
    partial = folder / f"{_RECORD}.partial"
    partial.write_text(json.dumps(record))
    partial.replace(folder / _RECORD)


def _dependencies(folder: Path) -> dict[str, list[str]]:
    """By the name of the object within the folder: what ninja has been told, and the rules that nvcc has left."""
    found: dict[str, list[str]] = {}
    steps = folder / "build.ninja"
    if not steps.exists():
        return found
    for block in run(["ninja", "-t", "deps"], folder).split("\n\n"):
        head, *files = block.strip().split("\n    ")
        if files:
            found[_within(folder, head.rpartition(": #deps")[0])] = [str(folder / name) for name in files]
    for name in re.findall(r"^build (.+): cuda_compile ", steps.read_text(), re.MULTILINE):
        target = folder / name.replace("$ ", " ")
        rule = target.with_suffix(".d")
        if rule.exists():
            names = re.findall(r"(?:\\.|\S)+", rule.read_text().replace("\\\n", " ").partition(" : ")[2])
            files = [re.sub(r"\\(.)", r"\1", file).replace("$$", "$") for file in names]
            found[_within(folder, str(target))] = [str(folder / file) for file in files]
    return found


def _within(folder: Path, name: str) -> str:
    return str((folder / name).relative_to(folder))
