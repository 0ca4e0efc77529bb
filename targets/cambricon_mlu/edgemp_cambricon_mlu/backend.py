"""Backend for Cambricon MLU cards: MagicMind where it is installed, a build package for it elsewhere."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from edgemp.backends.base import (
    Artifact,
    BackendDefaults,
    BuildPackage,
    Placement,
    Precision,
    Probe,
    Session,
    Simulation,
)
from edgemp.errors import BackendError, NetworkError, ToolchainMissing, UnsupportedOpError
from edgemp.network import Network
from edgemp.target import Target
from edgemp.tensor import Array, Feed
from edgemp_cambricon_mlu.operators import UNIT

MISSING = (
    "magicmind is not installed; it comes with Cambricon's MagicMind package or image (1.0.1 or newer, "
    "driver 4.20.6 or newer, https://developer.cambricon.com)"
)
FACT = "mlu_ranges"
ARCHS = ("mtp_220", "mtp_372")
"""MagicMind's names of the MLU220 and the MLU370."""


class CambriconMluBackend(BackendDefaults):
    """MagicMind on MLU370 and MLU220. Not run on an MLU: checked as far as a machine without one can."""

    name = "cambricon_mlu"
    plugin_api = 1

    def probe(self) -> Probe:
        try:
            import magicmind.python.runtime as mm
        except Exception as error:  # a broken installation may fail in any way; probes never raise
            known = isinstance(error, ModuleNotFoundError)
            return Probe(False, "magicmind", problem=MISSING if known else f"{error}; {MISSING}")
        return Probe(True, "magicmind", _version(), _devices(mm))

    def precisions(self, target: Target) -> tuple[Precision, ...]:
        unit = next((unit for unit in target.units if unit.name == UNIT), None)
        if unit is None or not {"mlu_arch", "clusters"} <= set(unit.options):
            return ()
        _check_options(target.name, unit.options)
        offered = (
            Precision("fp32", lossless=True, unit=UNIT),
            Precision("fp16", unit=UNIT),
            Precision("int8", needs="int8", unit=UNIT),
        )
        return tuple(precision for precision in offered if precision.name in unit.precisions)

    def place(self, network: Network, target: Target) -> Placement:
        from edgemp_cambricon_mlu.operators import place

        return place(_read(network))

    def prepare(self, network: Network, target: Target, precision: str, folder: Path) -> Network:
        """The network lowered to listed operators, goldens beside it; for INT8 with its ranges as a fact.

        Raises:
            BackendError: if the precision is unknown, or INT8 has no calibration samples.
            NetworkError: if a dimension is dynamic.
        """
        import onnx

        from edgemp_cambricon_mlu.lowering import lower
        from edgemp_cambricon_mlu.package import keep_goldens
        from edgemp_cambricon_mlu.ranges import calibrate

        known = [offered.name for offered in self.precisions(target)]
        if precision not in known:
            raise BackendError(
                f"cambricon_mlu has no precision {precision!r} for {target.name}; it has "
                f"{', '.join(known) or 'none'}"
            )
        if not network.is_static:
            raise NetworkError(
                f"{network.name}: cambricon_mlu builds for fixed shapes; give every dimension in shapes:"
            )
        model, done = lower(_read(network))
        if done or network.samples.held_out:
            path = folder / "lowered.onnx"
            onnx.save(model, str(path))
            keep_goldens(network, path)
            network = network.transformed(path, "mlu-lowering", mlu_lowering=list(done))
        if precision == "int8":
            ranges = calibrate(model, network.samples.calibration, network.name)
            network = network.transformed(network.model, "mlu-ranges", **{FACT: ranges.record()})
        return network

    def compile(self, network: Network, target: Target, precision: str) -> Artifact:
        package = self.defer(network, target, precision)
        try:
            return self.finish(package, target)
        except ToolchainMissing as error:
            raise ToolchainMissing(
                f"this machine cannot build for {target.name}: {error}"
            ) from None

    def defer(self, network: Network, target: Target, precision: str) -> BuildPackage:
        import onnxruntime

        from edgemp_cambricon_mlu import on_chip, operators
        from edgemp_cambricon_mlu.package import golden_count, has_goldens, package_files

        model = _read(network)
        placement = operators.place(model)
        if placement.refused:
            named = "; ".join(
                f"{node.op} ({node.node}): {node.reason}" for node in placement.refused[:5]
            )
            raise UnsupportedOpError(f"cambricon_mlu refuses {network.name}: {named}")
        ranges = _ranges(network) if precision == "int8" else None
        fits, untold = on_chip.report(model, target, precision)
        drawn = not has_goldens(network)
        files = package_files(network, model, target, precision, ranges)
        unchecked = [
            "the build itself: MagicMind's parser and builder were not run, and nothing was run on an MLU",
            f"that MagicMind's parser reads ONNX opset {_opset(model)}",
            *untold,
        ]
        if ranges is not None:
            unchecked.append(
                "that custom_ranges takes tensors by name and weights per channel: public samples show "
                "its wildcard form only"
            )
        unchecked += [f"{op}: {operators.INFERRED[op]}" for op in operators.inferred(placement)]
        checked = [
            f"all {len(placement.nodes)} nodes are among the operators that MagicMind is publicly known "
            "to take",
            "all shapes are fixed",
            *fits,
            f"{golden_count(files)} goldens: "
            + (
                "drawn inputs and what the float network makes of them"
                if drawn
                else "held-out samples and the original's outputs"
            ),
        ]
        if ranges is not None:
            checked.append(
                f"INT8 ranges of {len(ranges.activations)} activations and {len(ranges.weights)} weights "
                "come from calibration samples run through the float network"
            )
        return BuildPackage(
            backend=self.name,
            precision=precision,
            files=files,
            inputs=network.inputs,
            outputs=network.outputs,
            checked=tuple(checked),
            unchecked=tuple(unchecked),
            options=dict(target.unit(UNIT).options),
            engine="onnxruntime",
            version=onnxruntime.__version__,
            placement=placement,
        )

    def finish(self, package: BuildPackage, target: Target) -> Artifact:
        from edgemp_cambricon_mlu import build
        from edgemp_cambricon_mlu.package import check_whole

        check_whole(package.files)
        if not self.probe().available:
            raise ToolchainMissing(self.probe().problem)
        with tempfile.TemporaryDirectory(prefix="edgemp-mlu-") as name:
            folder = Path(name)
            _unpack(package.files, folder)
            try:
                # The plugin's own code, never the package's: code does not travel in bundles.
                build.build(folder, folder / "model.mm")
                built = (folder / "model.mm").read_bytes()
            except Exception as error:  # MagicMind's exceptions share no public base class
                raise BackendError(f"cambricon_mlu cannot build the network: {error}") from error
        return Artifact(
            backend=self.name,
            precision=package.precision,
            files={"model.mm": built, "io.json": package.files["io.json"]},
            inputs=package.inputs,
            outputs=package.outputs,
            options=package.options,
            engine="magicmind",
            version=_version(),
            units=(f"{UNIT} {package.precision}",),
            placement=package.placement,
        )

    def simulate(
        self,
        compiled: Artifact | BuildPackage,
        network: Network,
        target: Target,
        feeds: Sequence[Feed],
    ) -> Simulation:
        from edgemp_cambricon_mlu.proxy import simulate

        ranges = _ranges(network) if compiled.precision == "int8" else None
        return simulate(_read(network), compiled.precision, ranges, feeds)

    def open(self, artifact: Artifact, target: Target) -> Session:
        if lacking := [name for name in ("model.mm", "io.json") if name not in artifact.files]:
            raise BackendError(
                f"cambricon_mlu cannot load the network: the artifact lacks {', '.join(lacking)}"
            )
        if not self.probe().available:
            raise ToolchainMissing(f"cambricon_mlu cannot load the network: {self.probe().problem}")
        return MluSession(artifact)


