"""Building, finding and removing the environments of vendor toolchains."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgemp.errors import ToolchainMissing
from edgemp.toolchains import Toolchain, ToolchainError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

DONE = "edgemp-toolchain.json"
INSTALL_TIMEOUT_S = 3600.0
CHECK_TIMEOUT_S = 300.0
_VERSIONS = (
    "import json, importlib.metadata as m; "
    "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
)


@dataclass(frozen=True)
class Installed:
    """A finished environment: its interpreter, and the version of every package in it."""

    toolchain: str
    folder: Path
    python: Path
    python_version: str
    version: str
    packages: dict[str, str]

    @property
    def size_bytes(self) -> int:
        return sum(f.lstat().st_size for f in self.folder.rglob("*") if not f.is_dir())


def toolchains_folder() -> Path:
    """`$EDGEMP_TOOLCHAINS`, else `edgemp/toolchains` in the user's data folder."""
    if given := os.environ.get("EDGEMP_TOOLCHAINS"):
        return Path(given).absolute()
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "edgemp" / "toolchains"


def find(toolchain: Toolchain, root: Path | None = None) -> Installed | None:
    """The finished environment of a toolchain as it is declared now, or None.

    One that an older version of the plugin declared, or whose build did not end, does not count.
    """
    folder = _folder(toolchain, root)
    try:
        record = json.loads((folder / DONE).read_text(encoding="utf-8"))
        found = Installed(
            toolchain=toolchain.name,
            folder=folder,
            python=_python(folder),
            python_version=record["python"],
            version=record["version"],
            packages=dict(record["packages"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A venv borrows its interpreter; one that was upgraded away leaves a link to nothing.
    return found if found.python.exists() else None


def require(toolchain: Toolchain, root: Path | None = None) -> Installed:
    """The finished environment of a toolchain.

    Raises:
        ToolchainMissing: naming the command that builds it.
    """
    found = find(toolchain, root)
    if found is None:
        raise ToolchainMissing(
            f"the toolchain {toolchain.name} is not installed; {toolchain.install_command}"
        )
    return found


def install(
    toolchain: Toolchain,
    root: Path | None = None,
    python: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> Installed:
    """Build the environment of a toolchain, unless it is there.

    A venv cannot be moved, so it is built where it stays; a record written last makes it count. A build
    that was interrupted is begun again from pip's cache. Environments of older declarations are removed
    once the new one works.

    Raises:
        ToolchainError: without a fitting Python, without network, if a package is refused, if the check
            fails, or while another process builds the same toolchain.
    """
    if found := find(toolchain, root):
        return found
    folder = _folder(toolchain, root)
    with _locked(toolchain, folder.parent):
        if found := find(toolchain, root):
            return found
        shutil.rmtree(folder, ignore_errors=True)
        progress("creating a virtual environment")
        options = [] if toolchain.requirements else ["--without-pip"]
        interpreter = _interpreter(toolchain, python)
        _run([interpreter, "-m", "venv", *options, str(folder)], toolchain, "venv")
        if toolchain.requirements:
            progress(f"installing {len(toolchain.requirements)} packages")
            _run(
                [
                    *(str(_python(folder)), "-m", "pip", "install", "--no-input"),
                    *("--disable-pip-version-check", "--progress-bar=off", "--quiet"),
                    *toolchain.pip_options,
                    *toolchain.requirements,
                ],
                toolchain,
                "pip",
            )
        progress("checking")
        _run([str(_python(folder)), "-I", "-c", toolchain.check], toolchain, "check")
        record = _record(toolchain, folder)
        temporary = folder / f"{DONE}.tmp"
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
        os.replace(temporary, folder / DONE)
        for other in folder.parent.iterdir():
            if other.is_dir() and other != folder:
                shutil.rmtree(other, ignore_errors=True)
    return require(toolchain, root)


def remove(toolchain: Toolchain, root: Path | None = None) -> int:
    """Remove every environment of a toolchain; returns the bytes freed.

    Raises:
        ToolchainError: while another process builds it.
    """
    folder = _folder(toolchain, root).parent
    if not folder.is_dir():
        return 0
    with _locked(toolchain, folder):
        freed = sum(f.lstat().st_size for f in folder.rglob("*") if not f.is_dir())
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
    return freed


def _folder(toolchain: Toolchain, root: Path | None) -> Path:
    return (root or toolchains_folder()) / toolchain.name / toolchain.digest[:16]


def _python(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def _interpreter(toolchain: Toolchain, given: str) -> str:
    """An interpreter of a version that the pins exist for: the given one, this one, or one in PATH."""
    candidates = [given] if given else [sys.executable, *(f"python{v}" for v in toolchain.pythons)]
    for candidate in candidates:
        path = shutil.which(candidate)
        if path is not None and _version_of(path) in toolchain.pythons:
            return path
    wanted = " or ".join(toolchain.pythons)
    tried = ", ".join(dict.fromkeys(candidates))
    raise ToolchainError(
        f"the toolchain {toolchain.name} needs Python {wanted}; tried {tried}; "
        f"install one, or name it: {toolchain.install_command} --python PATH"
    )


def _version_of(python: str) -> str:
    command = [python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _record(toolchain: Toolchain, folder: Path) -> dict[str, object]:
    python = str(_python(folder))
    packages: dict[str, str] = json.loads(
        _run([python, "-I", "-c", _VERSIONS], toolchain, "list of packages")
    )
    known = {name.lower().replace("_", "-"): version for name, version in packages.items()}
    return {
        "python": _version_of(python),
        "version": known.get(toolchain.package.lower().replace("_", "-"), ""),
        "packages": dict(sorted(packages.items())),
    }


def _run(command: list[str], toolchain: Toolchain, step: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CHECK_TIMEOUT_S if step == "check" else INSTALL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolchainError(
            f"toolchain {toolchain.name}: {step} did not end: {error}; {_hint(step)}"
        ) from error
    if done.returncode != 0:
        lines = [x.strip() for x in (done.stderr or done.stdout).splitlines() if x.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines
        raise ToolchainError(
            f"toolchain {toolchain.name}: {step} failed: {' | '.join(errors[-3:])}; {_hint(step)}"
        )
    return done.stdout


def _hint(step: str) -> str:
    return {
        "pip": "check the network and pip's index settings, then run the command again",
        "venv": "check that this Python has its venv and ensurepip modules, and the disk has room",
    }.get(step, "remove the toolchain and install it again")


@contextmanager
def _locked(toolchain: Toolchain, folder: Path) -> Iterator[None]:
    """Keeps a second build or removal of the same toolchain out; the OS frees it if we are killed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ToolchainError(
            f"cannot write {folder}: {error}; choose another folder with EDGEMP_TOOLCHAINS"
        ) from error
    with contextlib.closing(os.fdopen(descriptor)):
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ToolchainError(
                    f"another process is installing or removing the toolchain {toolchain.name}; "
                    "wait for it, then try again"
                ) from None
        yield
