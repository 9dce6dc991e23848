"""`farandole horovod`, without compiling: edits, cache, messages. No network, no compiler."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from rich.console import Console

from farandole.adapters.errors import FarandoleError, OptionError
from farandole.cli.horovod import edits, frameworks, gpu, process, source, standard, target, toolchain, tried
from farandole.cli.horovod.builder import Follower, explain
from farandole.cli.horovod.cache import Slot, is_sound
from farandole.cli.horovod.commands import horovod
from farandole.cli.horovod.edits import EDITS, Edit
from farandole.cli.horovod.failure import HorovodBuildError
from farandole.cli.horovod.installer import missing_requirements
from farandole.cli.horovod.progress import Reporter
from farandole.cli.horovod.target import Target

LIBRARIES = ("horovod/torch/mpi_lib_v2",)
TARGET = Target(python="3.11", abi="cpython-311", platform="linux-x86_64", torch="2.13.0", tensorflow="2.21.0")


def source_tree(root: Path, *, line_end: str = "\n") -> Path:
    """A tree whose files hold the lines to edit between two others."""
    for file in {edit.file for edit in EDITS}:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        old = [edit.old for edit in EDITS if edit.file == file]
        path.write_bytes(line_end.join(["before", *old, "after", ""]).encode())
    return root


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def wheel(path: Path, *, library: str = "horovod/torch/mpi_lib_v2.cpython-311.so", metadata: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(library, os.urandom(4096))
        archive.writestr("horovod-0.28.1.dist-info/METADATA", f"Metadata-Version: 2.4\nName: horovod\n{metadata}")
    return path


@pytest.fixture
def slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slot:
    monkeypatch.setenv("FARANDOLE_CACHE_DIR", str(tmp_path / "cache"))
    return Slot(TARGET.key, LIBRARIES)


class TestEdits:
    @pytest.mark.parametrize("line_end", ["\n", "\r\n"])
    def test_each_line_becomes_what_it_should(self, tmp_path: Path, line_end: str) -> None:
        edits.apply(source_tree(tmp_path, line_end=line_end))
        for file in {edit.file for edit in EDITS}:
            lines = (tmp_path / file).read_bytes().decode().split(line_end)
            new = [line for edit in EDITS if edit.file == file and edit.new for line in edit.new.split("\n")]
            assert lines == ["before", *new, "after", ""]

    @pytest.mark.parametrize("edit", EDITS, ids=lambda edit: f"{edit.file}:{edit.old.strip()[:30]}")
    def test_a_line_that_differs_is_refused(self, tmp_path: Path, edit: Edit) -> None:
        path = source_tree(tmp_path) / edit.file
        lines = [line + " " if line == edit.old else line for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines))
        with pytest.raises(HorovodBuildError) as caught:
            edits.apply(tmp_path)
        assert edit.file in str(caught.value)
        assert repr(edit.old) in str(caught.value)
        assert "0 times" in str(caught.value)

    def test_a_line_that_stands_twice_is_refused(self, tmp_path: Path) -> None:
        path = source_tree(tmp_path) / EDITS[0].file
        path.write_text(path.read_text() * 2)
        with pytest.raises(HorovodBuildError, match="2 times"):
            edits.apply(tmp_path)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        (source_tree(tmp_path) / EDITS[-1].file).unlink()
        with pytest.raises(HorovodBuildError, match=EDITS[-1].file):
            edits.apply(tmp_path)

    def test_the_digest_follows_what_an_edit_does_and_not_its_reason(self) -> None:
        first = EDITS[0]
        other = [dataclasses.replace(first, **{name: "x"}) for name in ("file", "old", "new")]
        assert len({edits.digest(), *(edits.digest([edit, *EDITS[1:]]) for edit in other)}) == 4
        assert edits.digest([dataclasses.replace(first, reason="x"), *EDITS[1:]]) == edits.digest()


class TestKey:
    def test_it_changes_with_each_component(self) -> None:
        changed = {
            field.name: (("CXX", "clang++"),) if field.name == "settings" else "other"
            for field in dataclasses.fields(Target)
        }
        keys = {TARGET.key} | {dataclasses.replace(TARGET, **{name: value}).key for name, value in changed.items()}  # type: ignore[arg-type]
        assert len(keys) == 1 + len(changed)
        assert TARGET.key == dataclasses.replace(TARGET).key

    def test_it_is_a_plain_folder_name(self) -> None:
        key = dataclasses.replace(TARGET, mpi="Open MPI 4.1/4", settings=(("CXX", "/usr/bin/g++"),)).key
        assert Path(key).name == key
        assert " " not in key

    def test_the_summary_says_what_is_in_and_what_is_not(self) -> None:
        text = str(dataclasses.replace(TARGET, mpi="MPICH 4.2"))
        assert "torch 2.13.0" in text
        assert "MPICH 4.2" in text
        assert text.endswith("without NCCL")


class TestSource:
    def test_another_archive_is_refused(self, tmp_path: Path) -> None:
        archive = tmp_path / source.ARCHIVE
        archive.write_bytes(b"something else")
        with pytest.raises(HorovodBuildError, match=source.SHA256):
            source.verify(archive)

    @pytest.mark.skipif(not frameworks.installed(), reason="needs an installed framework")
    def test_the_command_refuses_it_before_it_builds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FARANDOLE_CACHE_DIR", str(tmp_path / "cache"))
        archive = tmp_path / "horovod.tar.gz"
        archive.write_bytes(b"something else")
        result = CliRunner().invoke(horovod, ["build", "--sdist", str(archive), "--no-mpi", "--no-nccl"])
        assert isinstance(result.exception, HorovodBuildError)
        assert not (tmp_path / "cache").exists()


class TestMissing:
    def test_everything_missing_is_named_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.delenv("HOROVOD_CMAKE", raising=False)
        monkeypatch.setattr(toolchain, "search_path", lambda: str(tmp_path))  # without this environment's own cmake
        with pytest.raises(HorovodBuildError) as caught:
            toolchain.check(torch=True)
        message = str(caught.value)
        assert "apt-get install g++" in message
        assert "dnf install gcc-c++" in message
        assert "pip install cmake" in message
        assert "pip install ninja" in message

    def test_a_compiler_the_user_chose_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.setenv("CXX", "g++-99 -m64")
        with pytest.raises(HorovodBuildError, match=r"CXX names, g\+\+-99:"):
            toolchain.check(torch=False)

    def test_mpi_is_none_without_its_compiler(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(toolchain, "search_path", lambda: str(tmp_path))
        assert toolchain.mpi_version() is None

    def test_an_unknown_framework_gets_a_suggestion(self) -> None:
        with pytest.raises(OptionError, match="Did you mean 'tensorflow'"):
            frameworks.select(["tensorflwo"])

    def test_excluding_every_framework_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOROVOD_WITHOUT_PYTORCH", "1")
        monkeypatch.setenv("HOROVOD_WITHOUT_TENSORFLOW", "1")
        with pytest.raises(FarandoleError):
            frameworks.select()

    def test_an_mpi_compiler_without_headers_is_no_mpi_and_what_to_install_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Debian's openmpi-bin alone: mpicxx exists, and prints its version, but mpi.h does not."""
        version = 'case "$1" in --showme*) echo "mpicxx: Open MPI 4.1.4"; exit;; esac'
        mpicxx = program(tmp_path / "mpicxx", f"{version}\nexit 1")
        monkeypatch.setattr(toolchain, "search_path", lambda: str(tmp_path))
        monkeypatch.setattr(target, "select", lambda wanted: (frameworks.Framework("torch", "2.13.0+cpu"),))
        for name in ("HOROVOD_WITH_MPI", "HOROVOD_WITHOUT_MPI"):
            monkeypatch.delenv(name, raising=False)
        chosen = target.plan(nccl=False)
        assert chosen.target.mpi is None
        (said,) = chosen.notes
        assert str(mpicxx) in said
        assert "apt-get install libopenmpi-dev" in said
        with pytest.raises(HorovodBuildError, match=r"has no headers \(mpi.h\): apt-get install libopenmpi-dev"):
            target.plan(mpi=True, nccl=False)
        program(mpicxx, version)
        assert target.plan(nccl=False).target.mpi == "Open MPI 4.1.4"

    def test_a_version_newer_than_any_tried_is_said_and_built(self) -> None:
        assert tried.note([frameworks.Framework("torch", f"{tried.TRIED['torch'][-1]}+cu130")]) is None
        said = tried.note([frameworks.Framework("torch", "99.1+cpu"), frameworks.Framework("tensorflow", "unknown")])
        assert said is not None
        assert f"torch 99.1+cpu (tried up to {tried.TRIED['torch'][-1]})" in said


