"""The emulated device: starts programs, workers and `edgemp verify` on a target's kind of processor."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, TypeVar

import edgemp
from edgemp.emulation import layout
from edgemp.emulation.processor import emulated_cpu
from edgemp.errors import BackendError, EdgempError, ToolchainMissing, TrialError
from edgemp.isolate import Limits, TimedOut, Worker
from edgemp.target import Target

ARCH = "aarch64"
LIMITS = Limits(seconds=1800.0)
"""Emulation takes tens of times as long as the device."""
_CODE = "/opt/edgemp"
_AS_ANDROID = """
import platform
platform.system = lambda: "Android"
from edgemp.cli.main import main
main()
"""
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONPATH": f"{_CODE}:/opt/site",
    # Away from the checkout, which is bound into the device and must not be written to.
    "PYTHONPYCACHEPREFIX": "/var/cache/python",
    # Under qemu 7.2 a process of several threads corrupts its heap once in a while.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TVM_NUM_THREADS": "1",
}
ATTEMPTS = 3
"""Processes that may crash before a crash is held to be the artifact's own and not qemu's."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Emulator:
    """An installed device with one kind of processor.

    `cpu` is qemu's model and `mcpu` the one that the target asked for. A target of the `os` "android" gets
    its processor, under Linux all the same. Nothing may be timed on it:
    emulation proves correctness, never latency.
    """

    cpu: str
    mcpu: str
    folder: Path
    packages: tuple[tuple[str, str], ...] = ()
    os: str = "linux"

    @property
    def describe(self) -> str:
        """For reports, e.g. "qemu-aarch64 (cortex-a76 for cortex-a78ae)"."""
        stands_for = f" for {self.mcpu}" if self.mcpu not in {"", self.cpu} else ""
        return f"qemu-aarch64 ({self.cpu}{stands_for})"

    def engine(self, package: str) -> str:
        """An engine that is installed there, for reports, e.g. "onnxruntime 1.31.1 aarch64"."""
        return f"{package} {dict(self.packages).get(package, 'absent')} {ARCH}"

    def worker(
        self,
        limits: Limits = LIMITS,
        folders: Sequence[Path] = (),
        module: str = "edgemp.compiler.worker",
    ) -> Worker:
        """A worker whose process runs on the emulated processor.

        `folders` (of artifacts, feeds and outputs) are there under the same absolute paths as here, and
        nothing else of this machine is but /dev and /proc.
        """
        scratch = Path(tempfile.mkdtemp(prefix="edgemp-emulated-"))
        return Worker(
            limits,
            self.environment(scratch),
            command=self.command(["-m", module], scratch, folders),
            scratch=scratch,
        )

    def run(
        self, arguments: Sequence[str], *, folders: Sequence[Path] = (), seconds: float = 1800.0
    ) -> subprocess.CompletedProcess[str]:
        """Run the device's Python with `arguments` to its end.

        Raises:
            TrialError: if it takes longer than `seconds`; it is ended.
        """
        with tempfile.TemporaryDirectory(prefix="edgemp-emulated-") as name:
            return self._finish(arguments, Path(name), folders, seconds)

    def verify(
        self,
        bundle: Path,
        *,
        modules: Sequence[str] = (),
        seconds: float = 1800.0,
        attempts: int = ATTEMPTS,
    ) -> dict[str, Any]:
        """Run `edgemp verify --json` on the emulated device, for some or all modules; returns its document.

        Raises:
            EdgempError: if the bundle could not be verified at all, with the device's own message.
            TrialError: if it took too long, or crashed in every one of `attempts` processes.
        """
        return again(lambda: self._verify(bundle, modules, seconds), attempts)

    def _verify(self, bundle: Path, modules: Sequence[str], seconds: float) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="edgemp-emulated-") as name:
            seen = _tmp(Path(name)) / bundle.name
            seen.parent.mkdir()
            shutil.copyfile(bundle, seen)
            start = ["-c", _AS_ANDROID] if self.os == "android" else ["-m", "edgemp.cli.main"]
            # One thread of the engine's, as for the libraries (_ENVIRONMENT).
            arguments = [*start, "verify", str(seen), "--json", "--threads", "1"]
            arguments += [text for name in modules for text in ("--module", name)]
            ended = self._finish(arguments, Path(name), (), seconds)
        try:
            document: dict[str, Any] = json.loads(
                ended.stdout.replace(_quoted(seen), _quoted(bundle))
            )
        except ValueError:
            raise TrialError(
                f"{bundle}: edgemp verify crashed on {self.describe}: {_last_lines(ended.stderr)}"
            ) from None
        if "error" in document:
            error = document["error"]
            kind = getattr(edgemp.errors, str(error["kind"]), BackendError)
            raise (kind if issubclass(kind, EdgempError) else BackendError)(
                f"on {self.describe}: {error['message']}"
            )
        return document

    def command(
        self, arguments: Sequence[str], scratch: Path, folders: Sequence[Path] = ()
    ) -> list[str]:
        """What starts the device's Python; `scratch` holds its temporary files and what proot leaves.

        Folders keep their paths because not every question goes through proot: this machine itself answers
        `os.access` (proot 5.1 does not know the system call faccessat2).

        Raises:
            BackendError: if a folder has a name that cannot be bound.
        """
        root = self.folder / "root"
        _tmp(scratch).mkdir(exist_ok=True)
        bound = ["/dev", "/proc", f"{self.folder / 'cpuinfo' / self.cpu}:/proc/cpuinfo"]
        bound += [f"{_tmp(scratch)}:/tmp", *_own_code()]
        for folder in dict.fromkeys(Path(folder).absolute() for folder in (scratch, *folders)):
            if ":" in str(folder) or folder == Path("/"):
                raise BackendError(f"cannot show the folder {folder} to an emulated device")
            _mount_point(folder, root, scratch)
            bound.append(str(folder))
        return [
            layout.SETPRIV,  # the kernel ends proot, and with it all the rest, when this process ends
            "--pdeathsig=KILL",
            _found(layout.PROOT),
            "-v",
            "-1",
            "-q",
            _found(layout.QEMU),
            "-r",
            str(root),
            *(f"--bind={bind}" for bind in bound),
            "-w",
            "/",
            "/usr/bin/python3",
            *arguments,
        ]

    def environment(self, scratch: Path) -> dict[str, str]:
        """The environment of `command`: nothing of this machine's own reaches the device."""
        own = {"TMPDIR": str(_tmp(scratch)), "PROOT_TMP_DIR": str(scratch)}
        return {**_ENVIRONMENT, **own, "QEMU_CPU": self.cpu}

    def _finish(
        self,
        arguments: Sequence[str],
        scratch: Path,
        folders: Sequence[Path],
        seconds: float,
    ) -> subprocess.CompletedProcess[str]:
        command = self.command(arguments, scratch, folders)
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(scratch),
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                raise TimedOut(
                    f"timed out on {self.describe}: {' '.join(arguments[:3])} took more than {seconds:g} s"
                ) from None
            finally:
                _end(process)
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def again(work: Callable[[], _T], attempts: int = ATTEMPTS) -> _T:
    """What `work` returns, which starts a process of its own on an emulated device each time it is called.

    Raises:
        TrialError: of the last of `attempts` calls, if all crashed; of the first that took too long.
    """
    for _ in range(attempts - 1):
        try:
            return work()
        except TimedOut:
            raise
        except TrialError:
            continue
    return work()


