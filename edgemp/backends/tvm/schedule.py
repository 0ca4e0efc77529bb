"""A default CPU schedule for every generated function: parallel over rows, vectors along the last axis.

TVM's own pipeline leaves loops scalar and serial. The rules here are few: elementwise producers are
inlined, functions whose blocks share their leading axes (softmax, layer normalisation) run row by row,
and everything else is parallel outside and vectorised inside.
"""

from __future__ import annotations

from typing import Any

PARALLEL_ELEMENTS = 16384
"""Work below this many loop iterations stays on one thread: waking others up takes microseconds."""

EXPENSIVE = ("exp", "erf", "tanh", "log", "pow", "sqrt", "sigmoid", "divide")
"""Calls that are not computed twice to save a buffer."""


def scheduled(module: Any, lanes: int, skip: frozenset[str] = frozenset()) -> tuple[Any, list[str]]:
    """The module with every unscheduled PrimFunc scheduled, and the names of those left as they were.

    `lanes` is the number of float32 values in a vector register. Functions called in `skip` are left.
    """
    from tvm import tirx

    updated = {}
    left: list[str] = []
    for name, function in module.functions_items():
        if not isinstance(function, tirx.PrimFunc) or name.name_hint in skip:
            continue
        if function.attrs is not None and function.attrs.get("tirx.is_scheduled", False):
            continue
        try:
            body = _scheduled(function, lanes)
        except (RuntimeError, ValueError, TypeError):
            left.append(name.name_hint)
            continue
        updated[name] = body.with_attr("tirx.is_scheduled", True)
    for name, function in updated.items():
        module[name] = function
    return module, left


def _scheduled(function: Any, lanes: int) -> Any:
    from tvm import s_tir

    schedule = s_tir.Schedule(function)
    _inline(schedule)
    blocks = _blocks(schedule)
    if len(blocks) > 1 and _by_rows(schedule, blocks, lanes):
        return schedule.mod["main"]
    blocks = _blocks(schedule)
    for block in blocks:
        if _is_injective(schedule, block):
            _elementwise(schedule, block, lanes)
    for block in blocks:
        if not _is_injective(schedule, block):
            _reduction(schedule, block, lanes)
    return schedule.mod["main"]


def _blocks(schedule: Any) -> list[Any]:
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def _is_injective(schedule: Any, block: Any) -> bool:
    return all(int(axis.iter_type) == 0 for axis in schedule.get(block).iter_vars)


def _iterations(schedule: Any, block: Any) -> int:
    total = 1
    for axis in schedule.get(block).iter_vars:
        total *= int(axis.dom.extent)
    return total


def _inline(schedule: Any) -> None:
    """Inline cheap producers, and expensive ones that are read once per element."""
    for block in _blocks(schedule):
        if not _is_injective(schedule, block) or not schedule.get_consumers(block):
            continue
        statement = schedule.get(block)
        if len(statement.writes) != 1:
            continue
        size = 1
        for extent in statement.writes[0].source.shape:
            size *= int(extent)
        reads = sum(_iterations(schedule, consumer) for consumer in schedule.get_consumers(block))
        text = str(statement.body)
        costly = (
            any(f".{name}(" in text or f"{name}f(" in text for name in EXPENSIVE) or "/" in text
        )
        mixes = any(not _is_injective(schedule, c) for c in schedule.get_consumers(block))
        if reads > size and (costly or mixes):
            continue
        try:
            schedule.compute_inline(block)
        except RuntimeError:
            continue


def _leading(schedule: Any, block: Any) -> list[int]:
    """Extents of the spatial axes before the first reduction axis."""
    extents = []
    for axis in schedule.get(block).iter_vars:
        if int(axis.iter_type) != 0:
            break
        extents.append(int(axis.dom.extent))
    return extents


def _by_rows(schedule: Any, blocks: list[Any], lanes: int) -> bool:
    """Rows in parallel, all blocks of a row together; False if the blocks share no rows."""
    last = blocks[-1]
    if not _is_injective(schedule, last) or all(_is_injective(schedule, b) for b in blocks):
        return False
    reductions = [b for b in blocks if not _is_injective(schedule, b)]
    rows = min((_leading(schedule, b) for b in reductions), key=len)
    count = len(rows)
    if not rows or any(_leading(schedule, b)[:count] != rows for b in blocks):
        return False
    if count == len(schedule.get(last).iter_vars):
        return False
    if any(_has_buffer_reuse_across_rows(schedule, b, count) for b in blocks):
        return False
    loops = schedule.get_loops(last)
    row = schedule.fuse(*loops[:count]) if count > 1 else loops[0]
    for block in reversed(blocks[:-1]):
        schedule.compute_at(block, row, preserve_unit_loops=True)
    if _total(rows) > 1 and sum(_iterations(schedule, b) for b in blocks) >= PARALLEL_ELEMENTS:
        schedule.parallel(row)
    for block in blocks:
        loops = schedule.get_loops(block)[1:]
        if _is_injective(schedule, block):
            _vectorise(schedule, loops[-1] if loops else None, lanes)
    for block in reductions:
        schedule.decompose_reduction(block, schedule.get_loops(block)[1])
    return True


