"""Sets up the emulated device: system packages, a Debian for arm64, and the engines' aarch64 wheels.

Nothing here names a server: Debian's packages come from where this machine's apt gets its own, wheels from
where its pip does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from edgemp.emulation import layout, processor
from edgemp.errors import ToolchainMissing

SYSTEM_PACKAGES = {
    layout.QEMU: "qemu-user-static",
    layout.PROOT: "proot",
    "mmdebstrap": "mmdebstrap",
    layout.SETPRIV: "util-linux",
}
# Enough for Python and for what the wheels link to.
_GUEST_PACKAGES = "python3-minimal,libpython3-stdlib,libstdc++6,libgomp1,libc6"
_GLIBC_MINORS = range(17, 37)
"""glibc 2.17 is the oldest that wheels are built for, 2.36 that of the oldest Debian that works here."""
_END_WITH_PARENT = """\
# Python runs this at its start. The kernel then ends an emulated program with its proot, which ends with the
# process that started it (prctl PR_SET_PDEATHSIG, SIGKILL).
import ctypes

ctypes.CDLL(None).prctl(1, 9)
"""
_SELF_TEST = (
    "import numpy, cv2, pydantic, onnxruntime, typer, rich, edgemp.runtime.app, edgemp.compiler.worker; "
    "from edgemp.machine import this_machine as m; print(m().arch, *sorted(m().isa))"
)

Say = Callable[[str], None]


def install(say: Say) -> Path:
    """Build the device unless it is there and up to date; returns its folder.

    It is built under a temporary name, tried out, and then renamed.

    Raises:
        ToolchainMissing: this is no Debian, a package is missing and this is not root, or a step failed.
    """
    folder = layout.device_folder()
    _system_packages(say)
    stamp = layout.read_stamp(folder)
    if stamp is not None and stamp["built"] == layout.wanted():
        say(f"{folder} is up to date")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _build(temporary, say)
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    say(f"{folder} is ready")
    return folder


def _system_packages(say: Say) -> None:
    absent = [package for tool, package in SYSTEM_PACKAGES.items() if shutil.which(tool) is None]
    if not absent:
        return
    wish = f"apt-get install {' '.join(absent)}"
    if shutil.which("apt-get") is None:
        raise ToolchainMissing(
            f"the emulated device is made of Debian's packages, and this system has no apt-get; missing: "
            f"{', '.join(absent)}"
        )
    if os.geteuid() != 0:
        raise ToolchainMissing(f"as root, run: {wish}; then try again")
    say(wish)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    _call(["apt-get", "update", "-qq"], environment=quiet)
    _call(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *absent], environment=quiet
    )


def _build(device: Path, say: Say) -> None:
    root = device / "root"
    suite, sources = _sources()
    say(f"Debian {suite} for arm64")
    _root_file_system(device, root, suite, sources)
    python = sorted(path.name for path in (root / "usr/bin").glob("python3.*"))[-1]
    packages = layout.runtime_packages()
    say(f"{len(packages)} wheels for aarch64")
    _wheels(root / "opt/site", python.removeprefix("python"), packages)
    (root / "opt/site/sitecustomize.py").write_text(_END_WITH_PARENT)
    processors = root / "sys/devices/system/cpu"
    processors.mkdir(parents=True)
    cores = os.cpu_count() or 1
    for name in ("possible", "present", "online"):
        (processors / name).write_text(f"0-{cores - 1}\n" if cores > 1 else "0\n")
    say("trying it out")
    (device / "cpuinfo").mkdir()
    identities = _identities(device)
    for name, identity in identities.items():
        (device / "cpuinfo" / name).write_text(identity.cpuinfo(cores))
    _self_test(device, identities)
    stamp = {"built": layout.wanted(), "suite": suite, "python": python, "cpus": sorted(identities)}
    (device / layout.STAMP).write_text(json.dumps(stamp, indent=1))


def _sources() -> tuple[str, dict[str, str]]:
    """The suite of this Debian, and this machine's apt sources of it by file name; no third parties'."""
    release = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text().splitlines()
        if "=" in line
    )
    if release.get("ID", "").strip('"') != "debian":
        raise ToolchainMissing(
            "the emulated device is made of this Debian's packages; this is none"
        )
    suite = release["VERSION_CODENAME"].strip('"')
    found = {}
    for path in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")):
        if path.suffix not in {".list", ".sources"} or not path.is_file():
            continue
        kept = debian_sources(path.read_text(), suite, deb822=path.suffix == ".sources")
        if kept:
            found[path.name] = kept
    if not found:
        raise ToolchainMissing(f"no source of Debian {suite} main in /etc/apt/sources.list*")
    return suite, found


def debian_sources(text: str, suite: str, *, deb822: bool) -> str:
    """Those entries of an apt sources file that offer `suite` main, for any architecture."""
    own = re.compile(rf"(?:{re.escape(suite)}|stable)(?:[-/](?:updates|security))?/?")
    if deb822:
        entries = re.split(r"\n\s*\n", text)
        kept = []
        for entry in entries:
            fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", entry, re.MULTILINE))
            offered = fields.get("Suites", "").split()
            if "main" in fields.get("Components", "").split() and any(map(own.fullmatch, offered)):
                kept.append(re.sub(r"^Architectures:.*\n?", "", entry, flags=re.MULTILINE))
        return "\n\n".join(kept)
    lines = []
    for line in text.splitlines():
        found = re.match(
            r"deb\s+(?:\[(?P<options>[^]]*)]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<parts>.*)",
            line,
        )
        if found and own.fullmatch(found["suite"]) and "main" in found["parts"].split():
            options = [o for o in (found["options"] or "").split() if not o.startswith("arch=")]
            bracket = f"[{' '.join(options)}] " if options else ""
            lines.append(f"deb {bracket}{found['uri']} {found['suite']} main\n")
    return "".join(lines)


def _root_file_system(device: Path, root: Path, suite: str, sources: Mapping[str, str]) -> None:
    """Unpacked only: nothing in it needs configuring, so no foreign program runs and no root is needed."""
    archive = device / "root.tar"
    lists = []
    for name, text in sources.items():
        lists.append(str(device / name))
        Path(lists[-1]).write_text(text)
    _call(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=extract",
            # No chroot is needed to unpack; mmdebstrap's other ways for users need more packages.
            *(["--mode=chrootless"] if os.geteuid() != 0 else []),
            "--architectures=arm64",
            f"--include={_GUEST_PACKAGES}",
            suite,
            str(archive),
            *lists,
        ]
    )
    root.mkdir()
    _call(["tar", "-xf", str(archive), "-C", str(root), "--exclude=./dev", "--no-same-owner"])
    for path in (archive, *map(Path, lists)):
        path.unlink()
    for name in ("dev", "proc", "sys", "tmp", "opt", "var/cache"):
        (root / name).mkdir(parents=True, exist_ok=True)


def _wheels(site: Path, python: str, packages: Iterable[tuple[str, str]]) -> None:
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in _GLIBC_MINORS]
    platforms.append("manylinux2014_aarch64")
    _call(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-compile",
            "--only-binary=:all:",
            *(f"--platform={name}" for name in platforms),
            f"--python-version={python}",
            f"--target={site}",
            *(f"{name}=={version}" for name, version in packages),
        ]
    )


def _identities(device: Path) -> dict[str, processor.Identity]:
    """What each processor that qemu can emulate says of itself; those that do not start are left out."""
    # It exits with 1 all the same.
    said = subprocess.run(
        [layout.QEMU, "-cpu", "help"], capture_output=True, text=True, check=False
    )
    found = {}
    for name in said.stdout.split("Available CPUs:")[-1].split():
        (device / "cpuinfo" / name).touch()
        with suppress(ToolchainMissing, ValueError):
            found[name] = processor.parsed(_try(device, name, ["-c", processor.PROBE]))
    return found


def _self_test(device: Path, identities: Mapping[str, processor.Identity]) -> None:
    """Import everything once, which also fills the cache of compiled modules."""
    expected = " ".join(["aarch64", *sorted(identities[processor.BASELINE].features)])
    said = _try(device, processor.BASELINE, ["-c", _SELF_TEST]).strip()
    if said != expected:
        raise ToolchainMissing(f"the emulated device calls itself {said!r}, not {expected!r}")


def _try(device: Path, cpu: str, arguments: Sequence[str]) -> str:
    from edgemp.emulation.device import Emulator

    ended = Emulator(cpu, cpu, device).run(arguments, seconds=300)
    if ended.returncode != 0:
        raise ToolchainMissing(f"the emulated {cpu} does not run Python: {ended.stderr[-600:]}")
    return ended.stdout


def _publish(temporary: Path, folder: Path) -> None:
    temporary.chmod(0o755)
    if folder.exists():
        if layout.read_stamp(folder) is None and any(folder.iterdir()):
            raise ToolchainMissing(
                f"{folder} holds something else than an emulated device; set EDGEMP_EMULATION to another"
            )
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        folder.rename(old / "device")
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(folder)


def _call(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
    except OSError as error:
        raise ToolchainMissing(f"{command[0]} cannot be run: {error}") from None
    if ended.returncode != 0:
        lines = (ended.stderr or ended.stdout).strip().splitlines()[-6:]
        raise ToolchainMissing(f"{' '.join(command[:4])} failed: {' | '.join(lines)}")
