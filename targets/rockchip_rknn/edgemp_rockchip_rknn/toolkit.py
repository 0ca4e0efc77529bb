"""rknn-toolkit2 as edgemp calls it: the pinned toolchain, builds, simulations, and its refusals."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemp.errors import BackendError, UnsupportedOpError
from edgemp.isolate import Limits
from edgemp.tensor import Array
from edgemp.toolchains import Toolchain, ToolchainCrashed, ToolchainError
from edgemp.toolchains.process import ToolchainProcess
from edgemp_rockchip_rknn.partition import Partition, parse

ROCKCHIP = Toolchain(
    name="rockchip",
    package="rknn-toolkit2",
    description="Rockchip's compiler and simulator for RK3588 and RK3576",
    # The toolkit declares torch<=2.4 and opencv-python; neither is needed for ONNX models, so nothing
    # is resolved and the whole set is named here as it was tested.
    requirements=(
        "coloredlogs==15.0.1",
        "fast-histogram==0.14",
        "filelock==4.2.11",
        "flatbuffers==25.12.19",
        "fsspec==2026.9.0",
        "humanfriendly==10.0",
        "jinja2==3.1.6",
        "markupsafe==3.0.4",
        "mpmath==1.3.0",
        "networkx==3.6.1",
        "numpy==1.26.4",
        "onnx==1.18.0",
        "onnxruntime==1.19.2",
        "opencv-python-headless==4.11.0.86",
        "packaging==26.3",
        "protobuf==4.25.4",
        "psutil==7.2.2",
        "rknn-toolkit2==2.5.0",
        "ruamel.yaml==0.19.1",
        "scipy==1.17.1",
        "setuptools==79.0.1",
        "sympy==1.14.0",
        "torch==2.13.0",
        "tqdm==4.70.1",
        "typing-extensions==4.16.0",
    ),
    pythons=("3.11", "3.12"),
    check="from rknn.api import RKNN; RKNN().release()",
)
SCRIPT = Path(__file__).with_name("toolkit_script.py")
MAX_RULES = 8
"""Faulty fusion rules that are switched off, one build each, before giving up."""

_RULE = re.compile(r"disable_rules=\['([^']+)'\]")
_REFUSED = (
    re.compile(r"In Node, \(\"(?P<node>[^\"]*)\", (?P<op>\w+)"),
    re.compile(r"(?P<op>\w+)\('(?P<node>[^']+)'\)"),
    re.compile(r"op[ _]?type:? *(?P<op>\w+)[^|]*?op[ _]?name:? *(?P<node>[^\s,|]+)", re.IGNORECASE),
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Job:
    """What is built: an ONNX file, for a platform ("rk3588"), with or without calibration.

    `calibration` holds one list of arrays per sample, in the order of the graph's inputs; empty means
    fp16. `hybrid` lets the toolkit keep layers in fp16 that lose too much in INT8. `disabled_rules` are
    fusion rules of the toolkit's that it may not use.
    """

    model: Path
    platform: str
    calibration: tuple[tuple[Array, ...], ...] = ()
    hybrid: bool = False
    disabled_rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Build:
    """An .rknn file, the rules that had to be disabled, and where the compiler put the layers."""

    rknn: bytes
    disabled_rules: tuple[str, ...]
    partition: Partition


def build(job: Job, folder: Path, limits: Limits) -> Build:
    """Compile; a fusion rule that breaks inside the toolkit is switched off, as its own log advises.

    Raises:
        UnsupportedOpError: naming the node that the toolkit refuses.
        BackendError: if it fails in another way.
        ToolchainMissing: if the toolchain is not installed.
    """
    disabled = list(job.disabled_rules)
    arguments = _arguments(job, folder)
    for attempt in range(MAX_RULES + 1):
        log = folder / f"build-{attempt}.log"
        try:
            with ToolchainProcess(ROCKCHIP, SCRIPT, limits) as toolkit:
                toolkit.ask(
                    "build",
                    log,
                    **arguments,
                    disabled_rules=disabled,
                    rknn_file=str(folder / "model.rknn"),
                )
        except ToolchainError as error:
            printed = _COLOURS.sub("", log.read_text(errors="replace")) if log.is_file() else ""
            advised = [rule for rule in _RULE.findall(printed) if rule not in disabled]
            if advised and attempt < MAX_RULES:
                disabled += advised
                continue
            raise _stands_for(error, printed) from error
        printed = _COLOURS.sub("", log.read_text(errors="replace"))
        return Build((folder / "model.rknn").read_bytes(), tuple(disabled), parse(printed))
    raise AssertionError("unreachable: the last attempt returns or raises")


def simulate(
    job: Job,
    layouts: Sequence[str],
    feeds: Sequence[Sequence[Array]],
    folder: Path,
    limits: Limits,
) -> tuple[tuple[Array, ...], ...]:
    """Outputs of the toolkit's simulator, in the graph's order, for every feed (arrays in input order).

    `layouts` says per input how a 4-D array lies: "nchw" (as the graph declares it) or "nhwc".

    Raises:
        BackendError: if the toolkit fails.
        ToolchainMissing: if the toolchain is not installed.
    """
    given = {f"{i}|{k}": array for i, feed in enumerate(feeds) for k, array in enumerate(feed)}
    np.savez(folder / "feeds.npz", **given)  # type: ignore[arg-type]
    log = folder / "simulate.log"
    try:
        with ToolchainProcess(ROCKCHIP, SCRIPT, limits) as toolkit:
            toolkit.ask(
                "simulate",
                log,
                **_arguments(job, folder),
                disabled_rules=list(job.disabled_rules),
                layouts=list(layouts),
                feeds=str(folder / "feeds.npz"),
                outputs=str(folder / "outputs.npz"),
            )
    except ToolchainError as error:
        printed = log.read_text(errors="replace") if log.is_file() else ""
        raise _stands_for(error, printed) from error
    with np.load(folder / "outputs.npz", allow_pickle=False) as found:
        arrays: Mapping[str, Array] = {name: found[name] for name in found.files}
    width = 1 + max(int(name.split("|")[1]) for name in arrays)
    return tuple(tuple(arrays[f"{i}|{k}"] for k in range(width)) for i in range(len(feeds)))


def _stands_for(error: ToolchainError, printed: str) -> BackendError | UnsupportedOpError:
    """A refusal, unless the tool crashed without naming a node: that may lie in the moment."""
    found = refusal(str(error), printed)
    if isinstance(error, ToolchainCrashed) and not isinstance(found, UnsupportedOpError):
        return error
    return found


def refusal(message: str, printed: str = "") -> BackendError | UnsupportedOpError:
    """The error that a failed call stands for: an `UnsupportedOpError` where a node is to blame."""
    text = _COLOURS.sub("", message)
    told = [x.strip() for x in _COLOURS.sub("", printed).splitlines() if x.startswith("E RKNN")]
    last = next((x for x in reversed(text.splitlines()) if x.strip()), text).strip()
    for source in (text, printed):
        for pattern in _REFUSED:
            if found := pattern.search(source):
                return UnsupportedOpError(
                    f"rknn-toolkit2 refuses node {found['node']!r} ({found['op']}): {last}"
                )
    why = told[-1] if told else last
    return BackendError(f"rknn-toolkit2 failed: {why}")


def _arguments(job: Job, folder: Path) -> dict[str, Any]:
    """What both requests need. The toolkit writes beside the model, so it gets a copy of its own."""
    model = folder / "model.onnx"
    if not model.exists():
        shutil.copyfile(job.model, model)
    dataset = ""
    if job.calibration:
        lines = []
        for index, arrays in enumerate(job.calibration):
            paths = [folder / f"sample-{index}-{place}.npy" for place in range(len(arrays))]
            for path, array in zip(paths, arrays, strict=True):
                np.save(path, array)
            lines.append(" ".join(map(str, paths)))
        (folder / "dataset.txt").write_text("\n".join(lines) + "\n")
        dataset = str(folder / "dataset.txt")
    return {
        "model": str(model),
        "platform": job.platform,
        "dataset": dataset,
        "hybrid": job.hybrid,
    }
