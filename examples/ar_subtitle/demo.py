"""The main job on real footage: compile the pipeline, run it behind its gate, judge it, benchmark it.

    python -m examples.ar_subtitle.demo --output build/ar_subtitle

writes scene.mp4 (the footage with known captions), ar_subtitle.edgemp, original.edgemp (the untouched
networks on the engine that runs them fastest), annotated.mp4, still.png, report.html and bench.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import edgemp
from edgemp.bench.compare import compare
from edgemp.bench.latency import bench
from edgemp.bench.report import write_report
from edgemp.bench.source import SourceSpec
from edgemp.bundle import read_bundle
from edgemp.cli.compile import summarise as print_choices
from edgemp.cli.output import Bars, console, print_table
from edgemp.runtime.result import Result
from examples.ar_subtitle import footage, truth
from examples.ar_subtitle.draw import Status, draw
from examples.ar_subtitle.scene import Scene, scene

PIPELINE = Path(__file__).with_name("pipeline.yaml")
SIZE_BUDGET = 62_000_000
"""Bytes that the three networks may take on disk; in fp32 they take twice that."""

EVERY = 4
"""The ungated comparison with the original networks looks at every fourth frame."""


@dataclass(frozen=True)
class Judged:
    """One way of running the scene, and how right its text was."""

    name: str
    summary: truth.Summary


def film(scene: Scene, path: Path) -> None:
    """Write the scene as a video, as a camera would deliver it."""
    partial = path.with_name(f".{path.name}.partial.mp4")
    video = cv2.VideoWriter(
        str(partial), cv2.VideoWriter.fourcc(*"mp4v"), footage.FPS, (footage.WIDTH, footage.HEIGHT)
    )
    for _, _, frame in scene.frames():
        video.write(frame)
    video.release()
    os.replace(partial, path)


def frames(path: Path, every: int = 1) -> Iterator[tuple[int, float, NDArray[np.uint8]]]:
    """(index, seconds, frame) of every `every`-th frame of a video."""
    video = cv2.VideoCapture(str(path))
    index = 0
    while True:
        there, frame = video.read()
        if not there:
            break
        if index % every == 0:
            yield index, index / footage.FPS, frame.astype(np.uint8, copy=False)
        index += 1
    video.release()


def record_of(index: int, result: Result) -> truth.Record:
    return truth.Record(
        index,
        result["texts"].value or [],
        result["boxes"].value
        if result["boxes"].value is not None
        else np.zeros((0, 4, 2), np.float32),
        result["texts"].source,
        result["subtitles"].value or [],
    )


def judge(name: str, bundle: Path, video: Path, scene: Scene) -> Judged:
    """Run a bundle with every gate open on every fourth frame."""
    with edgemp.load(bundle, gated=False) as runtime:
        records = [
            record_of(index, runtime.step(frame=frame, t=t))
            for index, t, frame in frames(video, EVERY)
        ]
    return Judged(name, truth.summarise(scene, records))


def annotate(bundle: Path, video: Path, scene: Scene, output: Path) -> Judged:
    """Run a bundle behind its gate on every frame; writes annotated.mp4 and still.png."""
    partial = output / ".annotated.partial.mp4"
    size = (footage.WIDTH, footage.HEIGHT)
    writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"mp4v"), footage.FPS, size)
    records = []
    most = 0
    with edgemp.load(bundle) as runtime:
        for index, t, frame in frames(video):
            result = runtime.step(frame=frame, t=t)
            records.append(record_of(index, result))
            picture = draw(frame, records[-1].subtitles, records[-1].boxes, _status(result))
            writer.write(picture)
            if len(records[-1].subtitles) > most:
                most = len(records[-1].subtitles)
                cv2.imwrite(str(output / "still.png"), picture)
    writer.release()
    os.replace(partial, output / "annotated.mp4")
    return Judged("compiled, gated, every frame", truth.summarise(scene, records))


def _status(result: Result) -> Status:
    node, shown = result.trace["detector"], result["subtitles"]
    return Status(node.ran, node.reason, node.score or 0.0, shown.source, shown.age_ms)


def main() -> int:
    """Run the demo; exit code 1 if one of the example's bounds does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/ar_subtitle"))
    parser.add_argument("--cache", type=Path, default=None)
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    say = console().print
    filmed = scene()
    video = output / "scene.mp4"
    say(f"1/5 footage with {len(filmed.captions)} known captions -> {video}")
    film(filmed, video)

    say("2/5 compile")
    bundle, original = output / "ar_subtitle.edgemp", output / "original.edgemp"
    with Bars(quiet=False) as bars:
        compiled = edgemp.compile(
            PIPELINE, bundle, budget_size=SIZE_BUDGET, cache=arguments.cache, progress=bars
        )
    print_choices(compiled)
    with Bars(quiet=True) as bars:
        untouched = edgemp.compile(
            PIPELINE,
            original,
            precisions=["fp32"],
            cache=arguments.cache,
            progress=bars,
        )

    say(f"3/5 run it behind its gate -> {output / 'annotated.mp4'}, {output / 'still.png'}")
    judged = [
        judge(f"original, every {EVERY}th frame", original, video, filmed),
        judge(f"compiled, every {EVERY}th frame", bundle, video, filmed),
        annotate(bundle, video, filmed, output),
    ]
    print_judged(judged)

    say("4/5 benchmark")
    source = SourceSpec(video=video)
    measured = bench(
        bundle,
        source,
        steps=filmed.length,
        paced_seconds=4.0,
        progress=lambda text: say(f"  {text}"),
    )
    against = compare(original, bundle, source, rounds=5, block=8, warmup=3, gated=False)
    sizes = {
        name: sum(choice.trial.size_bytes for choice in found.choices.values())
        for name, found in (("compiled", compiled), ("original", untouched))
    }
    checks = check(judged, sizes)
    document: dict[str, Any] = {
        "bench": measured.record(),
        "compiled_over_original": against.record(),
        "text": [{"run": item.name, **asdict(item.summary)} for item in judged],
        "artifact_bytes": sizes,
        "checks": checks,
    }
    say(f"5/5 {output / 'report.html'}, {output / 'bench.json'}")
    write_report(output / "report.html", read_bundle(bundle), measured)
    partial = output / ".bench.json.partial"
    partial.write_text(json.dumps(document, indent=1))
    os.replace(partial, output / "bench.json")
    print_outcome(document, checks)
    return 0 if all(item["holds"] for item in checks) else 1


