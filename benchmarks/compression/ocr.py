"""PP-OCRv6's detector and recogniser on rendered text: fonts and words that calibration never saw.

Pages and lines are those of benchmarks/known/lettering.py. The recogniser gets the lines upright, and
its accuracy is the share of their characters that it reads (1 - edits / characters). The detector's is
that of what the original recogniser reads in the boxes that it finds. Cosines are with the original
outputs, the smallest and the mean over all lines or pages. Rivals: NNCF PTQ, ONNX Runtime's static and
dynamic INT8, bf16, fp32. With minutes of training, students of both networks come on top, trained on other
pages with calibration's fonts and words.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compression.sessions import OURS, Told, opened, ratios, timed
from benchmarks.known import lettering
from benchmarks.known.lettering import Page
from benchmarks.rows import Row

RUNS = (
    ("onnxruntime", "int8"),
    ("onnxruntime", "int8-dynamic"),
    *(
        ("openvino", precision)
        for precision in ("fp32", "bf16", "int8", "int8-bf16", "fp32-w8", "bf16-w8", "int8-mixed")
    ),
)
CALIBRATION_PAGES = 12
STUDENT = "student "
ACCURACY_GOAL, COSINE_GOAL, LATENCY_GOAL = 0.002, 0.998, 1.05

Read = Callable[[Any], Mapping[str, Any]]


def rows(quick: bool, minutes: float | None = None) -> list[Row]:
    """Of both networks; 16 pages of six lines if `quick`, else 60; `minutes` of training for each."""
    from edgemp.compress.mixed.observe import outputs

    calibration = lettering.pages(
        CALIBRATION_PAGES, lettering.words(False), lettering.CALIBRATION_FONTS, 0
    )
    held_out = lettering.pages(
        16 if quick else 60, lettering.words(True), lettering.HELD_OUT_FONTS, 1
    )
    found = []
    original = model("recogniser")

    def read(feed: Any) -> Mapping[str, Any]:
        return outputs(original, [feed])[0]

    for name in ("recogniser", "detector"):
        judge = line_accuracy if name == "recogniser" else Boxes(read).accuracy
        case = _case(name, calibration, held_out, judge, quick, minutes)
        found += _rows(name, case)
    return found


def model(name: str) -> Any:
    """The pipeline's module as ONNX, its pictures' pre-processing folded in: uint8 [1, h, w, 3]."""
    from edgemp.ingest.fold import fold_preprocess
    from edgemp.ingest.onnx_file import fix_shapes, raise_opset, read_onnx
    from edgemp.pipeline import Pipeline
    from examples.ar_subtitle import models

    example = Path(models.__file__).with_name("pipeline.yaml")
    preprocess = Pipeline.from_yaml(example).modules[name].preprocess["x"]
    assert preprocess.size is not None
    path = models.recogniser() if name == "recogniser" else models.detector()
    found = fix_shapes(raise_opset(read_onnx(path, name), name), {"x": (1, 3, *preprocess.size)})
    return fold_preprocess(found, "x", preprocess, name)


def feeds(name: str, pages: Sequence[Page]) -> list[dict[str, Any]]:
    """A line a feed for the recogniser, a page for the detector."""
    if name == "detector":
        return [{"x": page.pixels[None]} for page in pages]
    return [{"x": lettering.crop(page, line)[None]} for page in pages for line in page.lines]


def line_accuracy(answers: Sequence[Any], pages: Sequence[Page]) -> float:
    read = (_text(answer) for answer in answers)
    return _accuracy([(next(read), line.text) for page in pages for line in page.lines])


class Boxes:
    """What a recogniser reads in the boxes of a detector's maps."""

    def __init__(self, recogniser: Read) -> None:
        self._recogniser = recogniser

    def accuracy(self, answers: Sequence[Any], pages: Sequence[Page]) -> float:
        pairs = []
        for answer, page in zip(answers, pages, strict=True):
            pairs += self._lines(answer, page)
        return _accuracy(pairs)

    def _lines(self, answer: Any, page: Page) -> list[tuple[str, str]]:
        """Of every line of a page: what is read in its row, from left to right, and what it says."""
        from examples.ar_subtitle.functions import decode_boxes

        (probability,) = answer.values()
        found = decode_boxes(probability=probability, frame=page.pixels)
        rows: list[list[tuple[float, str]]] = [[] for _ in page.lines]
        for box, crop in zip(found["boxes"], found["crops"], strict=True):
            x, y = box.mean(axis=0)
            row = min(int(y * len(rows) / page.pixels.shape[0]), len(rows) - 1)
            rows[row].append((float(x), _text(self._recogniser({"x": crop[None]}))))
        return [
            (" ".join(text for _, text in sorted(row)), line.text)
            for row, line in zip(rows, page.lines, strict=True)
        ]


