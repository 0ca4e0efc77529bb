"""The Pareto plot of one module's trials: latency against size, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from edgemp.bench.page import number, size
from edgemp.bench.tried import Tried, pareto_front

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 42
LABEL_GAP = 10.5
DIGIT_HEIGHT = 8.0


def pareto_plot(trials: Sequence[Tried]) -> str:
    """Trials numbered from 1 in the order given, so that a table can name them.

    Filled discs hold their bound, hollow diamonds do not; the chosen one has a ring. The latency
    axis is logarithmic once the slowest takes over five times the fastest.
    """
    points = [
        (index, trial, trial.latency_ms, trial.size_bytes / 1e6)
        for index, trial in enumerate(trials, 1)
        if trial.latency_ms and trial.size_bytes
    ]
    if not points:
        return ""
    x, x_ticks = _latency_axis([point[2] for point in points])
    y, y_ticks = _size_axis([point[3] for point in points])
    parts = [*_grid(x, x_ticks, y, y_ticks)]
    front = [(t.latency_ms or 0.0, (t.size_bytes or 0.0) / 1e6) for t in pareto_front(list(trials))]
    if len(front) > 1:
        line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in front)
        parts.append(f'<polyline class="front" points="{line}"/>')
    taken = [(x(latency), y(megabytes)) for _, _, latency, megabytes in points]
    for index, trial, latency, megabytes in sorted(points, key=lambda point: not point[1].chosen):
        parts.append(_mark(index, trial, x(latency), y(megabytes), taken))
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="latency against size of all timed candidates">{"".join(parts)}</svg>'
    )


def _mark(index: int, trial: Tried, x: float, y: float, taken: list[tuple[float, float]]) -> str:
    if trial.holds:
        shape = f'<circle class="holds" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    else:
        d = f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"
        shape = f'<path class="fails" d="{d}"/>'
    ring = f'<circle class="chosen" cx="{x:.1f}" cy="{y:.1f}" r="8.5"/>' if trial.chosen else ""
    label_x, label_y = _free(x, y, taken)
    taken.append((label_x, label_y - DIGIT_HEIGHT / 2))
    title = f"{trial.candidate}: {number(trial.latency_ms)} ms, {size(trial.size_bytes)}"
    return (
        f"<g><title>{escape(title)}</title>{ring}{shape}"
        f'<text class="number" x="{label_x:.1f}" y="{label_y:.1f}" text-anchor="middle">{index}'
        "</text></g>"
    )


def _free(x: float, y: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """A place for a number near (x, y) with no other mark or number: above, below, then further."""
    places = [
        (x + dx, y + dy)
        for distance in (1.0, 1.7, 2.5, 3.3)
        for dx, dy in (
            (0, -11 * distance),
            (0, 4 + 15 * distance),
            (15 * distance, 4),
            (-15 * distance, 4),
        )
    ]
    for place in places:
        middle = (place[0], place[1] - DIGIT_HEIGHT / 2)
        inside = LEFT < place[0] < WIDTH - 6 and 10 < place[1] < HEIGHT - BOTTOM
        if inside and all(math.dist(middle, other) > LABEL_GAP for other in taken):
            return place
    return places[0]


def _grid(
    x: Callable[[float], float],
    x_ticks: Sequence[float],
    y: Callable[[float], float],
    y_ticks: Sequence[float],
) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in x_ticks:
        parts.append(
            f'<line class="grid" x1="{x(tick):.1f}" y1="{TOP}" x2="{x(tick):.1f}" y2="{bottom}"/>'
            f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
        )
    for tick in y_ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/>'
            f'<text x="{LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        "median latency, ms</text>"
        f'<text transform="translate(13 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        "size, MB</text>"
    )
    return parts


def _latency_axis(values: Sequence[float]) -> tuple[Callable[[float], float], list[float]]:
    low, high = min(values), max(values)
    span = WIDTH - LEFT - RIGHT
    if high <= 5 * low:
        ticks = _steps(high * 1.08)
        return lambda v: LEFT + v / ticks[-1] * span, ticks
    first, last = math.log10(low / 1.25), math.log10(high * 1.25)
    ticks = [
        round(digit * 10.0**power, 12)
        for power in range(math.floor(first), math.ceil(last) + 1)
        for digit in ((1, 2, 5) if last - first < 2.5 else (1,))
        if first <= math.log10(digit * 10.0**power) <= last
    ]
    return lambda v: LEFT + (math.log10(v) - first) / (last - first) * span, ticks


def _size_axis(values: Sequence[float]) -> tuple[Callable[[float], float], list[float]]:
    ticks = _steps(max(values) * 1.08)
    height = HEIGHT - TOP - BOTTOM
    return lambda v: HEIGHT - BOTTOM - v / ticks[-1] * height, ticks


def _steps(high: float) -> list[float]:
    """Round numbers from 0 to the first one at or above `high`."""
    rough = high / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 2.5, 5, 10) if digit * power >= rough)
    return [round(i * step, 12) for i in range(math.ceil(high / step) + 1)]
