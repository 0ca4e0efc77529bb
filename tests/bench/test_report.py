"""report.html stands on its own, has every section, and shows names as text."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgemp.bench.latency import bench
from edgemp.bench.measured import BenchReport
from edgemp.bench.page import cosine, number, size
from edgemp.bench.pareto import pareto_plot
from edgemp.bench.report import report, write_report
from edgemp.bench.source import SourceSpec
from edgemp.bench.steps import NodeStep, StepTrace
from edgemp.bench.tried import Tried, pareto_front
from edgemp.bundle import Bundle, read_bundle
from edgemp.errors import BundleError

CameraBundle = Callable[..., Path]
HOSTILE = "<img src=x onerror=\"alert(1)\"> & 'more'"


@pytest.fixture(scope="module")
def opened(camera_bundle: CameraBundle) -> Bundle:
    return read_bundle(camera_bundle())


@pytest.fixture(scope="module")
def measured(opened: Bundle, clip: Path) -> BenchReport:
    return bench(opened.path, SourceSpec(video=clip), steps=50, warmup=0, cold_starts=0)


class Structure(HTMLParser):
    """Collects tags and headings, and checks that what is opened is closed."""

    EMPTY = frozenset({"meta", "rect", "line", "circle", "path", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def structure(document: str) -> Structure:
    found = Structure()
    found.feed(document)
    found.close()
    assert found.open == []
    return found


def with_trials(bundle: Bundle, **changes: object) -> Bundle:
    """The bundle with one more trial of `detector` in its report."""
    member = bundle.manifest.report
    assert member is not None
    content = json.loads(bundle.read(member))
    trials = content["modules"]["detector"]["trials"]
    trials.append({**trials[0], **changes})
    members = {**bundle.members, member: json.dumps(content).encode()}
    return dataclasses.replace(bundle, members=members)


def test_every_section_is_there(opened: Bundle, measured: BenchReport) -> None:
    assert structure(report(opened, measured)).headings == [
        "Summary",
        "Latency",
        "Gate timeline",
        "Candidates",
        "Fidelity",
        "Placement",
        "Failed trials",
    ]


def test_without_a_benchmark_the_bundle_speaks_for_itself(opened: Bundle) -> None:
    assert structure(report(opened)).headings == [
        "Summary",
        "Candidates",
        "Fidelity",
        "Placement",
        "Failed trials",
    ]


def test_the_page_refers_to_nothing_outside_itself(opened: Bundle, measured: BenchReport) -> None:
    document = report(opened, measured)
    assert not re.search(r"https?://|\bsrc=|\bhref=|url\(|@import", document)
    assert structure(document).tags.isdisjoint({"script", "link", "img", "iframe", "object"})


def test_names_and_reasons_are_shown_as_text(opened: Bundle, measured: BenchReport) -> None:
    hostile = with_trials(opened, candidate=HOSTILE, status="failed", reason=HOSTILE, holds=False)
    step = StepTrace(0.0, 1.0, {"detector": NodeStep(True, HOSTILE, 0.1, 0.2)})
    bench_ = dataclasses.replace(measured, source=HOSTILE, notes=(HOSTILE,))
    document = report(hostile, bench_, [step])
    assert "<img" not in document
    assert document.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt; &amp;") >= 5
    structure(document)


def test_a_failed_trial_is_listed_with_its_reason(opened: Bundle) -> None:
    failed = {"status": "failed", "stage": "compile", "reason": "no such kernel"}
    document = report(with_trials(opened, **failed))
    assert "compile failed" in document
    assert "no such kernel" in document
    assert "None: every candidate ran" in report(opened)


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b'{"modules": {"detector": {"trials": 7}}}'])
def test_a_bundle_with_a_strange_report_still_gets_a_page(opened: Bundle, content: bytes) -> None:
    member = opened.manifest.report
    assert member is not None
    strange = dataclasses.replace(opened, members={**opened.members, member: content})
    assert "no record of its trials" in report(strange)


def test_the_timeline_has_a_bar_for_every_stretch(opened: Bundle) -> None:
    traces = [
        StepTrace(i / 10, 1.0, {"detector": NodeStep(ran, "motion" if ran else "still", 0.1, 0.2)})
        for i, ran in enumerate([True, True, False, False, True])
    ]
    # A node that was tried (it has a run time) and did not run has failed.
    document = report(opened, traces=traces)
    assert re.findall(r'<rect class="(\w+)"', document) == ["r0", "failed", "r0"]
    assert "ran 60.0 % (motion 60.0 %)" in document


def test_the_file_appears_whole_or_not_at_all(opened: Bundle, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", opened)
    assert (tmp_path / "report.html").read_text(encoding="utf-8").endswith("</html>\n")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(BundleError, match="does not exist"):
        write_report(tmp_path / "absent" / "report.html", opened)


def trial(latency: float, size_bytes: float, holds: bool = True, chosen: bool = False) -> Tried:
    return Tried("c", "ok", "checked", "", holds, chosen, latency, size_bytes, 1.0, 1.0)


def test_the_front_holds_only_what_nothing_beats_and_what_holds() -> None:
    trials = [trial(1, 9e6), trial(2, 5e6), trial(3, 6e6), trial(0.5, 1e6, holds=False)]
    assert pareto_front(trials) == trials[:2]


def test_the_plot_marks_what_holds_what_does_not_and_what_was_chosen() -> None:
    plot = pareto_plot([trial(1, 9e6, chosen=True), trial(20, 5e6), trial(3, 6e6, holds=False)])
    assert [plot.count(f'class="{mark}"') for mark in ("holds", "fails", "chosen")] == [2, 1, 1]
    numbers = [float(n) for n in re.findall(r'c[xy]="([\d.-]+)"', plot)]
    assert all(0 <= n <= 460 for n in numbers)


def test_figures_keep_their_meaning_when_printed() -> None:
    assert cosine(0.999899) == "0.99989"  # rounded to four digits it would pass for 0.9999
    assert cosine(0.9999999999999999) == "1.00000"
    assert (number(0.003456), number(1234.5), number(0.0)) == ("0.00346", "1,234", "0")
    assert (size(346), size(2.5e6), size(None)) == ("0.3 kB", "2.5 MB", None)
