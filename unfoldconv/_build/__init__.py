"""How the compiled library is built: one recipe for setup.py and for `unfoldconv.jit`, run by torch's own build.

`setup.py` runs this package before `unfoldconv` can be imported, so nothing here imports from outside of it.
"""

from .recipe import PYTHON_TARGET, RELEASE, VERSION, Profile, source_files
from .toolkit import Toolkit, find_toolkit, select_toolkit
from .tools import BuildError, exclusive

__all__ = [
    "PYTHON_TARGET",
    "RELEASE",
    "VERSION",
    "BuildError",
    "Profile",
    "Toolkit",
    "exclusive",
    "find_toolkit",
    "select_toolkit",
    "source_files",
]
