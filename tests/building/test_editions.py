"""What a build takes for changed: the content of sources, options and tools, wherever it lies and whatever its time."""

import ctypes
import os
import sys
from pathlib import Path

import pytest

from unfoldconv._build import BuildError
from unfoldconv._build.edition import build_edition
from unfoldconv._build.instruction_sets import left_out

EVERYTHING = {"named", "reader", "other"}
NAMED = """
#include "generated/registration.h"
#define QUOTE(text) #text
#define EXPAND_AND_QUOTE(text) QUOTE(text)
extern "C" PUBLIC const char* name() { return EXPAND_AND_QUOTE(UNFOLDCONV_NAMESPACE); }
"""
READER = '#include "numbers.h"\nextern "C" PUBLIC int value() { return VALUE; }\n'


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("PUBLIC", '__attribute__((visibility("default")))'))


def write_unnoticed(path: Path, text: str, age: float = 0) -> None:
    """Edits a file so that its size stays, and its time, or even looks older."""
    before = path.stat()
    path.write_text(text)
    when = before.st_mtime_ns - int(age * 1e9)
    os.utime(path, ns=(when, when))
    assert path.stat().st_size == before.st_size


class Project:
    """A library of three sources, small enough to be built in a moment."""

    def __init__(self, folder: Path) -> None:
        self.root, self.folder = folder / "csrc", folder / "build"
        self.folder.mkdir()
        write(self.root / "numbers.h", "#define VALUE 1\n")
        write(self.root / "named.cpp", NAMED)
        write(self.root / "cpu" / "reader.cpp", READER)
        write(self.root / "cpu" / "other.cpp", 'extern "C" PUBLIC int other() { return 5; }\n')

    def build(self, root: Path | None = None) -> set[str]:
        """Builds and returns the sources that were compiled."""
        before = self._objects()
        announced: list[bool] = []
        self.library, self.namespace = build_edition(
            root or self.root,
            self.folder,
            "tried",
            toolkit=None,
            namespace=None,
            verbose=False,
            announce=lambda: announced.append(True),
        )
        compiled = {name for name, state in self._objects().items() if before.get(name) != state}
        assert bool(announced) >= bool(compiled)
        self.announced = bool(announced)
        return compiled

    def _objects(self) -> dict[str, tuple[int, int]]:
        return {path.stem: (path.stat().st_ino, path.stat().st_mtime_ns) for path in self.folder.glob("*.o")}

    def value(self) -> int:
        return int(ctypes.CDLL(str(self.library)).value())

    def name(self) -> str:
        function = ctypes.CDLL(str(self.library)).name
        function.restype = ctypes.c_char_p
        return function().decode()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_unchanged_sources_run_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert project.build() == EVERYTHING
    assert project.value() == 1
    first = project.library
    monkeypatch.setattr("unfoldconv._build.edition.build_library", None)
    assert project.build() == set()
    assert not project.announced
    assert project.library == first


def test_a_touched_file_is_not_an_edited_one(project: Project) -> None:
    project.build()
    for path in project.root.rglob("*"):
        path.touch()
    assert project.build() == set()
    assert not project.announced


def test_an_edited_header_compiles_its_readers_alone(project: Project) -> None:
    project.build()
    write(project.root / "numbers.h", "#define VALUE 2\n")
    assert project.build() == {"reader", "named"}, "and what names the namespace, which is a new one"
    assert project.value() == 2


def test_every_content_has_a_namespace_of_its_own(project: Project) -> None:
    project.build()
    first, library = project.namespace, project.library
    assert project.name() == first
    write(project.root / "numbers.h", "#define VALUE 2\n")
    project.build()
    assert project.name() == project.namespace != first
    write(project.root / "numbers.h", "#define VALUE 1\n")
    assert project.build() == set()
    assert (project.namespace, project.library) == (first, library)


def test_two_folders_of_one_name_are_told_apart(project: Project, tmp_path: Path) -> None:
    project.build()
    other = tmp_path / "another"
    for path in project.root.rglob("*.*"):
        write(other / path.relative_to(project.root), path.read_text().replace("VALUE 1", "VALUE 7"))
    assert project.build(other) == {"reader", "named"}
    assert project.value() == 7
    assert project.build() == set()
    assert project.value() == 1