def check(judged: list[Judged], sizes: dict[str, int]) -> list[dict[str, Any]]:
    """The example's own bounds: text, events, size."""
    original, compiled, gated = (item.summary for item in judged)
    drop = 100 * (original.character_accuracy - compiled.character_accuracy)
    return [
        {
            "what": "character accuracy lost by compiling, points",
            "value": drop,
            "bound": 0.5,
            "holds": drop <= 0.5,
        },
        {
            "what": "captions found behind the gate, share",
            "value": gated.event_recall,
            "bound": 1.0,
            "holds": gated.event_recall == 1.0,
        },
        {
            "what": "artifacts on disk, MB",
            "value": sizes["compiled"] / 1e6,
            "bound": SIZE_BUDGET / 1e6,
            "holds": sizes["compiled"] <= SIZE_BUDGET,
        },
    ]


def print_judged(judged: list[Judged]) -> None:
    print_table(
        "text against the known captions",
        [
            "run",
            "frames",
            "fresh",
            "characters right",
            "captions found",
            "onset p95 / max ms",
            "stale max ms",
        ],
        [
            [
                item.name,
                str(s.frames),
                f"{s.fresh_share:.0%}",
                f"{s.character_accuracy:.2%}",
                f"{s.event_recall:.0%} of {s.captions}",
                f"{s.onset_ms_p95:.0f} / {s.onset_ms_max:.0f}",
                f"{s.stale_ms_max:.0f}",
            ]
            for item in judged
            for s in [item.summary]
        ],
    )


def print_outcome(document: dict[str, Any], checks: list[dict[str, Any]]) -> None:
    print_table(
        "bounds of the example",
        ["bound", "measured", "limit", "verdict"],
        [
            [
                c["what"],
                f"{c['value']:.3g}",
                f"{c['bound']:g}",
                "holds" if c["holds"] else "DOES NOT HOLD",
            ]
            for c in checks
        ],
    )
    ratio = document["compiled_over_original"]["end_to_end"]["ratio"]
    times = document["bench"]["end_to_end_ms"]
    console().print(
        f"step: p50 {times['median']:.2f} ms, p99 {times['p99']:.2f} ms with the gate; "
        f"with every gate open, compiled / original latency {ratio['value']:.2f} "
        f"(95 % interval {ratio['low']:.2f} to {ratio['high']:.2f})",
        markup=False,
    )


if __name__ == "__main__":
    sys.exit(main())