def _text(answer: Any) -> str:
    (probabilities,) = answer.values()
    return str(_reader()(probabilities=probabilities)["texts"][0])


@functools.cache
def _reader() -> Any:
    from examples.ar_subtitle import models
    from examples.ar_subtitle.functions import ReadText

    return ReadText(characters=models.characters())


def _accuracy(pairs: Sequence[tuple[str, str]]) -> float:
    from examples.ar_subtitle.truth import edit_distance

    edits = sum(edit_distance(read, text) for read, text in pairs)
    return 1 - edits / sum(len(text) for _, text in pairs)


def _case(
    name: str,
    calibration: Sequence[Page],
    held_out: Sequence[Page],
    judge: Callable[[Sequence[Any], Sequence[Page]], float],
    quick: bool,
    minutes: float | None,
) -> dict[str, dict[str, float]]:
    """Figures of every precision."""
    import onnx

    from edgemp.compress.mixed.observe import outputs
    from edgemp.fidelity import cosine
    from edgemp.ingest.onnx_file import graph_inputs, graph_outputs
    from edgemp.network import Network, file_digest
    from edgemp.samples import Samples

    original, tested = model(name), feeds(name, held_out)
    reference = outputs(original, tested)
    found: dict[str, dict[str, float]] = {
        "original": {"accuracy": judge(reference, held_out), "min": 1.0, "mean": 1.0}
    }
    with tempfile.TemporaryDirectory(prefix="edgemp-") as folder, ExitStack() as stack:
        path = Path(folder) / "model.onnx"
        onnx.save(original, str(path))
        network = Network(
            name, path, graph_inputs(original, name), graph_outputs(original, name),
            file_digest(path), Samples(tuple(feeds(name, calibration)), tuple(tested)),
            tuple(reference),
        )  # fmt: skip
        sessions = opened(network, RUNS, Path(folder), stack)
        for student in _students(network, minutes) if minutes else ():
            place = Path(folder) / student.name
            place.mkdir()
            ours = opened(student.network, (("openvino", "bf16"),), place, stack)
            sessions |= {f"{STUDENT}{student.name}": session for session in ours.values()}
        for label, (session, size) in sessions.items():
            answers = [session.run(feed) for feed in tested]
            cosines = [
                cosine(*expected.values(), *actual.values())
                for expected, actual in zip(reference, answers, strict=True)
            ]
            found[label] = {
                "accuracy": judge(answers, held_out),
                "min": min(cosines),
                "mean": float(np.mean(cosines)),
                "mb": size / 1e6,
            }
            print(f"{name} {label}: {found[label]}", file=sys.stderr)
        runs = {label: session.run for label, (session, _) in sessions.items()}
        for label, latency in ratios(timed(runs, tested, 6 if quick else 30)).items():
            found[label] |= latency
    return found


def _students(network: Any, minutes: float) -> list[Any]:
    """Kept in the user's stage cache."""
    from edgemp.compiler.cache import StageCache
    from edgemp.compiler.original import Original
    from edgemp.compiler.students import Asked, planned, students
    from edgemp.pipeline import Pipeline
    from examples.ar_subtitle import models

    example = Path(models.__file__).with_name("pipeline.yaml")
    name = network.name
    original = Original(name, Pipeline.from_yaml(example).modules[name])
    what = "lines" if name == "recogniser" else "pages"
    asked = Asked(minutes, {name: f"benchmarks.known.lettering:training_{what}"})
    cache = StageCache()
    with cache.in_use():
        plan = planned({name: original}, {name: network}, asked, 0, Told(), [])
        return students(plan, None, cache, Told(), [])[name]


def _is_ours(label: str) -> bool:
    return label in OURS or label.startswith(STUDENT)


def _rows(name: str, found: Mapping[str, Mapping[str, float]]) -> list[Row]:
    rows = []
    for label in (n for n in found if _is_ours(n)):
        own, case = found[label], f"{name} {label.removeprefix('openvino ')}"
        lost = found["original"]["accuracy"] - own["accuracy"]
        for metric, title, goal, holds in (
            ("accuracy", "character accuracy", "original - 0.002", lost <= ACCURACY_GOAL),
            ("min", "min cosine", f">= {COSINE_GOAL}", own["min"] >= COSINE_GOAL),
            ("mean", "mean cosine", None, None),
            ("mb", "MB", None, None),
            ("ratio", "latency / plain INT8", f"<= {LATENCY_GOAL}", own["ratio"] <= LATENCY_GOAL),
        ):
            rivals = {
                n.removeprefix("openvino "): round(f[metric], 5)
                for n, f in found.items()
                if not _is_ours(n) and metric in f
            }
            rows.append(Row(case, title, round(own[metric], 5), goal, holds, rivals))
    return rows
