"""The recipe that setup.py and the JIT share: what is compiled again, how CUDA is found, what is said when it fails."""

import ctypes
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
from unfoldconv._build import BuildError, Toolkit

ROOT = Path(__file__).resolve().parents[2]


EVERYTHING = {"named.cpp", "reader.cpp", "other.cpp"}
NAMED = """
#define QUOTE(text) #text
#define EXPAND_AND_QUOTE(text) QUOTE(text)
extern "C" PUBLIC const char* name() { return EXPAND_AND_QUOTE(UNFOLDCONV_NAMESPACE); }
"""


class Project:
    """A library of three sources, small enough to be built in a moment."""

    def __init__(self, folder: Path) -> None:
        self.root, self.folder = folder / "csrc", folder
        (self.root / "cpu").mkdir(parents=True)
        self.write("numbers.h", "#define VALUE 1\n")
        self.write("named.cpp", NAMED)
        self.write("cpu/reader.cpp", '#include "../numbers.h"\nextern "C" PUBLIC int value() { return VALUE; }\n')
        self.write("cpu/other.cpp", 'extern "C" PUBLIC int other() { return 5; }\n')

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.write_text(text.replace("PUBLIC", '__attribute__((visibility("default")))'))
        settle(path)

    def build(self, namespace: str = "first", definitions: dict[str, str] | None = None) -> set[str]:
        """Builds and returns which files were compiled."""
        steps: list[str] = []
        self.library = self.folder / f"{len(list(self.folder.glob('*.so')))}.so"
        _build.build_library(
            self.root,
            self.library,
            self.folder / "objects",
            version="1",
            toolkit=None,
            namespace=namespace,
            definitions=definitions,
            echo=steps.append,
        )
        return {Path(step.split()[-1]).name for step in steps if step.startswith("compiling")}

    def value(self) -> int:
        return int(ctypes.CDLL(str(self.library)).value())

    def name(self) -> str:
        function = ctypes.CDLL(str(self.library)).name
        function.restype = ctypes.c_char_p
        return function().decode()


def settle(path: Path, seconds: float = 10) -> None:
    """Makes the file look `seconds` old, so that an edit never coincides with the start of a compiler."""
    when = path.stat().st_mtime_ns - int(seconds * 1e9)
    os.utime(path, ns=(when, when))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_nothing_is_compiled_twice(project: Project) -> None:
    assert project.build() == EVERYTHING
    assert project.build() == set()
    assert project.value() == 1


def test_edited_header_recompiles_its_readers_alone(project: Project) -> None:
    project.build()
    project.write("numbers.h", "#define VALUE 2\n")
    assert project.build() == {"reader.cpp"}
    assert project.value() == 2


def test_header_replaced_by_an_older_one_counts_as_edited(project: Project) -> None:
    project.build()
    project.write("numbers.h", "#define VALUE 3\n")
    settle(project.root / "numbers.h", 1e6)
    assert project.build() == {"reader.cpp"}
    assert project.value() == 3


def test_edit_made_while_the_compiler_runs_is_not_lost(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = project.root / "numbers.h"
    compiler = tmp_path / "editing-compiler"
    edit = f'case "$*" in *reader.cpp) echo "#define VALUE 4" > {header};; esac'
    compiler.write_text(f'#!/bin/sh\nc++ "$@" && {edit}\n')
    compiler.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("CXX", str(compiler))
        project.build()
    compiler.write_text('#!/bin/sh\nexec c++ "$@"\n')
    monkeypatch.setenv("CXX", str(compiler))
    assert project.build() == {"reader.cpp"}
    assert project.value() == 4


def test_new_flags_recompile_everything(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.build()
    monkeypatch.setenv("CXXFLAGS", "-DSOMETHING")
    assert project.build() == EVERYTHING


def test_new_namespace_recompiles_only_the_files_that_name_it(project: Project) -> None:
    project.build()
    assert project.name() == "first"
    assert project.build("second") == {"named.cpp"}
    assert project.name() == "second"


def test_definition_reaches_only_the_files_that_name_it(project: Project) -> None:
    project.write("cpu/reader.cpp", 'extern "C" PUBLIC int value() { return GIVEN; }\n')
    project.build(definitions={"GIVEN": "5"})
    assert project.value() == 5
    assert project.build(definitions={"GIVEN": "6"}) == {"reader.cpp"}
    assert project.value() == 6


def test_namespace_named_in_a_header_reaches_its_readers(project: Project) -> None:
    project.write("numbers.h", "#define first 1\n#define second 2\n#define VALUE UNFOLDCONV_NAMESPACE\n")
    project.build("first")
    assert project.value() == 1
    project.build("second")
    assert project.value() == 2


def test_compile_error_shows_what_the_compiler_wrote_and_can_be_mended(project: Project) -> None:
    project.write("cpu/other.cpp", "int other( { return undeclared_thing; }\n")
    with pytest.raises(BuildError, match=r"(?s)exit status \d+ of this command.*other\.cpp.*error"):
        project.build()
    assert not project.library.exists()
    assert not list(project.folder.rglob("*.partial"))
    project.write("cpu/other.cpp", "int other() { return 5; }\n")
    assert "other.cpp" in project.build()


def test_missing_compiler_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(BuildError, match=r"needs a C\+\+20 compiler, but 'no-such-compiler' was not found"):
        project.build()


def test_folder_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"must hold the \.cpp files of csrc, but .* holds none"):
        _build.source_files(tmp_path, cuda=False, python_module=False)


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


@pytest.mark.parametrize(("choice", "default", "chosen"), [("0", True, False), ("1", False, True), ("", False, False)])
def test_environment_overrides_cuda(
    no_cuda: pytest.MonkeyPatch, tmp_path: Path, choice: str, default: bool, chosen: bool
) -> None:
    no_cuda.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda")))
    no_cuda.setenv("PATH", os.defpath)
    no_cuda.setenv("UNFOLDCONV_CUDA", choice)
    assert (_build.select_toolkit(default=default) is not None) == chosen


def test_cuda_choice_must_be_zero_or_one(no_cuda: pytest.MonkeyPatch) -> None:
    no_cuda.setenv("UNFOLDCONV_CUDA", "yes")
    with pytest.raises(BuildError, match="UNFOLDCONV_CUDA must be 0 or 1, but got 'yes'"):
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
    assert requirements == "[]"
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
    assert info["version"] == _build.VERSION == importlib.metadata.version("unfoldconv")
    assert info["torch_target"] == "2.11"
    assert (info["cuda"] is None) == (info["architectures"] is None)
    assert info["isa"]
    assert info["baseline"]