def test_a_compiler_that_a_cache_calls_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, mine = program(tmp_path / "ccache", "exit 1"), program(tmp_path / "mine", "exit 0")
    monkeypatch.setattr(toolchain, "search_path", lambda: str(tmp_path))
    monkeypatch.setenv("CXX", f"{cache} mine -m64")
    assert toolchain.compiler() == str(mine)


@pytest.mark.skipif(toolchain.compiler() is None, reason="needs a C++ compiler")
class TestStandard:
    """A real compiler reads headers with PyTorch's requirements."""

    @pytest.fixture(autouse=True)
    def _headers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CXXFLAGS", raising=False)
        for name, (_, header) in standard._HEADERS.items():
            path = tmp_path / name / "include" / header
            path.parent.mkdir(parents=True)
            path.touch()
        monkeypatch.setattr(standard, "_folder", lambda name: tmp_path / name)
        self._torch = tmp_path / "torch" / "include" / standard._HEADERS["torch"][1]
        self._both = [frameworks.Framework("torch", "2.14.1"), frameworks.Framework("tensorflow", "2.21.0")]

    def _demand(self, year: int) -> None:
        self._torch.write_text(f"#if __cplusplus < {year}02L\n#error C++{year % 100} or later is required\n#endif\n")

    def test_it_is_the_first_that_all_headers_take(self) -> None:
        assert standard.choose(self._both) == 17
        self._demand(2020)
        assert standard.choose(self._both) == 20
        assert standard.choose(self._both[1:]) == 17

    def test_a_compiler_that_is_too_old_is_named_with_what_to_install(self, tmp_path: Path) -> None:
        """A script that refuses -std=c++20 and above as GCC 7 does, and otherwise is the real compiler."""
        refuse = 'for a; do case "$a" in -std=c++2*) echo "error: unrecognized option \'$a\'" >&2; exit 1;; esac; done'
        old = program(tmp_path / "g++-7", f'{refuse}\nexec {toolchain.compiler()} "$@"')
        assert standard.choose(self._both, path=str(old)) == 17
        self._demand(2020)
        with pytest.raises(HorovodBuildError) as caught:
            standard.choose(self._both, path=str(old))
        message = str(caught.value)
        assert f"torch 2.14.1 need C++20, which {old} (" in message
        assert "CXX=g++-11 farandole horovod install" in message

    def test_headers_that_are_broken_are_not_taken_for_a_standard(self) -> None:
        self._torch.write_text("#include <no/such/header.h>\n")
        with pytest.raises(HorovodBuildError, match=r"do not compile with .*no/such/header\.h"):
            standard.choose(self._both)