class MluSession:
    """One MagicMind model on MLU 0. Every output is copied to an array of the caller's."""

    def __init__(self, artifact: Artifact) -> None:
        import json

        from edgemp_cambricon_mlu import build

        self._artifact = artifact
        with tempfile.TemporaryDirectory(prefix="edgemp-mlu-") as name:
            path = Path(name) / "model.mm"
            path.write_bytes(artifact.files["model.mm"])
            try:
                self._session: Any = build.Session(path, json.loads(artifact.files["io.json"]))
            except Exception as error:  # MagicMind's exceptions share no public base class
                raise BackendError(f"cambricon_mlu cannot load the network: {error}") from error

    def run(self, inputs: Feed) -> dict[str, Array]:
        if self._session is None:
            raise BackendError("this session of cambricon_mlu is closed")
        feeds = {spec.name: spec.check(inputs[spec.name], UNIT) for spec in self._artifact.inputs}
        try:
            found: dict[str, Array] = self._session.run(feeds)
        except Exception as error:  # MagicMind's exceptions share no public base class
            raise BackendError(f"cambricon_mlu does not run the network: {error}") from error
        return found

    def units(self) -> tuple[str, ...]:
        return (f"{UNIT} {self._artifact.precision}",)

    def profile(self) -> Placement:
        """As placed when it was packed: MagicMind's public calls do not tell where nodes run."""
        return self._artifact.placement

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None


def _read(network: Network) -> Any:
    from edgemp.ingest.onnx_file import read_onnx

    return read_onnx(network.model, network.name)


def _opset(model: Any) -> int:
    return max((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), default=0)


def _ranges(network: Network) -> Any:
    from edgemp_cambricon_mlu.ranges import Ranges

    if FACT not in network.facts:
        raise BackendError(f"{network.name}: no INT8 ranges; prepare the network in int8 first")
    return Ranges.of(network.facts[FACT])


def _unpack(content: Mapping[str, bytes], folder: Path) -> None:
    for name, data in content.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BackendError(f"cambricon_mlu refuses the package: {name!r} leads out of it")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _check_options(target: str, options: Mapping[str, Any]) -> None:
    """MagicMind would refuse them on the device, hours later.

    Raises:
        BackendError: naming the target and the option.
    """
    if options["mlu_arch"] not in ARCHS:
        raise BackendError(
            f"target {target}: units.{UNIT}.options.mlu_arch is {options['mlu_arch']!r}; known: "
            f"{', '.join(ARCHS)}"
        )
    clusters = options["clusters"]
    if not isinstance(clusters, int) or isinstance(clusters, bool) or clusters < 1:
        raise BackendError(
            f"target {target}: units.{UNIT}.options.clusters is {clusters!r}, not a number of clusters"
        )


def _version() -> str:
    try:
        return metadata.version("magicmind")
    except metadata.PackageNotFoundError:
        return "0"


def _devices(mm: Any) -> tuple[str, ...]:
    """MLUs that the driver reports; none if there is no driver."""
    try:
        with mm.System() as system:
            return tuple(f"MLU {i}" for i in range(system.device_count()))
    except Exception:  # without a driver MagicMind may fail in any way, and probes never raise
        return ()