@pytest.mark.parametrize("age", [0, 1e6])
def test_an_edit_that_keeps_size_and_time_is_seen(project: Project, age: float) -> None:
    project.build()
    write_unnoticed(project.root / "numbers.h", "#define VALUE 3\n", age)
    assert project.build() == {"reader", "named"}
    assert project.value() == 3


def test_any_file_may_be_included(project: Project) -> None:
    files = [project.root / "tables" / f"numbers{suffix}" for suffix in (".hpp", ".inl", ".inc", ".def", ".ipp", "")]
    for file in files:
        write(file, "+ 1\n")
    includes = "\n".join(f'#include "tables/{file.name}"' for file in files)
    write(project.root / "cpu" / "reader.cpp", f'extern "C" PUBLIC int value() {{ return 0\n{includes}\n; }}\n')
    project.build()
    for number, file in enumerate(files):
        assert project.value() == len(files) + number
        write_unnoticed(file, "+ 2\n")
        assert project.build() == {"reader", "named"}
    assert project.value() == 2 * len(files)


@pytest.mark.parametrize(("how", "age"), [("relative", 0), ("absolute", 1e6), ("option", -10)])
def test_a_file_outside_of_the_folder_may_be_included(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, age: float
) -> None:
    outside = tmp_path / "outside" / "numbers.h"
    write(outside, "#define VALUE 1\n")
    name = {"relative": "../../outside/numbers.h", "absolute": str(outside), "option": "numbers.h"}[how]
    if how == "option":
        (project.root / "numbers.h").unlink()
        monkeypatch.setenv("CXXFLAGS", f"-I{outside.parent}")
    write(project.root / "cpu" / "reader.cpp", READER.replace("numbers.h", name))
    project.build()
    first = project.library
    assert project.build() == set()
    assert not project.announced
    for value in (5, 6):
        write_unnoticed(outside, f"#define VALUE {value}\n", age)
        assert project.build() == {"reader", "named"}
        assert project.value() == value
        assert project.name() == project.namespace
    write_unnoticed(outside, "#define VALUE 1\n", age)
    assert project.build() == set()
    assert project.library == first


