"""The Python of the README runs as it stands, from top to bottom, in one interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python_blocks(markdown: str) -> list[str]:
    """The Python code, each block behind as many empty lines as there are lines above it, so errors give its own."""
    return [
        "\n" * (markdown.count("\n", 0, match.start(1))) + match[1]
        for match in re.finditer(r"^```python\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    ]


def test_blocks_are_found_with_their_lines() -> None:
    assert python_blocks("a\n```python\nx = 1\ny = 2\n```\n```sh\nls\n```\n```python\nz\n```\n") == [
        "\n\nx = 1\ny = 2\n",
        "\n" * 9 + "z\n",
    ]


def test_readme_runs(tmp_path: Path) -> None:
    blocks = python_blocks((ROOT / "README.md").read_text())
    assert blocks
    script = tmp_path / "readme.py"
    script.write_text(
        "namespace = {'__name__': 'readme'}\n"
        + "".join(f"exec(compile({block!r}, 'README.md', 'exec'), namespace)\n" for block in blocks)
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TORCH_EXTENSIONS_DIR": str(ROOT / "build" / "jit")}
    environment |= {"MPLBACKEND": "Agg", "CXXFLAGS": "-O0"}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
