"""INT8 where it costs little: products that hurt keep float activations, by measured sensitivity.

Four steps, none of which trains: outlier channels move into weights (`smooth`), weights are rounded so
that their errors make up for each other (`steps`), every site is asked what the outputs lose by it, and
the worst sites keep float activations until a tenth of the error is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemp.compress.mixed.embeddings import quantize_embeddings
from edgemp.compress.mixed.observe import distance, observe, outputs
from edgemp.compress.mixed.products import Product, initializers, quantizable, sites
from edgemp.compress.mixed.qdq import quantized
from edgemp.compress.mixed.ranges import Range, best_range, full_range
from edgemp.compress.mixed.rounding import CALIBRATION, Rounded, rounded_products
from edgemp.compress.mixed.smooth import smoothing
from edgemp.errors import BackendError
from edgemp.network import Network
from edgemp.tensor import Array, Feed

KEPT_ERROR = 0.1
"""Share of plain INT8's error on calibration samples that may be left."""

RELEASED = 0.5
"""At most this share of the products' operations leaves INT8: beyond it, 16-bit floats do better."""

FEWEST_JUDGES, JUDGEMENTS = 3, 240
"""Feeds that sensitivity is measured on, at least, and runs that it may take where that allows for more."""

ROWS = 768
"""Rows that divisors are searched on."""

PIXELS = 1 << 15
"""Values kept per tensor and feed for choosing its range."""


@dataclass
class _Seen:
    """What calibration samples showed of one site; `low` and `high` are per channel of rows."""

    low: Array = field(default_factory=lambda: np.zeros(1, np.float32))
    high: Array = field(default_factory=lambda: np.zeros(1, np.float32))
    kept: list[Array] = field(default_factory=list)
    divisor: Array | None = None


@dataclass(frozen=True)
class Plan:
    """How a network's products are quantized.

    `ranges` and `divisors` by activation; `rounded` are weights for INT8 activations and `alone` those
    for float ones, by node. `order` is the sites, the most harmful per operation first.
    """

    found: tuple[Product, ...]
    ranges: Mapping[str, Range]
    divisors: Mapping[str, Array]
    rounded: Mapping[str, Rounded]
    alone: Mapping[str, Rounded]
    order: tuple[str, ...] = ()

    def written(self, model: Any, released: Sequence[str]) -> Any:
        """The model with all weights in INT8, and all activations but those of `released` sites."""
        inside = [s for s in self.ranges if s not in released]
        weights = {
            p.node: (self.alone if p.source in released else self.rounded)[p.node]
            for p in self.found
        }
        return quantized(
            model,
            self.found,
            {s: self.ranges[s] for s in inside},
            {node: item.steps for node, item in weights.items()},
            {s: self.divisors[s] for s in inside if s in self.divisors},
        )


