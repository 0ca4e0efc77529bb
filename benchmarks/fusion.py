"""Claim: a router that weighs modalities per sample holds up where fixed equal weights do not.

    python benchmarks/fusion.py [--quick] [--only trimodal|few-shot|streams] [--json FILE]

Trimodal digits (`examples/trimodal`): scans, voices and texts of writers, voices and phrases that
training never saw; each modality of each sample fails with the given probability, independently, at
a severity drawn evenly from 0.5 to 1 (at 1 nothing of the digit is left). Value: the router. Rivals,
on the same encoders (which were trained on working sensors), samples and training steps:

    equal           equal weights in place of the router, trained the same way, faults included; the
                    attention between modalities, which weighs them per sample too, stays
    mean            the same without that attention: nothing weighs anything by the sample
    mean, clean     the same, trained without faults (modalities go missing all the same)
    late, equal     the encoders' own classifiers, their probabilities averaged
    best single     the best single modality (chosen on the validation split), trained the same way

Eight streams (`examples/pump_rig`): which of nine conditions a pump is in, on machines that training
never saw, with sensors stuck, dead, drifting, noisy or loose; value and rivals as above, encoders and
fusion trained together, so that "clean" has encoders that never met a broken sensor either. "best
single" is the router given one stream only.

Few-shot: encoders and fusion that never saw two of the digits; each is enrolled by itself from a few
samples (validation writers and voices) into `edgemp.runtime.prototypes`, and looked for among test
samples, against the eight digits known before. Accuracy: how often it is found.

Everything is chosen on the validation split; the test split is only read for this table. With --quick
one seed and shorter training; otherwise three seeds, and figures are means.

What this does not show: real faults (these are synthetic, and training knows their kinds, not their
samples), real machines, or networks of a size that matters.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rows import Row, print_table, write_rows
from sklearn.metrics import f1_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edgemp.runtime.prototypes import Prototypes
from examples.pump_rig import train as rig
from examples.pump_rig.networks import Rig
from examples.pump_rig.rig import RATES_HZ
from examples.trimodal import train as tri
from examples.trimodal.data import MODALITIES
from examples.trimodal.splits import CLASSES

GAIN_GOAL, STREAMS_GOAL, FEW_SHOT_GOAL = 0.22, 0.96, 0.90
SHOTS = (5, 10, 15)
QUERIES = 600
Scores = dict[str, float]


@dataclass(frozen=True)
class Pace:
    """How long to train and how much to test."""

    effort: tri.Effort
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    windows: int
    epochs: int
    left_out: int


QUICK = Pace(tri.QUICK, (0,), (0.25, 0.5, 0.75, 1.0), 12, 12, 1)
FULL = Pace(tri.FULL, (0, 1, 2), tuple(round(0.1 * i, 1) for i in range(1, 11)), 16, 14, 3)


def macro_f1(truth: object, said: object) -> float:
    return float(f1_score(truth, said, average="macro"))


# Three modalities


class Trimodal:
    """The router and its rivals, trained once with one seed."""

    def __init__(self, pace: Pace, seed: int) -> None:
        self.seed = seed
        clean, faulty = tri.pools("train", pace.effort.samples, seed)
        pairs = {m: tri.train_encoder(m, clean[m], pace.effort, seed) for m in MODALITIES}
        self.encoders = {m: encoder for m, (encoder, _) in pairs.items()}
        self.experts = {m: expert for m, (_, expert) in pairs.items()}
        given = tri.encoded(self.encoders, clean, faulty)
        self.networks = {
            "router": tri.train_fusion(given, pace.effort, seed),
            "equal": tri.train_fusion(given, pace.effort, seed, arm="equal"),
            "mean": tri.train_fusion(given, pace.effort, seed, arm="mean"),
            "mean, clean": tri.train_fusion(given, pace.effort, seed, arm="mean", failing=0.0),
        }
        self.singles = {m: tri.train_fusion(given, pace.effort, seed, only=m) for m in MODALITIES}
        unseen = tri.features(self.encoders, "validation", 1000, seed)
        rows, labels = unseen.trios(3000, 0.3, np.random.default_rng([seed, 11]))
        self.best = max(
            MODALITIES, key=lambda m: macro_f1(labels, self._said(self.singles[m], rows, m))
        )
        self.test = tri.features(self.encoders, "test", 2000, seed)

    def _said(self, network: torch.nn.Module, rows: list[torch.Tensor], only: str) -> torch.Tensor:
        return tri.fuse(network, rows, tri.alone(only))["logits"].argmax(1)

    def scores(self, rates: dict[str, float] | float, missing: str | None = None) -> Scores:
        """Macro F1 of everyone on the same 5000 test trios."""
        rows, labels = self.test.trios(5000, rates, np.random.default_rng([self.seed, 12]))
        there = torch.tensor([float(m != missing) for m in MODALITIES])
        found = {
            name: tri.fuse(network, rows, there)["logits"].argmax(1)
            for name, network in self.networks.items()
        }
        with torch.inference_mode():
            opinions = [
                there[m] * self.experts[name](torch.relu(rows[m])).softmax(1)
                for m, name in enumerate(MODALITIES)
            ]
        found["late, equal"] = torch.stack(opinions).sum(0).argmax(1)
        if missing != self.best:
            found["best single"] = self._said(self.singles[self.best], rows, self.best)
        return {name: macro_f1(labels, said) for name, said in found.items()}


def mean(scores: Sequence[Scores]) -> Scores:
    return {
        name: float(np.mean([one[name] for one in scores]))
        for name in scores[0]
        if all(name in one for one in scores)
    }


def trimodal_rows(pace: Pace) -> list[Row]:
    runs = [Trimodal(pace, seed) for seed in pace.seeds]
    cases: dict[str, Scores] = {"all present": mean([run.scores(0.0) for run in runs])}
    for m in MODALITIES:
        cases[f"{m} missing"] = mean([run.scores(0.0, missing=m) for run in runs])
    for m in MODALITIES:
        for rate in pace.rates:
            rates = {name: rate if name == m else 0.0 for name in MODALITIES}
            cases[f"{m} corrupted {rate:.0%}"] = mean([run.scores(rates) for run in runs])
    for rate in (*pace.rates, 0.3):
        cases[f"each corrupted {rate:.0%}"] = mean([run.scores(rate) for run in runs])
    rows = [score_row(case, scores) for case, scores in cases.items()]
    return rows + gain_rows("each corrupted 30%", cases["each corrupted 30%"])


def gain_rows(case: str, scores: Scores) -> list[Row]:
    """How much the router's F1 is above each rival's, and above what nobody could get: beyond 1."""
    rows = []
    for rival in sorted(scores.keys() - {"router", "best single"}):
        gain = scores["router"] / scores[rival] - 1
        rows.append(
            Row(
                case,
                f"gain over {rival!r}",
                round(gain, 4),
                f">= {GAIN_GOAL}",
                gain >= GAIN_GOAL,
                {"a perfect one": round(1 / scores[rival] - 1, 4)},
            )
        )
    return rows


def score_row(case: str, scores: Scores, goal: float | None = None) -> Row:
    rivals = {name: round(f1, 4) for name, f1 in scores.items() if name != "router"}
    value = scores["router"]
    holds = None if goal is None else value >= goal
    goal_text = None if goal is None else f">= {goal}"
    return Row(case, "macro_f1", round(value, 4), goal_text, holds, rivals)


# Few-shot


def few_shot_rows(pace: Pace) -> list[Row]:
    """Classes left out in pairs, so that encoders are trained once for two of them."""
    order = np.random.default_rng(0).permutation(CLASSES).reshape(-1, 2)
    found: dict[int, list[float]] = {shots: [] for shots in SHOTS}
    kept: dict[int, list[float]] = {shots: [] for shots in SHOTS}
    before: list[float] = []
    for pair in order[: pace.left_out]:
        known = [digit for digit in range(CLASSES) if digit not in pair]
        clean, faulty = tri.pools("train", pace.effort.samples, 0, known)
        encoders = {m: tri.train_encoder(m, clean[m], pace.effort, 0)[0] for m in MODALITIES}
        given = tri.encoded(encoders, clean, faulty)
        network = tri.train_fusion(given, pace.effort, 0, digits=known)
        base = tri.class_prototypes(network, given, 0, known).dump()
        support = tri.features(encoders, "validation", 400, 0)
        test = tri.features(encoders, "test", 1000, 0)
        rng = np.random.default_rng(13)
        old = embeddings(network, test, QUERIES, rng, known)
        before.append(recognised(Prototypes(prototypes=base), *old))
        for digit in pair:
            new = embeddings(network, test, QUERIES, rng, [int(digit)])
            for shots in SHOTS:
                for _ in range(10):
                    store = Prototypes(prototypes=base)
                    rows, _ = embeddings(network, support, shots, rng, [int(digit)])
                    store.enrol(str(digit), rows)
                    found[shots].append(recognised(store, *new))
                    kept[shots].append(recognised(store, *old))
    rows = []
    for shots in SHOTS:
        value = float(np.mean(found[shots]))
        worst = round(min(found[shots]), 4)
        case = f"new class, {shots} samples"
        holds = value >= FEW_SHOT_GOAL
        rows.append(
            Row(case, "accuracy", round(value, 4), f">= {FEW_SHOT_GOAL}", holds, {"worst": worst})
        )
        rivals = {"before": round(float(np.mean(before)), 4)}
        rows.append(Row(case, "old_classes", round(float(np.mean(kept[shots])), 4), rivals=rivals))
    return rows


def embeddings(
    network: torch.nn.Module,
    given: tri.Features,
    size: int,
    rng: np.random.Generator,
    digits: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    rows, labels = given.trios(size, 0.0, rng, digits)
    return tri.fuse(network, rows)["embedding"].numpy(), labels.numpy()


def recognised(store: Prototypes, rows: np.ndarray, labels: np.ndarray) -> float:
    said = [store(embedding=row)["label"] for row in rows]
    return float(np.mean([a == str(b) for a, b in zip(said, labels, strict=True)]))


# Eight streams


def streams_rows(pace: Pace) -> list[Row]:
    scores: dict[str, list[Scores]] = {}
    for seed in pace.seeds:
        given = rig.fronted("train", pace.windows, seed)
        networks = {
            "router": rig.train(given, pace.epochs, seed),
            "equal": rig.train(given, pace.epochs, seed, "equal"),
            "mean": rig.train(given, pace.epochs, seed, "mean"),
            "mean, clean": rig.train(given, pace.epochs, seed, "mean", failing=0.0),
        }
        unseen, test = rig.fronted("validation", 4, seed), rig.fronted("test", 10, seed)
        streams = list(RATES_HZ)
        best = max(streams, key=lambda name: stream_f1(networks["router"], unseen, 0.0, seed, name))
        for rate in (0.0, 0.1, 0.3, 0.5):
            one = {name: stream_f1(net, test, rate, seed) for name, net in networks.items()}
            one["best single"] = stream_f1(networks["router"], test, rate, seed, best)
            scores.setdefault(f"eight streams, {rate:.0%} broken", []).append(one)
        for name in streams:
            one = {
                arm: stream_f1(net, test, 0.0, seed, without=name) for arm, net in networks.items()
            }
            scores.setdefault(f"eight streams, {name} missing", []).append(one)
    cases = {case: mean(found) for case, found in scores.items()}
    rows = [
        score_row(case, found, STREAMS_GOAL if case == "eight streams, 0% broken" else None)
        for case, found in cases.items()
    ]
    return rows + gain_rows("eight streams, 30% broken", cases["eight streams, 30% broken"])


def stream_f1(
    network: Rig,
    given: rig.Fronted,
    rate: float,
    seed: int,
    only: str | None = None,
    without: str | None = None,
) -> float:
    there = [float(name != without and only in (None, name)) for name in RATES_HZ]
    truth, said, _ = rig.predict(network, given, rate, seed, torch.tensor([there]))
    return macro_f1(truth, said)


PARTS = {"trimodal": trimodal_rows, "few-shot": few_shot_rows, "streams": streams_rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, shorter training")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part of it")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(2)
    pace = QUICK if args.quick else FULL
    rows: list[Row] = []
    for part in args.only or PARTS:  # each shows its table at once: the whole takes a while
        began = time.perf_counter()
        found = PARTS[part](pace)
        print_table(found, f"{part}, {time.perf_counter() - began:.0f} s; value: the router")
        rows += found
        if args.json:
            write_rows(args.json, rows)
    return int(any(row.holds is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
