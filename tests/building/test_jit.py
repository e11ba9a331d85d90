"""Kernels built while Python runs: beside the shipped ones, in place of missing ones, and after a build was killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import unfoldconv as uc

ROOT = Path(__file__).resolve().parents[2]
# Seconds after which something that should have ended counts as hanging.
PATIENCE = 240


@pytest.fixture(scope="module")
def extensions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("extensions")


@pytest.fixture(autouse=True)
def quick_builds(monkeypatch: pytest.MonkeyPatch, extensions: Path) -> None:
    """What is built serves all tests of this file, and is made by a compiler that does not optimise."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
    monkeypatch.setenv("CXXFLAGS", "-O0")
    monkeypatch.setenv("UNFOLDCONV_CUDA", "0")


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uc.jit.copy_source(tmp_path_factory.mktemp("edited") / "csrc")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Sources that can be built, though not be used as unfoldconv."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "tiny.cpp").write_text("int number() { return 1; }\n")
    return folder


def edit(folder: Path, mark: str) -> None:
    """Makes the library report a fact that the shipped one does not."""
    path = folder / "binding" / "build_info.cpp"
    path.write_text(re.sub(r'";(mark=\w+;)?isa="', f'";mark={mark};isa="', path.read_text()))


def python(code: str, path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the package that lies in `path`, and no installed one, in another process and in `folder`."""
    packages = Path(torch.__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-S", "-c", code],  # without the hooks of an editable installation
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{path}:{packages}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_edited_kernels_run_beside_the_shipped_ones(edited: Path, capfd: pytest.CaptureFixture[str]) -> None:
    marks = ["first", "second"]
    versions = []
    for mark in marks:
        edit(edited, mark)
        versions.append(uc.jit.load(edited, name="edited"))
        said = capfd.readouterr().err
        assert re.fullmatch(r"unfoldconv\.jit: compiling .* without CUDA into .*, later calls reuse it\n", said)
    assert [version.build_info()["mark"] for version in versions] == marks
    assert "mark" not in uc.build_info()

    x, w = torch.randn(2, 3, 8, 9, requires_grad=True), torch.randn(4, 3, 3, 3)
    expected = F.conv2d(x, w, padding=1)
    for version in (uc, *versions):
        y = version.conv2d(x, w, padding=1)
        torch.testing.assert_close(y, expected)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), x, retain_graph=True)[0])
    module = versions[0].Conv2d(3, 4, 3)
    torch.testing.assert_close(module(x), F.conv2d(x, module.weight, module.bias))


def test_copies_share_what_has_no_kernels(edited: Path) -> None:
    version = uc.jit.load(edited, name="edited")
    assert version.functional is not uc.functional
    assert version.GeometryError is uc.GeometryError
    assert version.jit is uc.jit
    with pytest.raises(uc.GeometryError):
        version.unfold(torch.randn(1, 1, 2, 2), 5)


def test_unchanged_sources_are_loaded_once(edited: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = uc.jit.load(edited, name="edited")
    capfd.readouterr()
    assert uc.jit.load(edited, name="edited") is first
    assert capfd.readouterr().err == ""


def test_missing_prebuilt_library_is_built(tmp_path: Path) -> None:
    """A checkout in which nothing was built: the package without `_C`, beside csrc."""
    (tmp_path / "csrc").symlink_to(ROOT / "csrc")
    package = tmp_path / "unfoldconv"
    package.mkdir()
    for path in (ROOT / "unfoldconv").iterdir():
        if path.suffix == ".py":
            (package / path.name).write_text(path.read_text())
    (package / "_build").symlink_to(ROOT / "unfoldconv" / "_build")
    code = "import torch, unfoldconv as uc; print(uc.__file__, uc.unfold(torch.ones(1, 1, 3, 3), 3).sum().item())"
    done = python(code, path=tmp_path, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(package / "__init__.py"), "9.0"]
    assert f"compiling {tmp_path / 'csrc'}" in done.stderr


@pytest.mark.parametrize("name", ["two words", "1st", "", "a/b", "name-with-dash"])
def test_name_must_be_an_identifier(name: str) -> None:
    with pytest.raises(ValueError, match="name must be an identifier, but got"):
        uc.jit.load(name=name)


def test_copy_source_never_overwrites(tmp_path: Path) -> None:
    copy = uc.jit.copy_source(tmp_path / "csrc")
    assert {path.name for path in copy.iterdir()} >= {"binding", "problem", "cpu", "cuda"}
    with pytest.raises(FileExistsError):
        uc.jit.copy_source(tmp_path / "csrc")


def test_killed_build_does_not_block_the_next(tiny: Path, tmp_path: Path, extensions: Path) -> None:
    """Killed while it compiles, with the lock file of torch's own JIT left behind."""
    started = tmp_path / "started"
    compiler = tmp_path / "slow-compiler"
    # Ninja gives a compiler a process group of its own.
    wait = f"echo $$ > {started}.partial; mv {started}.partial {started}; exec sleep {PATIENCE}"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *tiny.cpp*) {wait};; esac\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    command = f"import unfoldconv as uc; print(uc.jit.build({str(tiny)!r}, 'killed')[0])"
    victim = subprocess.Popen(
        [sys.executable, "-c", command],
        cwd=ROOT,
        env=os.environ | {"CXX": str(compiler), "TORCH_NO_COMPILER_WRAPPER": "1"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not started.exists():
            assert victim.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
        if started.exists():
            os.kill(int(started.read_text()), signal.SIGKILL)
    folder = extensions / "unfoldconv" / "killed"
    assert not list(folder.glob("*.so"))
    assert (folder / "lock").exists(), "torch would wait for it for ever"
    done = python(command, path=ROOT, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == folder


def test_second_build_waits_for_the_first(tmp_path: Path) -> None:
    """While one process holds the folder, another says that it waits, and goes on when the first is gone."""
    code = (
        "from pathlib import Path; from _build import exclusive\n"
        "with exclusive(Path('objects'), lambda: print('waiting', flush=True)): print('building', flush=True); input()"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT / "unfoldconv")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = {process.stdout.readline(): process for process in processes if process.stdout}
    assert set(said) == {"building\n", "waiting\n"}
    said["building\n"].kill()
    output, _ = said["waiting\n"].communicate("\n", timeout=PATIENCE)
    assert output == "building\n"
    said["building\n"].communicate(timeout=PATIENCE)
