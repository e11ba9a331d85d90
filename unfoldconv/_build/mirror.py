"""A copy of the sources that changes where their bytes do, so that ninja, which goes by time, goes by content."""

import os
import re
from pathlib import Path

from .tools import write_if_changed

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"(\.\.?/[^"\n]+)"', re.MULTILINE)


def read_files(root: Path, without: Path) -> dict[str, bytes]:
    """Every file below `root`, behind links too, by its path in it; but nothing hidden, and nothing in `without`."""
    found = {}
    without = without.resolve()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = Path(folder).resolve()
        leads_back = folder != str(root) and real in [parent.resolve() for parent in Path(folder).parents]
        if real == without or leads_back:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                found[str(path.relative_to(root))] = path.read_bytes()
    return dict(sorted(found.items()))


def write_mirror(files: dict[str, bytes], mirror: Path) -> None:
    """Makes `mirror` hold those files and no others. What is there already and right keeps its time."""
    for folder, folders, names in os.walk(mirror, topdown=False):
        for name in names:
            path = Path(folder, name)
            if str(path.relative_to(mirror)) not in files:
                path.unlink()
        for name in folders:
            if not os.listdir(Path(folder, name)):
                Path(folder, name).rmdir()
    for name, content in files.items():
        write_if_changed(mirror / name, content)


def folders_of_outward_includes(files: dict[str, bytes], root: Path) -> list[Path]:
    """The folders of `root` with files that include something out of it by a path relative to their own folder."""
    return sorted(
        {
            (root / name).parent
            for name, content in files.items()
            for path in _INCLUDE.findall(content)
            if os.path.normpath(Path(name).parent / os.fsdecode(path)).startswith("..")
        }
    )