def quantize_mixed(network: Network, folder: Path) -> Network:
    """INT8 weights everywhere, INT8 activations where the outputs can bear it; a QDQ ONNX model.

    Raises:
        BackendError: if there are no calibration samples, or nothing to quantize.
    """
    import onnx

    feeds = network.samples.calibration[:CALIBRATION]
    if not feeds:
        raise BackendError(
            f"{network.name}: INT8 needs calibration samples; give at least 2 samples (one is held out)"
        )
    model = onnx.load(str(network.model))
    found = quantizable(model, network.name)
    plan = planned(model, found, feeds)
    judges = max(FEWEST_JUDGES, JUDGEMENTS // len(plan.ranges))
    plan, released, left = released_sites(model, plan, feeds[:judges])
    path = folder / "model.onnx"
    written, tables = quantize_embeddings(plan.written(model, released))
    onnx.save(written, str(path))
    return network.transformed(
        path,
        "quantize_mixed",
        quantized_products=len(found),
        quantized_embeddings=tables,
        float_activations=[p.node for p in found if p.source in released],
        error_left=left,
    )


def planned(model: Any, found: tuple[Product, ...], feeds: Sequence[Feed]) -> Plan:
    """Ranges, divisors and weights for every site, from calibration feeds."""
    grouped = sites(found)
    weights = initializers(model)
    seen = {source: _Seen() for source in grouped}
    random = np.random.default_rng(0)

    def look(source: str, value: Array) -> None:
        item = seen[source]
        if _is_rows(grouped[source]):
            rows = value.reshape(-1, value.shape[-1])
            item.low = np.minimum(item.low, rows.min(axis=0))
            item.high = np.maximum(item.high, rows.max(axis=0))
            some = random.choice(len(rows), min(len(rows), ROWS), replace=False)
            item.kept.append(rows[some].astype(np.float32))
        else:
            flat = value.ravel()
            some = random.choice(flat.size, min(flat.size, PIXELS), replace=False)
            item.kept.append(flat[some].astype(np.float32))

    observe(model, list(grouped), feeds, look)
    for source, several in grouped.items():
        if _is_rows(several):
            rows = np.concatenate(seen[source].kept)
            some = random.choice(len(rows), min(len(rows), ROWS), replace=False)
            seen[source].divisor = smoothing(rows[some], [weights[p.weight] for p in several])
    ranges = {source: _range(item) for source, item in seen.items()}
    divisors = {s: item.divisor for s, item in seen.items() if item.divisor is not None}
    # Rounded inputs have other means: constants for the float ones' made MiniLM's error 1.3 times as large.
    alone = rounded_products(model, found, feeds, shifted=False)
    smoothed = [p for p in found if p.source in divisors]
    several_ways = {
        **alone,
        **rounded_products(model, smoothed, feeds, divisors, shifted=False),
    }
    return Plan(found, ranges, divisors, several_ways, alone)


def _is_rows(several: Sequence[Product]) -> bool:
    """Whether a site's activations are rows of what its products multiply."""
    return all(p.op == "MatMul" or (p.op == "Gemm" and p.axis == 1) for p in several)


def _range(item: _Seen) -> Range:
    """Rows keep their extremes: few of them carry much. Pixels are many, and a few may be clipped."""
    if item.kept[0].ndim == 1:
        return best_range(np.concatenate(item.kept))
    divisor = np.float32(1) if item.divisor is None else item.divisor
    return full_range(float((item.low / divisor).min()), float((item.high / divisor).max()))


def released_sites(
    model: Any, plan: Plan, feeds: Sequence[Feed]
) -> tuple[Plan, tuple[str, ...], float]:
    """The plan with its order, the sites that keep float activations, and the share of the error left.

    Sites are ranked by what the outputs gain per operation when one alone is released; as many as
    needed are, found by halving, within `RELEASED` of all operations.
    """
    reference = outputs(model, feeds)

    def error(released: Sequence[str]) -> float:
        return distance(reference, outputs(plan.written(model, released), feeds))

    whole = error(())
    if whole <= 0:
        return plan, (), 0.0
    cost = _operations(model, plan, feeds[0])
    gains = {s: (whole - error((s,))) / max(cost[s], 1.0) for s in plan.ranges}
    order = tuple(sorted((s for s in gains if gains[s] > 0), key=lambda s: -gains[s]))
    allowed, spent = 0, 0.0
    for source in order:
        spent += cost[source]
        if spent > RELEASED * sum(cost.values()):
            break
        allowed += 1
    plan = Plan(plan.found, plan.ranges, plan.divisors, plan.rounded, plan.alone, order)
    if error(order[:allowed]) > KEPT_ERROR * whole:
        return plan, order[:allowed], error(order[:allowed]) / whole
    low, high = 0, allowed
    while low < high:
        middle = (low + high) // 2
        if error(order[:middle]) <= KEPT_ERROR * whole:
            high = middle
        else:
            low = middle + 1
    return plan, order[:low], error(order[:low]) / whole


def _operations(model: Any, plan: Plan, feed: Feed) -> dict[str, float]:
    """Multiply-adds of every site, on one feed."""
    sizes: dict[str, int] = {}

    def measure(name: str, value: Array) -> None:
        sizes[name] = value.size

    observe(model, [p.result for p in plan.found], [feed], measure)
    grouped = sites(plan.found)
    return {
        source: float(sum(sizes[p.result] * p.elements / max(p.shape[p.axis], 1) for p in several))
        for source, several in grouped.items()
    }
