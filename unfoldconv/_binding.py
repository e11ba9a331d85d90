"""Loads the compiled library and says under which namespace its ops are.

The first that applies:

1. the library that the environment variable UNFOLDCONV_LIBRARY names (another build of the same ops, say with
   sanitizers);
2. the module `_C` that was built when the package was installed;
3. a library that `unfoldconv.jit` builds now, from the sources beside the package.

The copies of the package that `unfoldconv.jit.load` makes never run this file: they are given their binding.
"""

import importlib
import os

import torch

NAMESPACE = "unfoldconv"


def _load_library() -> None:
    path = os.environ.get("UNFOLDCONV_LIBRARY")
    if not path:
        try:
            importlib.import_module("._C", __package__)
            return
        except ModuleNotFoundError as error:
            if error.name != f"{__package__}._C":
                raise
        from . import jit

        path = str(jit.build(None, "prebuilt", namespace=NAMESPACE)[0])
    torch.ops.load_library(path)


_load_library()
