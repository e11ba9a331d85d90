"""How the compiled library is built: one recipe for setup.py and for `unfoldconv.jit`.

`setup.py` runs this package before `unfoldconv` can be imported, so nothing here imports from outside of it.
"""

from .objects import BuildError
from .recipe import PYTHON_TARGET, RELEASE, Profile, build_library, fingerprint, source_files
from .toolkit import Toolkit, find_toolkit, select_toolkit

VERSION = "0.1.0"

__all__ = [
    "PYTHON_TARGET",
    "RELEASE",
    "VERSION",
    "BuildError",
    "Profile",
    "Toolkit",
    "build_library",
    "find_toolkit",
    "fingerprint",
    "select_toolkit",
    "source_files",
]