def test_an_edit_made_while_the_compiler_runs_is_not_lost(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = tmp_path / "outside.h"
    write(header, "#define VALUE 1\n")
    write(project.root / "cpu" / "reader.cpp", READER.replace("numbers.h", str(header)))
    compiler = tmp_path / "editing-compiler"
    marker = tmp_path / "edited"
    edit = (
        f'case "$*" in *" -c "*reader.cpp*) [ -e {marker} ] || echo "#define VALUE 4" > {header}; touch {marker};; esac'
    )
    compiler.write_text(f'#!/bin/sh\nc++ "$@" && {{ {edit}\n}}\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCH_NO_COMPILER_WRAPPER", "1")
    project.build()
    assert project.value() == 1
    assert project.build() == {"reader", "named"}
    assert project.value() == 4
    assert project.build() == set()


def test_a_file_behind_a_linked_folder_counts(project: Project, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    write(real / "numbers.h", "#define VALUE 1\n")
    write(real / "more.cpp", "int more() { return 1; }\n")
    (project.root / "linked").symlink_to(real)
    (project.root / "back").symlink_to(project.root)
    write(project.root / "cpu" / "reader.cpp", READER.replace("numbers.h", "linked/numbers.h"))
    assert project.build() == EVERYTHING | {"more"}
    write_unnoticed(real / "numbers.h", "#define VALUE 6\n")
    assert project.build() == {"reader", "named"}
    assert project.value() == 6


def test_a_source_that_is_gone_is_not_linked(project: Project) -> None:
    project.build()
    (project.root / "cpu" / "other.cpp").unlink()
    assert project.build() == {"named"}
    assert not hasattr(ctypes.CDLL(str(project.library)), "other")


def test_the_build_folder_may_lie_among_the_sources(project: Project) -> None:
    project.folder = project.root / "build"
    project.folder.mkdir()
    write(project.root / ".hidden.cpp", "not C++")
    assert project.build() == EVERYTHING
    assert project.build() == set()


def test_new_options_compile_everything(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.build()
    monkeypatch.setenv("CXXFLAGS", "-DSOMETHING='a $b \"c\"'")
    assert project.build() == EVERYTHING


def test_another_compiler_of_the_same_name_compiles_everything(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "my-compiler"
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCH_NO_COMPILER_WRAPPER", "1")
    for version in ("1.0", "1.1"):
        compiler.write_text(f'#!/bin/sh\n[ "$*" = --version ] && echo {version} || exec c++ "$@"\n')
        compiler.chmod(0o755)
        assert project.build() == EVERYTHING


def test_compiler_may_have_options(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "c++ -DVALUE=9")
    write(project.root / "numbers.h", "")
    project.build()
    assert project.value() == 9


def test_errors_show_what_the_compiler_wrote_and_can_be_mended(project: Project, tmp_path: Path) -> None:
    header = tmp_path / "outside.h"
    write(header, "#define VALUE undeclared_thing\n")
    write(project.root / "cpu" / "reader.cpp", READER.replace("numbers.h", str(header)))
    with pytest.raises(BuildError, match=r"undeclared_thing") as raised:
        project.build()
    assert str(project.root / "cpu" / "reader.cpp") in str(raised.value)
    assert "other.cpp" not in str(raised.value)
    assert not list(project.folder.glob("*.so"))
    write(header, "#define VALUE 8\n")
    assert "reader" in project.build()
    assert project.value() == 8


def test_errors_of_the_linker_are_shown(project: Project) -> None:
    write(project.root / "cpu" / "other.cpp", "int missing();\nPUBLIC int other() { return missing(); }\n")
    with pytest.raises(BuildError, match="undefined reference to `missing"):
        project.build()


def test_missing_compiler_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(BuildError, match=r"needs a C\+\+20 compiler, but 'no-such-compiler' was not found"):
        project.build()


def test_missing_ninja_is_named(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("c++", "as", "ld", "sh"):
        found = next(Path(folder, name) for folder in os.defpath.split(":")[::-1] if Path(folder, name).exists())
        (tmp_path / "bin" / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setitem(sys.modules, "ninja", None)
    with pytest.raises(BuildError, match=r"needs ninja, but none was found: pip install 'unfoldconv\[jit\]'"):
        project.build()


def test_folder_without_sources_is_refused(project: Project, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError, match=r"must hold the \.cpp files of csrc, but .* holds none"):
        project.build(tmp_path / "empty")


@pytest.mark.parametrize(
    ("flags", "chosen", "absent"),
    [
        ("sse2", "", ["avx2", "avx512", "avx512_bf16", "amx"]),
        ("sse2 avx2 fma f16c", "", ["avx512", "avx512_bf16", "amx"]),
        ("avx2 fma f16c avx512f avx512bw avx512dq avx512vl", "", ["avx2", "avx512_bf16", "amx"]),
        ("avx2 fma f16c avx512f avx512bw avx512dq avx512vl", "avx2", ["avx512_bf16", "amx"]),
        ("avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_bf16", "", ["avx2", "amx"]),
        ("avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_bf16 amx_bf16 amx_tile", "", ["avx2"]),
    ],
)
def test_only_the_instruction_sets_of_the_machine_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, chosen: str, absent: list[str]
) -> None:
    monkeypatch.setenv("UNFOLDCONV_ISA", chosen)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} ht\n")
    assert left_out(tmp_path / "cpuinfo") == absent
    assert left_out(tmp_path / "nothing") == []


def test_the_folder_of_an_instruction_set_is_left_out(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unfoldconv._build.edition.left_out", lambda: ["avx512", "avx512_bf16"])
    for name in ("avx2", "avx512", "avx512_bf16"):
        write(project.root / "cpu" / "isa" / name / f"{name}_tiles.cpp", f"int tiles_{name}() {{ return 1; }}\n")
    write(
        project.root / "cpu" / "other.cpp",
        "#if defined(UNFOLDCONV_HAS_AVX2) || UNFOLDCONV_HAS_AVX512 || UNFOLDCONV_HAS_AVX512_BF16\n#error\n#endif\n",
    )
    assert project.build() == EVERYTHING | {"avx2_tiles"}
