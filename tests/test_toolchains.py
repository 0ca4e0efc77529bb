"""Toolchains get an environment of their own, and a process that no printing or crashing tool confuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgemp.errors import ToolchainMissing
from edgemp.isolate import Limits
from edgemp.toolchains import Toolchain, ToolchainCrashed, ToolchainError, environment
from edgemp.toolchains.process import ToolchainProcess

HERE = "{}.{}".format(*sys.version_info)
EMPTY = Toolchain("empty", package="", requirements=(), pythons=(HERE,))
"""A toolchain without packages."""

SCRIPT = """
import ctypes, os, sys, time

def noisy(value):
    print('{"value": "not the answer"}')
    os.write(1, b'{"value": "nor this"}\\n')
    ctypes.CDLL(None).puts(b'printed from C')
    print('complaint', file=sys.stderr)
    return {'twice': value * 2}

def waits_for_input():
    return sys.stdin.read()

def fails():
    raise ValueError('the model is odd')

def leaves():
    sys.exit(3)

def crashes():
    print('E: unsupported dtype 2', flush=True)
    os.abort()

def hangs():
    time.sleep(600)

def odd():
    return {1, 2}

def told(log, request):
    return [log, request]

def packages():
    import importlib.util
    return [n for n in ('edgemp', 'numpy', 'onnx') if importlib.util.find_spec(n)]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toolchains")
    environment.install(EMPTY, folder)
    return folder


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "script.py"
    path.write_text(SCRIPT)
    return path


def process(root: Path, script: Path, seconds: float = 60.0) -> ToolchainProcess:
    return ToolchainProcess(EMPTY, script, Limits(seconds=seconds), root)


def test_a_requirement_that_is_not_pinned_is_refused() -> None:
    with pytest.raises(
        ToolchainError, match=r"not pinned: numpy>=1.26, scipy; write NAME==VERSION"
    ):
        Toolchain("loose", "numpy", ("numpy>=1.26", "scipy", "onnx==1.18.0"), (HERE,))


def test_a_name_that_would_leave_the_folder_is_refused() -> None:
    with pytest.raises(ToolchainError, match="names a folder"):
        Toolchain("../elsewhere", "pip", (), (HERE,))


def wheel(folder: Path) -> None:
    """tiny_compiler 1.5, a wheel of one module."""
    with zipfile.ZipFile(folder / "tiny_compiler-1.5-py3-none-any.whl", "w") as archive:
        info = "tiny_compiler-1.5.dist-info"
        archive.writestr("tiny_compiler.py", "ANSWER = 42\n")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-compiler\nVersion: 1.5\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


def test_an_installed_toolchain_is_found_with_its_versions_and_not_built_twice(
    tmp_path: Path,
) -> None:
    wheel(tmp_path)
    tiny = Toolchain(
        "tiny",
        package="tiny_compiler",
        requirements=("tiny-compiler==1.5",),
        pythons=(HERE,),
        pip_options=("--no-deps", "--no-index", f"--find-links={tmp_path}"),
        check="import tiny_compiler; assert tiny_compiler.ANSWER == 42",
    )
    steps: list[str] = []
    built = environment.install(tiny, tmp_path, progress=steps.append)
    assert len(steps) == 3
    assert environment.install(tiny, tmp_path, progress=steps.append) == built
    assert environment.find(tiny, tmp_path) == built
    assert len(steps) == 3
    assert (built.version, built.python_version) == ("1.5", HERE)
    assert built.packages["tiny-compiler"] == "1.5"


def test_what_was_not_installed_is_missing_with_the_command_that_installs_it(
    tmp_path: Path,
) -> None:
    with pytest.raises(ToolchainMissing, match="edgemp toolchain install empty"):
        environment.require(EMPTY, tmp_path)


def test_a_changed_declaration_makes_the_old_environment_count_no_longer(root: Path) -> None:
    assert environment.find(replace(EMPTY, check="import json"), root) is None


def test_an_interrupted_build_does_not_count_and_the_next_one_completes_it(tmp_path: Path) -> None:
    done = environment.install(EMPTY, tmp_path)
    (done.folder / environment.DONE).unlink()
    (done.python).unlink()
    assert environment.find(EMPTY, tmp_path) is None
    assert environment.install(EMPTY, tmp_path).python.exists()


def test_a_failing_check_leaves_nothing_that_counts_as_installed(tmp_path: Path) -> None:
    broken = replace(EMPTY, check="raise SystemExit('ERROR: libvendor.so is missing')")
    with pytest.raises(ToolchainError, match=r"check failed: ERROR: libvendor\.so is missing"):
        environment.install(broken, tmp_path)
    assert environment.find(broken, tmp_path) is None


def test_without_an_index_pip_s_own_reason_and_advice_are_shown(tmp_path: Path) -> None:
    offline = replace(
        EMPTY,
        requirements=("edgemp-no-such-compiler==1.0",),
        pip_options=("--no-deps", "--no-index"),
    )
    with pytest.raises(ToolchainError, match=r"pip failed: .*edgemp-no-such-compiler.*network"):
        environment.install(offline, tmp_path)
    assert environment.find(offline, tmp_path) is None


