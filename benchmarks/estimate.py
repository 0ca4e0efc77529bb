"""Claim: estimates of this machine are off by at most 35 % in the median, and rank networks right.

    python benchmarks/estimate.py [--quick] [--json FILE] [--rounds N]

The estimates are those of `edgemp estimate`: each backend's own, with ceilings that
`edgemp.estimate.calibrate.measured` takes from micro-benchmarks, here anew; no network below was used
for them. Engines are ONNX Runtime in fp32 and OpenVINO in fp32, bf16 (where the CPU has it) and INT8.
Ceilings are made of shortest runs, of a machine that nobody else uses, and so the shortest runs of the
networks are what the goals are about; how far means are from the estimates is told, too, without a goal.

A second table puts estimates for other devices beside published figures (benchmarks/known/published.py
cites each). Those ceilings are peak rates times one assumed share per kind of unit: nothing was fitted
to the figures, no goal is set, and the table says how far off they are.

What this does not show: other machines than this one, other engines, dynamic shapes, throttling.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any

import numpy as np

MEDIAN_GOAL, RANK_GOAL = 35.0, 0.9
SLICE_S = 0.1
SAMPLES = 4
RUNS = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"))


@dataclass(frozen=True)
class Case:
    """One network: `make(path)` writes its ONNX file. Not part of `--quick` if `slow`."""

    name: str
    make: Callable[[Path], None]
    slow: bool = False


@dataclass(frozen=True)
class Point:
    """One network on one engine, in milliseconds; `measured` is the shortest run, `mean` that of all."""

    case: str
    engine: str
    estimated: float
    low: float
    high: float
    measured: float
    mean: float

    @property
    def error(self) -> float:
        """Percent of the measured time, positive if the estimate is too slow."""
        return (self.estimated / self.measured - 1) * 100


def cases() -> tuple[Case, ...]:
    from benchmarks.known import networks
    from benchmarks.peers import towers
    from examples.ar_subtitle import models

    def built(make: Callable[[], Any]) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            import onnx

            onnx.save(make(), str(path))

        return write

    def file(source: Callable[[], Path], *shape: int) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            import onnx

            from edgemp.ingest.onnx_file import fix_shapes, raise_opset

            model = raise_opset(onnx.load(str(source())), path.stem)
            onnx.save(fix_shapes(model, {model.graph.input[0].name: shape}), str(path))

        return write

    def exported(make: Callable[[], Any], **inputs: Any) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            from edgemp.ingest.torch_module import export_module

            export_module(make(), inputs, ["output"], path, path.stem)

        return write

    def classifier() -> Path:
        return models.detector().with_name("ch_ppocr_mobile_v2.0_cls_mobile.onnx")

    tokens = np.ones((1, 128), np.int64)
    return (
        Case("PP-OCRv6 detector 480x640", file(models.detector, 1, 3, 480, 640)),
        Case("PP-OCRv6 recogniser 48x320", file(models.recogniser, 1, 3, 48, 320)),
        Case("PP-OCR line classifier 48x192", file(classifier, 1, 3, 48, 192)),
        Case("MiniLM-L6 128 tokens", exported(models.minilm, input_ids=tokens,
                                              attention_mask=tokens)),
        Case("MobileNetV2 224", built(networks.mobilenet_v2)),
        Case("ResNet-18 224", built(lambda: networks.resnet(18))),
        Case("U-Net 192", built(networks.unet)),
        Case("Conformer 400 frames", built(networks.speech)),
        Case("LSTM 64 steps", built(networks.lstm)),
        Case("ViT-Ti/16 224", built(networks.vit)),
        Case("ResNet-50 224", built(networks.resnet), slow=True),
        Case("YOLOv5s 320", built(lambda: networks.yolov5s(320)), slow=True),
        Case("CLIP ViT-B/32 vision", exported(
            towers.clip_vision, pixels=np.zeros((1, 3, 224, 224), np.float32)), slow=True),
        Case("CLIP text 77 tokens", exported(
            towers.clip_text, input_ids=np.ones((1, 77), np.int64)), slow=True),
    )  # fmt: skip


def network_of(path: Path) -> Any:
    """The network of an ONNX file, with random samples to calibrate INT8 on."""
    import onnx

    from edgemp.ingest.onnx_file import graph_inputs, graph_outputs
    from edgemp.network import Network, file_digest
    from edgemp.samples import Samples

    model = onnx.load(str(path))
    inputs = graph_inputs(model, path.stem)
    random = np.random.default_rng(0)
    feeds = tuple(
        {
            spec.name: random.standard_normal(spec.shape).astype(np.float32)
            if spec.dtype == "float32"
            else np.ones(spec.shape, spec.dtype)
            for spec in inputs
        }
        for _ in range(SAMPLES)
    )
    return Network(
        path.stem, path, inputs, graph_outputs(model, path.stem), file_digest(path),
        Samples(feeds, feeds),
    )  # fmt: skip


def measured(
    backend: str,
    precision: str,
    networks: Mapping[str, Any],
    target: Any,
    folder: Path,
    rounds: int,
) -> list[Point]:
    """Every network that the engine takes: estimated, then run in turn with the others."""
    from edgemp.backends import load_backend
    from edgemp.errors import EdgempError

    engine = load_backend(backend)
    name = f"{backend} {precision}"
    guesses = {}
    runs: dict[str, Callable[[], Any]] = {}
    with ExitStack() as stack:
        for case, network in networks.items():
            work = folder / f"{network.name}-{backend}-{precision}"
            work.mkdir()
            try:
                # A cache of our own, so that the ceilings are measured now, once per engine.
                guesses[case] = _estimated(engine, network, target, precision, folder / "cache")
                prepared = engine.prepare(network, target, precision, work)
                session = engine.open(engine.compile(prepared, target, precision), target)
            except EdgempError as error:
                print(f"{case} on {name}: {error}", file=sys.stderr)
                continue
            stack.callback(session.close)
            feed = network.samples.held_out[0]
            session.run(feed)
            runs[case] = partial(session.run, feed)
        times = _times(runs, rounds)
    points = []
    for case, took in times.items():
        guess = guesses[case]
        points.append(
            Point(case, name, guess.latency_ms, guess.low_ms, guess.high_ms, min(took), fmean(took))
        )
    return points


def _estimated(engine: Any, network: Any, target: Any, precision: str, cache: Path) -> Any:
    """As `edgemp estimate` does it."""
    from edgemp.backends.roofline import CEILINGS
    from edgemp.compiler.cache import StageCache

    kept = CEILINGS.set(StageCache(cache))
    try:
        return engine.estimate(network, target, precision)
    finally:
        CEILINGS.reset(kept)


def _times(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of all runs: everything in turn, for a moment each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = perf_counter()
            while not times[name] or perf_counter() - started < SLICE_S:
                before = perf_counter()
                run()
                times[name].append((perf_counter() - before) * 1e3)
    return times


def compared(chosen: Sequence[Case], target: Any, folder: Path, args: Any) -> list[Point]:
    """All networks on all engines of `RUNS` that this machine has."""
    from edgemp.backends import load_backend

    networks = {}
    for case in chosen:
        path = folder / f"{case.name.replace(' ', '_').replace('/', '_')}.onnx"
        case.make(path)
        networks[case.name] = network_of(path)
    points = []
    for backend, precision in RUNS:
        if args.engines and f"{backend}-{precision}" not in args.engines.split(","):
            continue
        if precision not in {p.name for p in load_backend(backend).precisions(target)}:
            continue
        found = measured(
            backend, precision, networks, target, folder, args.rounds or (6 if args.quick else 20)
        )
        for point in found:
            print(f"{point.engine}, {point.case}: estimated {point.estimated:.2f} ms, measured "
                  f"{point.measured:.2f} ms", file=sys.stderr)  # fmt: skip
        points += found
    return points


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: the correlation of ranks (no ties among timings)."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def host_rows(points: Sequence[Point]) -> list[Any]:
    from benchmarks.rows import Row

    rows = [
        Row(
            f"{point.case}, {point.engine}",
            "estimated ms",
            round(point.estimated, 3),
            rivals={
                "low": round(point.low, 3),
                "high": round(point.high, 3),
                "measured ms": round(point.measured, 3),
                "error %": round(point.error, 1),
                "mean ms": round(point.mean, 3),
            },
        )
        for point in points
    ]
    engines = list(dict.fromkeys(point.engine for point in points))
    for engine in ["all", *engines]:
        of = [p for p in points if engine in {"all", p.engine}]
        error = median(abs(point.error) for point in of)
        rank = rank_correlation([p.estimated for p in of], [p.measured for p in of])
        of_means = median(abs(p.estimated / p.mean - 1) * 100 for p in of)
        inside = sum(p.low <= p.measured <= p.high for p in of) / len(of)
        goal = engine == "all"
        rows += [
            Row(engine, "median |error| %", round(error, 1), f"<= {MEDIAN_GOAL:g}" if goal else None,
                error <= MEDIAN_GOAL if goal else None),
            Row(engine, "rank correlation", round(rank, 3), f">= {RANK_GOAL:g}" if goal else None,
                rank >= RANK_GOAL if goal else None),
            Row(engine, "median |error| % of means", round(of_means, 1)),
            Row(engine, "measured within low..high %", round(100 * inside)),
        ]  # fmt: skip
    return rows


def published_rows(folder: Path) -> list[Any]:
    """Estimates beside what vendors and others published, one row per figure."""
    import onnx

    from benchmarks.known.published import FIGURES
    from benchmarks.rows import Row
    from edgemp.backends.roofline import roofline
    from edgemp.target import load_target

    made: dict[str, Any] = {}
    rows = []
    ratios = []
    inside = 0
    for figure in FIGURES:
        if figure.network not in made:
            path = folder / f"{figure.network}.onnx".replace("/", "_").replace(" ", "_")
            onnx.save(figure.make(), str(path))
            made[figure.network] = network_of(path)
        target = load_target(figure.target)
        guess = roofline(made[figure.network], target, figure.precision, figure.unit)
        scale = figure.batch
        ratios.append(guess.latency_ms / scale / figure.ms)
        inside += guess.low_ms <= figure.ms * scale <= guess.high_ms
        rows.append(
            Row(
                f"{figure.network}, {figure.target} {figure.unit} {figure.precision}",
                f"estimated ms per sample ({figure.scenario})",
                round(guess.latency_ms / scale, 3),
                rivals={
                    "low": round(guess.low_ms / scale, 3),
                    "high": round(guess.high_ms / scale, 3),
                    "published ms": round(figure.ms, 3),
                    "ratio": round(ratios[-1], 2),
                    "source": figure.source,
                },
            )
        )
    off = [abs(np.log(ratio)) for ratio in ratios]
    rows += [
        Row("published figures", "median factor off", round(float(np.exp(median(off))), 2)),
        Row("published figures", "largest factor off", round(float(np.exp(max(off))), 2)),
        Row("published figures", "within low..high %", round(100 * inside / len(FIGURES))),
        Row("published figures", "rank correlation", round(rank_correlation(
            [f.ms for f in FIGURES], [r * f.ms for f, r in zip(FIGURES, ratios, strict=True)]), 3)),
    ]  # fmt: skip
    return rows


def main() -> int:
    # Found from the repository, whatever the working directory.
    root = Path(__file__).resolve().parent.parent
    sys.path[:] = [
        str(root),
        *(p for p in sys.path if Path(p or ".").resolve() != root / "benchmarks"),
    ]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ten networks, fewer rounds")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--rounds", type=int, default=0, help="20, or 6 with --quick")
    parser.add_argument("--engines", help="only these, e.g. openvino-fp32,openvino-int8")
    parser.add_argument("--networks", help="only those whose names contain one of these words")
    args = parser.parse_args()

    from benchmarks.rows import print_table, write_rows
    from edgemp.target import load_target

    words = args.networks.split(",") if args.networks else [""]
    chosen = [
        case for case in cases()
        if not (args.quick and case.slow) and any(word in case.name for word in words)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="edgemp-") as name:
        folder = Path(name)
        points = compared(chosen, load_target("host"), folder, args)
        rows = host_rows(points)
        print_table(rows, "Estimated and measured on this machine")
        others = published_rows(folder)
        print_table(others, "Estimated from published peaks, and published figures")
    if args.json:
        write_rows(args.json, [*rows, *others])
    return int(any(row.holds is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
