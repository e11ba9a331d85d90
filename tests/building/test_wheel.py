"""The wheel as somebody who installs it meets it: in a clean environment, away from the sources, with no compiler."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# Kernels for three architectures and the CUDA runtime are in it.
LARGEST = 5_500_000

USE = """
import pathlib, torch, unfoldconv as uc
assert "site-packages" in uc.__file__, uc.__file__
x, w = torch.randn(2, 3, 6, 7), torch.randn(4, 3, 3, 3)
torch.testing.assert_close(uc.conv2d(x, w, padding=1), torch.nn.functional.conv2d(x, w, padding=1))
torch.testing.assert_close(uc.unfold(x, (3, 3)), torch.nn.functional.unfold(x, (3, 3)))
assert (uc.jit.source_directory() / "problem" / "geometry.h").is_file()
print(uc.build_info()["version"])
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder, ROOT, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


def test_one_wheel_serves_every_python(wheel: Path) -> None:
    assert re.fullmatch(r"unfoldconv-[\d.]+-cp311-abi3-linux_\w+\.whl", wheel.name)


def test_wheel_is_small(wheel: Path) -> None:
    size = wheel.stat().st_size
    assert size < LARGEST, f"the wheel has {size} bytes"


def test_wheel_holds_the_package_and_the_sources_alone(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {f"unfoldconv/{path.relative_to(ROOT / 'unfoldconv')}" for path in (ROOT / "unfoldconv").rglob("*.py")}
    sources = {f"unfoldconv/{path.relative_to(ROOT)}" for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    metadata = {name for name in names if name.startswith("unfoldconv-")}
    assert names == package | sources | metadata | {"unfoldconv/_C.abi3.so", "unfoldconv/py.typed"}


def test_library_needs_neither_python_nor_cuda_libraries(wheel: Path, tmp_path: Path) -> None:
    library = zipfile.ZipFile(wheel).extract("unfoldconv/_C.abi3.so", tmp_path)
    needed = re.findall(r"NEEDED.*\[(.+)\]", run("readelf", "-d", library, cwd=tmp_path))
    known = {"libtorch_cpu", "libstdc++", "libgcc_s", "libc", "libm", "ld-linux-x86-64", "ld-linux-aarch64"}
    assert {name.partition(".so")[0] for name in needed} <= known


def test_installed_wheel_works_away_from_its_sources(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The torch that is there already, at the end of the search path.
    (installed,) = tmp_path.glob("venv/lib/python3*/site-packages")
    (installed / "torch.pth").write_text(str(Path(torch.__file__).parent.parent))
    printed = run(python, "-I", "-c", USE, cwd=tmp_path, PATH="/nowhere")
    assert printed.strip() in wheel.name