def _has_buffer_reuse_across_rows(schedule: Any, block: Any, rows: int) -> bool:
    """Whether a block reads what another row wrote (its leading axes are not plain row numbers)."""
    statement = schedule.get(block)
    leading = [axis.var for axis in statement.iter_vars[:rows]]
    for region in statement.writes:
        starts = [interval.min for interval in region.region]
        if len(starts) < rows or any(
            not start.same_as(var) for start, var in zip(starts, leading, strict=False)
        ):
            return True
    return False


def _total(extents: list[int]) -> int:
    total = 1
    for extent in extents:
        total *= extent
    return total


def _extent(schedule: Any, loop: Any) -> int:
    return int(schedule.get(loop).extent)


def _vectorise(schedule: Any, loop: Any, lanes: int) -> None:
    """Vectorise a loop that divides evenly; LLVM vectorises the others, with a remainder."""
    if loop is None:
        return
    extent = _extent(schedule, loop)
    if extent % lanes == 0:
        _, inner = schedule.split(loop, factors=[None, lanes])
        schedule.vectorize(inner)
    elif 1 < extent < lanes and extent & (extent - 1) == 0:
        schedule.vectorize(loop)


def _elementwise(schedule: Any, block: Any, lanes: int) -> None:
    loops = schedule.get_loops(block)
    if not loops:
        return
    work = _iterations(schedule, block)
    *outer, inner = loops
    if not outer:
        if work >= PARALLEL_ELEMENTS and work % lanes == 0:
            chunk = _chunk(work, lanes)
            outer_loop, inner = schedule.split(inner, factors=[None, chunk])
            schedule.parallel(outer_loop)
        _vectorise(schedule, inner, lanes)
        return
    together = schedule.fuse(*outer) if len(outer) > 1 else outer[0]
    if work >= PARALLEL_ELEMENTS:
        if _extent(schedule, together) > 1:
            schedule.parallel(together)
        else:
            chunk = _chunk(_extent(schedule, inner), lanes)
            middle, inner = schedule.split(inner, factors=[None, chunk])
            schedule.parallel(schedule.fuse(together, middle))
    _vectorise(schedule, inner, lanes)


def _chunk(extent: int, lanes: int) -> int:
    """The largest divisor of `extent` of at most 4096, preferably a multiple of `lanes`."""
    divisors = [d for d in range(1, min(extent, 4096) + 1) if extent % d == 0]
    even = [d for d in divisors if d % lanes == 0]
    return max(even or divisors)


def _reduction(schedule: Any, block: Any, lanes: int) -> None:
    """Spatial loops outside; vectors along the last spatial axis where reads run along it too."""
    statement = schedule.get(block)
    loops = schedule.get_loops(block)
    kinds = [int(axis.iter_type) for axis in statement.iter_vars]
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 0]
    reduce = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != 0]
    work = _iterations(schedule, block)
    along = _vector_axis(statement)
    if not spatial:
        schedule.decompose_reduction(block, reduce[0])
        return
    *outer, inner = spatial
    if along and _extent(schedule, inner) > 1:
        extent = _extent(schedule, inner)
        width = next((w for w in (4 * lanes, 2 * lanes, lanes) if extent % w == 0), 0)
        if width:
            middle, vector = schedule.split(inner, factors=[None, width])
            outer.append(middle)
        else:
            vector = inner
        schedule.reorder(*outer, *reduce, vector)
        if outer:
            together = schedule.fuse(*outer) if len(outer) > 1 else outer[0]
            if work >= PARALLEL_ELEMENTS and _extent(schedule, together) > 1:
                schedule.parallel(together)
        if width:
            schedule.vectorize(vector)
        schedule.decompose_reduction(block, reduce[0])
        return
    schedule.reorder(*outer, inner, *reduce)
    together = schedule.fuse(*outer, inner) if outer else inner
    if work >= PARALLEL_ELEMENTS and _extent(schedule, together) > 1:
        schedule.parallel(together)
    schedule.decompose_reduction(block, reduce[0])


def _vector_axis(statement: Any) -> bool:
    """Whether neighbours along the last spatial axis are neighbours in memory too, read and written."""
    spatial = [axis.var for axis in statement.iter_vars if int(axis.iter_type) == 0]
    if not spatial:
        return False
    inner = spatial[-1]
    written = statement.writes[0].region
    if not written or not written[-1].min.same_as(inner):
        return False
    uses = 0
    for region in statement.reads:
        if not region.region or region.source.same_as(statement.writes[0].source):
            continue
        starts = [str(interval.min) for interval in region.region]
        name = inner.name
        if any(_mentions(start, name) for start in starts[:-1]):
            return False
        uses += _mentions(starts[-1], name)
    return uses > 0


def _mentions(expression: str, name: str) -> bool:
    import re

    return re.search(rf"\b{re.escape(name)}\b", expression) is not None
