"""The functions that call a kernel: a parallel loop over ranges of work around one call of a C symbol."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgemp.backends.tvm.packing import pack_b, panels
from edgemp.backends.tvm.selection import Kernel, Strided
from edgemp.backends.tvm.toolchain import Processor
from edgemp.tensor import Array

WORTH_WAKING = 200_000
"""Multiply-adds (or 16 per element of a row operation) below which one thread does it all."""
LARGEST = 3.4028234663852886e38
Ranges = Callable[[int, int], list[Any]]


def constants(kernel: Kernel, cpu: Processor) -> list[Array]:
    """What a kernel reads besides its inputs, packed: weights, bias, scale."""
    if kernel.kind == "conv2d":
        assert kernel.geometry is not None
        assert kernel.weight is not None
        bias = np.zeros(kernel.geometry.oc, np.float32) if kernel.bias is None else kernel.bias
        return [kernel.geometry.pack(kernel.weight, cpu.tile), bias.astype(np.float32)]
    if kernel.kind == "gemm":
        assert kernel.weight is not None
        bias = np.zeros(kernel.n, np.float32) if kernel.bias is None else kernel.bias
        return [pack_b(kernel.weight, cpu.tile), bias.astype(np.float32)]
    if kernel.kind == "layernorm":
        scale = np.ones(kernel.n, np.float32) if kernel.scale is None else kernel.scale
        shift = np.zeros(kernel.n, np.float32) if kernel.bias is None else kernel.bias
        return [scale.reshape(-1).astype(np.float32), shift.reshape(-1).astype(np.float32)]
    return []


def function(
    kernel: Kernel, cpu: Processor, shapes: list[tuple[int, ...]], out: tuple[int, ...]
) -> Any:
    """A PrimFunc over buffers of `shapes` (inputs, residual, constants) that writes one of shape `out`."""
    from tvm import s_tir, tirx

    inputs = [tirx.decl_buffer(shape, "float32", f"in{i}") for i, shape in enumerate(shapes)]
    output = tirx.decl_buffer(out, "float32", "out")
    body = _BODIES[kernel.kind](kernel, cpu, inputs, output)
    # Passes that look for reshapes expect the block that every scheduled function has.
    body = s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", body))
    return tirx.PrimFunc([*inputs, output], body).with_attr(
        {"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8}
    )


def _read(buffer: Any, offset: Any = 0) -> Any:
    return buffer.access_ptr("r", offset=offset)


def _write(buffer: Any, offset: Any = 0) -> Any:
    return buffer.access_ptr("w", offset=offset)


def _null() -> Any:
    from tvm import tirx

    return tirx.reinterpret("handle", tirx.const(0, "uint64"))


def _whole(value: int) -> Any:
    from tvm import tirx

    return tirx.const(int(value), "int64")


def _index(value: int) -> Any:
    from tvm import tirx

    return tirx.const(int(value), "int32")


def _wide(index: Any) -> Any:
    """Loops count in 32 bits, as TVM would narrow them anyway; the kernels take 64."""
    from tvm import tirx

    return tirx.Cast("int64", index)


def _real(value: float) -> Any:
    from tvm import tirx

    return tirx.const(max(-LARGEST, min(LARGEST, float(value))), "float32")


def _epilogue(kernel: Kernel) -> list[Any]:
    return [_whole(kernel.act), _real(kernel.alpha), _real(kernel.beta)]


def _loop(pieces: int, call: Callable[[Any], Any], work: float) -> Any:
    """Evaluate `call(i)` for every piece, on several threads if it is worth waking them."""
    from tvm import tirx

    kind = tirx.ForKind.PARALLEL if work >= WORTH_WAKING and pieces > 1 else tirx.ForKind.SERIAL
    if pieces == 1:
        return _checked(call(_index(0)))
    i = tirx.Var("i", "int32")
    return tirx.For(i, _index(0), _index(pieces), kind, _checked(call(i)))


def _checked(call: Any) -> Any:
    """A kernel that refuses its arguments ends the run with an error."""
    from tvm import ir, tirx

    return tirx.AssertStmt(
        tirx.EQ(call, tirx.const(0, "int32")),
        ir.StringImm("RuntimeError"),
        [ir.StringImm("a kernel refused its arguments")],
    )


def _cut(i: Any, total: int, pieces: int) -> list[Any]:
    """Where the i-th of `pieces` parts of `total` starts and ends."""
    from tvm import tirx

    if pieces == 1:
        return [_whole(0), _whole(total)]
    ends = [i * _index(total), (i + _index(1)) * _index(total)]
    return [_wide(tirx.floordiv(end, _index(pieces))) for end in ends]


def _pieces(total: int, work: float, cpu: Processor) -> int:
    return 1 if work < WORTH_WAKING else min(total, cpu.cores)


def _call(symbol: str, *arguments: Any) -> Any:
    from tvm import tirx

    return tirx.call_extern("int32", symbol, *arguments)


def _conv2d(kernel: Kernel, cpu: Processor, inputs: list[Any], output: Any) -> Any:
    geometry = kernel.geometry
    assert geometry is not None
    x, *residual, weight, bias = inputs
    units = geometry.units(cpu.tile)
    pieces = _pieces(units, geometry.multiply_adds, cpu)

    def call(i: Any) -> Any:
        return _call(
            "edgemp_conv2d_f32",
            *(_read(x), _read(weight), _read(bias)),
            _read(residual[0]) if residual else _null(),
            _write(output),
            *(_whole(value) for value in geometry.arguments),
            *_epilogue(kernel),
            *_cut(i, units, pieces),
        )

    return _loop(pieces, call, geometry.multiply_adds)


def _gemm(kernel: Kernel, cpu: Processor, inputs: list[Any], output: Any) -> Any:
    a, *residual, weight, bias = inputs
    m, n, k = kernel.m, kernel.n, kernel.k
    work = float(m) * n * k
    count = panels(n, cpu.tile)
    by_rows = _waste(-(-m // cpu.tile.rows), cpu.cores) < _waste(count, cpu.cores) and m > n
    total = m if by_rows else count
    pieces = _pieces(total, work, cpu)

    def call(i: Any) -> Any:
        cut, all_rows, all_panels = _cut(i, total, pieces), [0, m], [0, count]
        rows = cut if by_rows else [_whole(v) for v in all_rows]
        columns = [_whole(v) for v in all_panels] if by_rows else cut
        return _call(
            "edgemp_gemm_f32",
            *(_read(a), _whole(k), _read(weight), _read(bias)),
            _read(residual[0]) if residual else _null(),
            *(_write(output), _whole(n), _whole(m), _whole(n), _whole(k)),
            *_epilogue(kernel),
            *rows,
            *columns,
        )

    return _loop(pieces, call, work)


def _waste(blocks: int, cores: int) -> float:
    """How much longer the slowest thread works than a fair share."""
    return -(-blocks // cores) * cores / blocks


def _matmul(kernel: Kernel, cpu: Processor, inputs: list[Any], output: Any) -> Any:
    from tvm import tirx

    assert kernel.strides is not None
    a, b, c = kernel.strides
    # A product of a value with itself reads one buffer twice.
    a_buffer, b_buffer = inputs[0], inputs[-1]
    batches = math.prod(kernel.batch)
    m, n, k = kernel.m, kernel.n, kernel.k
    work = float(batches) * m * n * k
    parts = 1 if batches >= cpu.cores or work < WORTH_WAKING else min(m, cpu.cores)
    transposed = b.column != 1
    count = panels(n, cpu.tile)

    def offset(i: Any, at: Strided) -> Any:
        total: Any = _index(0)
        rest = i
        for extent, distance in reversed(list(zip(kernel.batch, at.batch, strict=True))):
            if extent == 1:
                continue
            total = total + tirx.floormod(rest, _index(extent)) * _index(distance)
            rest = tirx.floordiv(rest, _index(extent))
        return total

    def call(i: Any) -> Any:
        batch = tirx.floordiv(i, _index(parts)) if parts > 1 else i
        rows = _cut(tirx.floormod(i, _index(parts)), m, parts) if parts > 1 else [0, m]
        return _call(
            "edgemp_matmul_f32",
            *(_read(a_buffer, offset(batch, a)), _whole(a.row)),
            *(_read(b_buffer, offset(batch, b)), _whole(b.column if transposed else b.row)),
            *(_whole(int(transposed)), _real(kernel.factor), _null()),
            *(_write(output, offset(batch, c)), _whole(c.row)),
            *(_whole(m), _whole(n), _whole(k)),
            *_epilogue(kernel),
            *(_whole(v) if isinstance(v, int) else v for v in rows),
            *(_whole(0), _whole(count)),
        )

    return _loop(batches * parts, call, work)


def _softmax(kernel: Kernel, cpu: Processor, inputs: list[Any], output: Any) -> Any:
    work = 16.0 * kernel.m * kernel.n
    pieces = _pieces(kernel.m, work, cpu)

    def call(i: Any) -> Any:
        rows = _cut(i, kernel.m, pieces)
        return _call(
            "edgemp_softmax_f32", _read(inputs[0]), _write(output), _whole(kernel.n), *rows
        )

    return _loop(pieces, call, work)


def _layernorm(kernel: Kernel, cpu: Processor, inputs: list[Any], output: Any) -> Any:
    x, scale, shift = inputs
    work = 16.0 * kernel.m * kernel.n
    pieces = _pieces(kernel.m, work, cpu)

    def call(i: Any) -> Any:
        return _call(
            "edgemp_layernorm_f32",
            *(_read(x), _null(), _read(scale), _read(shift), _real(kernel.epsilon)),
            *(_write(output), _whole(kernel.n)),
            *_cut(i, kernel.m, pieces),
        )

    return _loop(pieces, call, work)


_BODIES: dict[str, Callable[[Kernel, Processor, list[Any], Any], Any]] = {
    "conv2d": _conv2d,
    "gemm": _gemm,
    "matmul": _matmul,
    "softmax": _softmax,
    "layernorm": _layernorm,
}