def emulator(target: Target) -> Emulator | None:
    """The emulated device for a target, or None where `problem` says why there is none."""
    try:
        return locate(target)
    except ToolchainMissing:
        return None


def problem(target: Target) -> str:
    """Why artifacts for `target` cannot be emulated here and what to install; "" if they can."""
    try:
        locate(target)
    except ToolchainMissing as missing:
        return str(missing)
    return ""


def locate(target: Target) -> Emulator:
    """The emulated device for a target.

    Raises:
        ToolchainMissing: the target is no aarch64 Linux or Android, or something is not installed.
    """
    if target.arch != ARCH or target.os not in {"linux", "android"}:
        raise ToolchainMissing(
            f"only aarch64 Linux and Android devices can be emulated; "
            f"{target.name} is {target.arch or 'of no stated architecture'}, {target.os or 'no stated OS'}"
        )
    missing = [tool for tool in layout.TOOLS if shutil.which(tool) is None]
    folder = layout.device_folder()
    stamp = layout.read_stamp(folder)
    if missing or stamp is None:
        lacking = missing + ([] if stamp else [f"its root file system in {folder}"])
        raise ToolchainMissing(
            f"no emulated {ARCH} device here: missing {', '.join(lacking)}; {layout.INSTALL}"
        )
    stale = _differences(stamp["built"], layout.wanted())
    if stale:
        raise ToolchainMissing(
            f"the emulated {ARCH} device in {folder} is out of date ({stale}); {layout.INSTALL}"
        )
    cpu = emulated_cpu(target.mcpu, stamp["cpus"])
    if cpu is None:
        raise ToolchainMissing(
            f"qemu {stamp['built']['qemu']} has no processor like {target.mcpu} ({target.name}); "
            f"it knows {', '.join(stamp['cpus'])}"
        )
    return Emulator(cpu, target.mcpu, folder, tuple(stamp["built"]["packages"].items()), target.os)


def _differences(built: dict[str, Any], now: dict[str, Any]) -> str:
    old, new = ({**state, **state["packages"]} for state in (built, now))
    names = [name for name in {**old, **new} if name != "packages"]
    return ", ".join(
        f"{name} {old.get(name, 'absent')} there, {new.get(name, 'absent')} here"
        for name in names
        if old.get(name) != new.get(name)
    )


def _own_code() -> list[str]:
    """Binds of this very edgemp, its metadata (which names the backends) and its targets."""
    package = Path(edgemp.__file__).resolve().parent
    metadata = Path(str(distribution("edgemp").locate_file("")))
    (info,) = metadata.glob(f"edgemp-{distribution('edgemp').version}.dist-info")
    binds = [f"{package}:{_CODE}/edgemp", f"{info}:{_CODE}/{info.name}"]
    if (targets := package.parent / "targets").is_dir():
        binds.append(f"{targets}:{_CODE}/targets")
    return binds


def _tmp(scratch: Path) -> Path:
    """What the device also sees as /tmp."""
    return scratch / "tmp"


def _mount_point(folder: Path, root: Path, scratch: Path) -> None:
    """Make the folder exist on the device, empty, for proot to bind at."""
    inside = folder.relative_to("/")
    place = scratch / inside if inside.parts[0] == "tmp" else root / inside
    with suppress(OSError):  # a device of somebody else's: proot then makes up the folder
        place.mkdir(parents=True, exist_ok=True)


def _found(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        raise ToolchainMissing(f"{tool} is not installed; {layout.INSTALL}")
    return path


def _end(process: subprocess.Popen[str]) -> None:
    """End whatever is left of the process group, and wait for its leader."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _quoted(path: Path) -> str:
    """A path as it stands inside a JSON string."""
    return json.dumps(str(path))[1:-1]


def _last_lines(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-3:]) or "no message"