class TestTools:
    def test_the_users_number_of_jobs_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CMAKE_BUILD_PARALLEL_LEVEL", raising=False)
        monkeypatch.setenv("MAKEFLAGS", "-s -j7")
        chosen = toolchain.variables()
        assert (chosen["MAKEFLAGS"], chosen["CMAKE_BUILD_PARALLEL_LEVEL"]) == ("-s -j7", "7")

    def test_compilers_are_called_through_ccache_unless_the_user_chose(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("CXX", "CMAKE_C_COMPILER_LAUNCHER", "CMAKE_CXX_COMPILER_LAUNCHER"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PATH", "")
        assert "CMAKE_CXX_COMPILER_LAUNCHER" not in toolchain.variables()
        ccache = tmp_path / "ccache"
        ccache.touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert toolchain.variables()["CMAKE_CXX_COMPILER_LAUNCHER"] == str(ccache)
        monkeypatch.setenv("CXX", "ccache g++")
        assert "CMAKE_CXX_COMPILER_LAUNCHER" not in toolchain.variables()

    def test_jobs_fit_the_machine(self) -> None:
        assert 1 <= toolchain.jobs_that_fit() <= (os.cpu_count() or 1)

    def test_frameworks_are_switched_on_and_off(self) -> None:
        chosen = frameworks.variables([frameworks.Framework("torch", "2.13.0")])
        assert chosen == {
            "HOROVOD_WITH_PYTORCH": "1",
            "HOROVOD_WITHOUT_TENSORFLOW": "1",
            "HOROVOD_WITHOUT_MXNET": "1",
        }


class TestGpu:
    @pytest.fixture(autouse=True)
    def _plain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in os.environ if name.startswith(("HOROVOD_GPU", "HOROVOD_NCCL"))]:
            monkeypatch.delenv(name)

    def test_a_cpu_framework_gets_none(self) -> None:
        assert gpu.decide([frameworks.Framework("torch", "2.13.0+cpu")], None) == (None, None)

    def test_nccl_for_a_cpu_framework_is_an_error(self) -> None:
        with pytest.raises(HorovodBuildError, match="CPU build"):
            gpu.decide([frameworks.Framework("torch", "2.13.0+cpu")], True)

    def test_rocm_is_not_passed_over(self) -> None:
        with pytest.raises(HorovodBuildError, match="HOROVOD_GPU=ROCM"):
            gpu.decide([frameworks.Framework("torch", "2.13.0", rocm="7.0")], None)

    def test_horovods_own_variables_decide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOROVOD_GPU_OPERATIONS", "MPI")
        chosen, note = gpu.decide([frameworks.Framework("torch", "2.13.0", cuda="13.0")], None)
        assert chosen is None
        assert note is not None
        assert "HOROVOD_GPU" in note

    def test_nccl_is_read_from_its_header(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        header = tmp_path / "include" / "nccl.h"
        header.parent.mkdir()
        header.write_text("#define NCCL_MAJOR 2\n#define NCCL_MINOR 32\n#define NCCL_PATCH 3\n")
        monkeypatch.setenv("HOROVOD_NCCL_HOME", str(tmp_path))
        assert gpu.find_nccl(None) == gpu.Nccl("2.32.3")

    def test_the_package_that_pytorch_brings_is_made_linkable(self, tmp_path: Path) -> None:
        package = tmp_path / "nccl"
        (package / "lib").mkdir(parents=True)
        (package / "lib" / "libnccl.so.2").touch()
        built = gpu.Gpu("13.0", None, gpu.Nccl("2.32.3", package))
        assert built.variables(tmp_path / "links") == (chosen := built.variables(tmp_path / "links"))
        assert Path(chosen["HOROVOD_NCCL_LIB"], "libnccl.so").exists()
        assert f"-rpath,{package / 'lib'}" in chosen["LDFLAGS"]


class TestCache:
    def test_a_published_wheel_is_found_again(self, slot: Slot, tmp_path: Path) -> None:
        assert slot.wheel() is None
        kept = slot.publish(wheel(tmp_path / "horovod.whl"))
        assert slot.wheel() == kept
        assert [path.name for path in slot.folder.iterdir()] == ["horovod.whl"]

    def test_a_damaged_wheel_is_deleted_and_not_used(self, slot: Slot, tmp_path: Path) -> None:
        kept = slot.publish(wheel(tmp_path / "horovod.whl"))
        content = bytearray(kept.read_bytes())
        content[100] ^= 0xFF
        kept.write_bytes(content)
        told: list[bool] = []
        assert slot.wheel(lambda: told.append(True)) is None
        assert told
        assert not kept.exists()

    def test_a_cut_wheel_is_not_sound(self, tmp_path: Path) -> None:
        path = wheel(tmp_path / "horovod.whl")
        path.write_bytes(path.read_bytes()[:-200])
        assert not is_sound(path, LIBRARIES)

    def test_a_wheel_without_its_library_is_not_published(self, slot: Slot, tmp_path: Path) -> None:
        with pytest.raises(HorovodBuildError, match="mpi_lib_v2"):
            slot.publish(wheel(tmp_path / "horovod.whl", library="horovod/torch/mpi_ops.py"))
        assert slot.wheel() is None

    def test_one_build_at_a_time(self, slot: Slot) -> None:
        waited, entered = threading.Event(), threading.Event()

        def second() -> None:
            with slot.lock(waited.set):
                entered.set()

        with slot.lock(lambda: None):
            thread = threading.Thread(target=second)
            thread.start()
            assert waited.wait(5)
            assert not entered.is_set()
        thread.join(5)
        assert entered.is_set()

    def test_what_a_killed_build_left_is_deleted_by_the_next(self, slot: Slot, tmp_path: Path) -> None:
        left = tmp_path / "farandole-horovod-killed"
        (left / "build").mkdir(parents=True)
        (slot.folder / "building").write_text(str(left))
        with slot.scratch() as scratch:
            assert not left.exists()
            assert not list(scratch.iterdir())
        assert not scratch.exists()
        assert not (slot.folder / "building").exists()

    def test_a_cache_that_cannot_be_written_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("FARANDOLE_CACHE_DIR", str(tmp_path / "file"))
        with pytest.raises(HorovodBuildError, match="FARANDOLE_CACHE_DIR"):
            Slot("key", LIBRARIES)


class TestProgress:
    @pytest.mark.parametrize(
        "form", ["  [ {0:2d}%] Building CXX object a/b{0}.cc.o", "  [{0}/100] Building CXX object b.o"]
    )
    def test_a_line_for_each_tenth_of_the_compilation(self, form: str) -> None:
        stream = io.StringIO()
        with Reporter(Console(file=stream, force_terminal=False, highlight=False)) as report:
            report.step("configure")
            follower = Follower(report)
            follower.read("[ 50%] Building CXX object CMakeFiles/cmTC_1234.dir/testCXXCompiler.cxx.o")
            for share in range(1, 101):
                follower.read(form.format(share).strip())
            follower.read("installing to build/bdist.linux-x86_64/wheel")
        shown = [line.split("] ", 1)[1] for line in stream.getvalue().splitlines()]
        assert shown == ["configure", "compile", *(f"compile: {share} %" for share in range(10, 100, 10)), "package"]


class TestExplain:
    def test_errors_come_first_and_tracebacks_are_left_out(self, tmp_path: Path) -> None:
        log = tmp_path / "build.log"
        noise = [f"-- Looking for thing {number}" for number in range(100)]
        log.write_text(
            "\n".join(
                [
                    *noise,
                    "/tmp/farandole-horovod-ab12/horovod-0.28.1/horovod/torch/a.cc:7:1: error: no such thing",
                    "ninja: build stopped: subcommand failed.",
                    "Traceback (most recent call last):",
                    "subprocess.CalledProcessError: Command failed",
                ]
            )
        )
        lines = explain(log).splitlines()
        assert lines[1] == "horovod/torch/a.cc:7:1: error: no such thing"
        assert lines[-2:] == ["ninja: build stopped: subcommand failed.", f"The whole log: {log}"]
        assert len(lines) <= 24
        assert "Traceback" not in "\n".join(lines)

    def test_too_little_memory_gets_a_hint(self, tmp_path: Path) -> None:
        log = tmp_path / "build.log"
        log.write_text("c++: fatal error: Killed signal terminated program cc1plus\ncompilation terminated.\n")
        assert "MAKEFLAGS=-j1" in explain(log)


class TestInstall:
    def test_only_what_is_missing_is_required_and_no_extra(self, tmp_path: Path) -> None:
        required = (
            "click",
            "click>=999",
            "surely-not-installed>=1.4",
            'dataclasses; python_version < "3.7"',
            'torch==1.0; extra == "pytorch"',
        )
        metadata = "".join(f"Requires-Dist: {requirement}\n" for requirement in required)
        path = wheel(tmp_path / "horovod.whl", metadata=metadata)
        assert missing_requirements(path) == ["click>=999", "surely-not-installed>=1.4"]


class TestProcess:
    def test_all_descendants_end_when_it_is_interrupted(self, tmp_path: Path) -> None:
        started: list[psutil.Process] = []

        def interrupt(line: str) -> None:
            started.append(psutil.Process(int(line)))
            raise KeyboardInterrupt

        with process.stop_on_signals(), pytest.raises(KeyboardInterrupt):
            process.watch(["sh", "-c", "sleep 60 & echo $!; wait"], env=os.environ, cwd=tmp_path, line=interrupt)
        (child,) = started
        gone, _ = psutil.wait_procs([child], timeout=5)  # a busy machine takes a moment to end what was killed
        assert gone or child.status() == psutil.STATUS_ZOMBIE

    def test_all_descendants_end_when_we_are_killed_outright(self, tmp_path: Path) -> None:
        program = (
            "import os, pathlib, sys; from farandole.cli.horovod.process import watch; "
            "watch(['sh', '-c', 'sleep 60 & echo $!; wait'], env=os.environ, cwd=pathlib.Path(), "
            "line=lambda line: print(line, flush=True))"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        ) as parent:
            assert parent.stdout is not None
            child = psutil.Process(int(parent.stdout.readline()))
            parent.kill()
        gone, _ = psutil.wait_procs([child], timeout=5)
        assert gone or child.status() == psutil.STATUS_ZOMBIE


def test_looking_for_what_a_build_needs_leaves_setuptools_importable() -> None:
    look = "from farandole.cli.horovod import toolchain\ntoolchain.check(torch=False)\nimport setuptools"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
