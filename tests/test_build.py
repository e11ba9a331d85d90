"""What setup.py and the JIT share: how CUDA is found, the build backend, what a library says of its build."""

import importlib.metadata
import importlib.util
import os
import subprocess
import venv
from pathlib import Path

import pytest
import torch

import unfoldconv as uc
from unfoldconv import _build
from unfoldconv._build import VERSION, BuildError, Toolkit

ROOT = Path(__file__).resolve().parent.parent

# --- the CUDA toolkit ------------------------------------------------------------------------------------------------


def make_toolkit(home: Path, version: str = "13.0") -> Path:
    """Something that answers like nvcc."""
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        f'#!/bin/sh\ncase "$*" in *--version*) echo "Cuda compilation tools, release {version}, V{version}.1";;'
        f" *--dryrun*) echo '#$ TOP={home}/bin/..' >&2;; esac\n"
    )
    nvcc.chmod(0o755)
    return home


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment that says nothing about CUDA, with no nvcc on PATH."""
    for name in ("CUDA_HOME", "CUDA_PATH", "UNFOLDCONV_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    return monkeypatch


def test_toolkit_of_cuda_home(no_cuda: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = make_toolkit(tmp_path / "cuda")
    no_cuda.setenv("CUDA_HOME", str(home))
    no_cuda.setenv("PATH", os.defpath)
    assert _build.find_toolkit() == Toolkit(home, "13.0", ("7.5", "8.0+PTX", "9.0a"))


def test_toolkit_behind_a_script_on_path(no_cuda: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = make_toolkit(tmp_path / "cuda")
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "nvcc").write_text(f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
    (scripts / "nvcc").chmod(0o755)
    no_cuda.setenv("PATH", f"{scripts}:{os.defpath}")
    found = _build.find_toolkit()
    assert found is not None
    assert found.home == home


def test_cuda_home_without_nvcc_means_no_cuda(no_cuda: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_cuda.setenv("CUDA_HOME", str(tmp_path))
    assert _build.select_toolkit(default=True) is None
    no_cuda.setenv("UNFOLDCONV_CUDA", "1")
    with pytest.raises(BuildError, match=r"UNFOLDCONV_CUDA=1 needs nvcc 12\.0 or newer, but none was found"):
        _build.select_toolkit(default=True)


def test_too_old_nvcc_is_left_alone(no_cuda: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_cuda.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda", "11.8")))
    no_cuda.setenv("PATH", os.defpath)
    assert _build.select_toolkit(default=True) is None


@pytest.mark.parametrize(
    ("choice", "default", "chosen"),
    [("0", True, False), ("1", False, True), ("", False, False), ("auto", True, True), ("auto", False, False)],
)
def test_environment_overrides_cuda(
    no_cuda: pytest.MonkeyPatch, tmp_path: Path, choice: str, default: bool, chosen: bool
) -> None:
    no_cuda.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda")))
    no_cuda.setenv("PATH", os.defpath)
    no_cuda.setenv("UNFOLDCONV_CUDA", choice)
    assert (_build.select_toolkit(default=default) is not None) == chosen


def test_cuda_choice_is_checked(no_cuda: pytest.MonkeyPatch) -> None:
    no_cuda.setenv("UNFOLDCONV_CUDA", "yes")
    with pytest.raises(BuildError, match="UNFOLDCONV_CUDA must be 0, 1 or auto, but got 'yes'"):
        _build.select_toolkit(default=True)


def test_architectures_of_the_environment(no_cuda: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_cuda.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda")))
    no_cuda.setenv("PATH", os.defpath)
    no_cuda.setenv("TORCH_CUDA_ARCH_LIST", "8.6 9.0a;12.0+PTX")
    toolkit = _build.find_toolkit()
    assert toolkit is not None
    assert toolkit.architecture_flags() == [
        "-gencode=arch=compute_86,code=[sm_86]",
        "-gencode=arch=compute_90a,code=[sm_90a]",
        "-gencode=arch=compute_120,code=[sm_120,compute_120]",
    ]


@pytest.mark.parametrize(
    ("version", "flag"),
    [("12.0", "-Xfatbin=-compress-all"), ("12.9", "-Xfatbin=-compress-all"), ("13.0", "--compress-mode=size")],
)
def test_machine_code_is_compressed_as_drivers_can_read_it(version: str, flag: str) -> None:
    assert Toolkit(Path("/cuda"), version, ("8.0",)).compression_flag() == flag


def test_unknown_architecture_is_refused() -> None:
    with pytest.raises(BuildError, match=r"TORCH_CUDA_ARCH_LIST must hold names like 8\.0, .* but got Turing"):
        Toolkit(Path("/cuda"), "13.0", ("8.0", "Turing")).architecture_flags()


# --- the build backend -----------------------------------------------------------------------------------------------


def load_backend(tmp_path: Path, *, with_torch: bool) -> subprocess.CompletedProcess[str]:
    """Loads the backend as pip does: with the user's interpreter, setuptools, and site-packages out of sight."""
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    for package in ("setuptools", "_distutils_hack"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        (overlay / package).symlink_to(Path(str(spec.origin)).parent)
    hide = "import sys; sys.path[:] = [folder for folder in sys.path if not folder.endswith('site-packages')]"
    (overlay / "sitecustomize.py").write_text(hide)
    if with_torch:
        (installed,) = tmp_path.glob("venv/lib/python3*/site-packages")
        (installed / "torch").mkdir()
        (installed / "torch" / "__init__.py").touch()
    code = "import backend; print(backend.get_requires_for_build_wheel()); import torch; print(torch.__file__)"
    environment = {"PATH": os.defpath, "HOME": str(tmp_path), "PYTHONPATH": f"{overlay}:{ROOT / '_build_meta'}"}
    return subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_isolated_build_finds_the_torch_that_is_installed(tmp_path: Path) -> None:
    done = load_backend(tmp_path, with_torch=True)
    assert done.returncode == 0, done.stderr
    requirements, torch_file = done.stdout.splitlines()
    assert requirements == "['ninja']"
    assert torch_file.startswith(str(tmp_path / "venv"))


def test_isolated_build_without_torch_says_what_to_do(tmp_path: Path) -> None:
    done = load_backend(tmp_path, with_torch=False)
    assert done.returncode != 0
    assert "pip install torch first" in done.stderr
    assert "Traceback" not in done.stderr


# --- what was built --------------------------------------------------------------------------------------------------


def test_build_info() -> None:
    info = uc.build_info()
    assert list(info) == ["torch", "version", "torch_target", "cuda", "architectures", "isa", "baseline"]
    assert info["torch"] == torch.__version__
    assert info["version"] == VERSION == importlib.metadata.version("unfoldconv")
    assert info["torch_target"] == "2.11"
    assert (info["cuda"] is None) == (info["architectures"] is None)
    assert info["isa"]
    assert info["baseline"]