def test_without_a_fitting_python_the_error_names_the_versions_and_the_option(
    tmp_path: Path,
) -> None:
    with pytest.raises(ToolchainError, match=r"needs Python 2\.6; .*--python PATH"):
        environment.install(replace(EMPTY, pythons=("2.6",)), tmp_path)
    with pytest.raises(ToolchainError, match="tried /no/such/python"):
        environment.install(EMPTY, tmp_path, python="/no/such/python")


def test_two_installs_of_one_toolchain_do_not_meet(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "empty").mkdir()
    with (tmp_path / "empty" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ToolchainError, match="another process is installing"):
            environment.install(EMPTY, tmp_path)
        with pytest.raises(ToolchainError, match="another process is installing"):
            environment.remove(EMPTY, tmp_path)


def test_removing_frees_the_disk_and_forgets_the_toolchain(tmp_path: Path) -> None:
    environment.install(EMPTY, tmp_path)
    assert environment.remove(EMPTY, tmp_path) > 0
    assert environment.find(EMPTY, tmp_path) is None
    assert environment.remove(EMPTY, tmp_path) == 0


def test_what_a_tool_prints_never_reaches_the_answers(
    root: Path, script: Path, tmp_path: Path
) -> None:
    with process(root, script) as called:
        log = tmp_path / "log.txt"
        assert called.ask("noisy", log, value=21) == {"twice": 42}
        assert called.ask("noisy", value=1) == {"twice": 2}
    printed = log.read_text()
    for line in ("not the answer", "nor this", "printed from C", "complaint"):
        assert printed.count(line) == 1


def test_a_tool_that_reads_its_input_finds_it_empty(root: Path, script: Path) -> None:
    with process(root, script, seconds=20) as called:
        assert called.ask("waits_for_input") == ""


def test_the_toolchain_sees_none_of_our_packages(root: Path, script: Path) -> None:
    with process(root, script) as called:
        assert called.ask("packages") == []


def test_a_tool_that_fails_or_exits_is_an_error_and_can_be_asked_again(
    root: Path, script: Path, tmp_path: Path
) -> None:
    with process(root, script) as called:
        with pytest.raises(ToolchainError, match="ValueError: the model is odd"):
            called.ask("fails")
        with pytest.raises(ToolchainError, match="SystemExit: 3"):
            called.ask("leaves")
        assert called.ask("noisy", tmp_path / "log.txt", value=2) == {"twice": 4}


def test_an_answer_that_is_no_json_is_the_script_s_error_and_it_can_be_asked_again(
    root: Path, script: Path
) -> None:
    with process(root, script) as called:
        with pytest.raises(ToolchainError, match=r"TypeError: .*set is not JSON"):
            called.ask("odd")
        assert called.ask("noisy", value=2) == {"twice": 4}


def test_arguments_called_like_the_protocol_s_own_keys_reach_the_function(
    root: Path, script: Path
) -> None:
    with process(root, script) as called:
        assert called.ask("told", log="a", request="b") == ["a", "b"]


def test_a_crash_is_an_error_with_the_last_words_of_the_tool(
    root: Path, script: Path, tmp_path: Path
) -> None:
    with (
        process(root, script) as called,
        pytest.raises(ToolchainCrashed, match=r"SIGABRT.*printed last: E: unsupported dtype 2"),
    ):
        called.ask("crashes", tmp_path / "log.txt")


def test_a_hanging_tool_is_ended_at_its_limit(root: Path, script: Path) -> None:
    with process(root, script, seconds=1.5) as called:
        pid = called._worker._process.pid
        with pytest.raises(ToolchainCrashed, match=r"timed out: hangs took more than 1\.5 s"):
            called.ask("hangs")
    assert not Path(f"/proc/{pid}").exists()


def run_cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`edgemp toolchain …` where a plugin in `folder` declares the toolchain `tiny`."""
    info = folder / "tiny_plugin-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[edgemp.toolchains]\ntiny = tiny_plugin:TINY\ntorn = tiny_plugin:NONE\n"
    )
    (folder / "tiny_plugin.py").write_text(
        "from edgemp.toolchains import Toolchain\n"
        f"TINY = Toolchain('tiny', package='', requirements=(), pythons=('{HERE}',))\n"
    )
    checkout = Path(__file__).parent.parent
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import typer; from edgemp.cli import toolchain; app = typer.Typer(); "
            "app.callback()(lambda: None); toolchain.register(app); app()",
            *arguments,
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), str(checkout)]),
            "EDGEMP_TOOLCHAINS": str(folder / "toolchains"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_line_installs_lists_and_removes(tmp_path: Path) -> None:
    before = json.loads(run_cli(tmp_path, "toolchain", "list", "--json").stdout)
    assert before["tiny"]["state"] == "not installed"
    assert before["torn"]["state"] == "broken"
    assert "NONE" in before["torn"]["problem"]
    installed = json.loads(run_cli(tmp_path, "toolchain", "install", "tiny", "--json").stdout)
    assert installed["state"] == "installed"
    assert installed["python"] == HERE
    listed = json.loads(run_cli(tmp_path, "toolchain", "list", "--json").stdout)
    assert listed["tiny"] == installed
    removed = json.loads(run_cli(tmp_path, "toolchain", "remove", "tiny", "--json").stdout)
    assert removed["freed_bytes"] > 0
    after = json.loads(run_cli(tmp_path, "toolchain", "list", "--json").stdout)
    assert after["tiny"]["state"] == "not installed"
