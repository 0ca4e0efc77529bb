"""Roofline estimate of a network: every kernel's operations and bytes against a target's ceilings.

S. Williams, A. Waterman, D. Patterson: "Roofline: an insightful visual performance model", CACM 2009;
with separate ceilings for matrix and vector work, and the time that starting a kernel takes.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from edgemp.backends.base import Estimate, NodeEstimate
from edgemp.errors import NetworkError, TargetError
from edgemp.estimate.ceilings import Ceilings, published
from edgemp.estimate.graph import read_graph
from edgemp.estimate.kernels import FUSIONS, GENERAL, Kernel, Widths, kernels_of
from edgemp.network import Network
from edgemp.target import Target

if TYPE_CHECKING:
    from edgemp.compiler.cache import StageCache

WIDTHS = {
    "fp32": Widths(),
    "fp32-w16": Widths(),
    "fp16": Widths(2, 2, 2),
    "bf16": Widths(2, 2, 2),
    "int8": Widths(1, 1, 4),
    "int8-bf16": Widths(1, 1, 2),
    "int8-fp16": Widths(1, 1, 2),
    "int8-dynamic": Widths(1, 4, 4),
    "fp8": Widths(1, 1, 2),
}
"""Bytes per element in memory. 16-bit storage of fp32 weights ends when the engine loads them."""

CEILINGS: ContextVar[StageCache | None] = ContextVar("CEILINGS", default=None)
"""Where ceilings of this machine are kept when a backend's `estimate` is asked, which names no cache."""

UNKNOWN = 4.0
"""A kernel whose shapes cannot be told is put at the mean of the others, and its share of the stated
range is this many times wider."""


def roofline(
    network: Network,
    target: Target,
    precision: str,
    unit: str = "CPU",
    backend: str = "",
    cache: StageCache | None = None,
) -> Estimate:
    """Time of one inference: over all kernels, launch plus the slower of arithmetic and memory traffic.

    `backend` decides which operators run as one kernel; for a target that is probed (this machine) its
    ceilings are measured through that engine (kept in `cache`), for all others they are published peaks.

    Raises:
        NetworkError: if the network is not ONNX, or its shapes cannot be told.
        TargetError: naming the figure that the target's file lacks, or the precision whose widths are
            unknown; or if it has no such unit.
        BackendError: if the ceilings of this machine cannot be measured with `backend`.
    """
    # Engines with several devices name the device before the precision: "npu-int8".
    computed = precision.removeprefix(f"{unit.lower()}-")
    if computed not in WIDTHS:
        raise TargetError(
            f"{network.name}: how wide numbers are in {precision} is unknown, so its traffic cannot be "
            f"estimated; known: {', '.join(WIDTHS)}"
        )
    widths = WIDTHS[computed]
    graph = read_graph(network.model, network.name)
    if target.probe:
        from edgemp.compiler.cache import StageCache
        from edgemp.estimate.calibrate import measured

        backend = backend or target.backends[0]
        ceilings = measured(backend, precision, target, cache or CEILINGS.get() or StageCache())
        watts = None
    else:
        found = target.unit(unit)
        ceilings = published(target, found, computed)
        if computed.startswith("int8") and found.kind != "cpu":
            # Accelerators keep tensors in 8 bits between products, and the rest in 16.
            widths = Widths(1, 1, 2)
        # The first power mode is the one that the rates hold for.
        watts = next((m.watts.value for m in target.power_modes if m.watts), None)
    kernels = kernels_of(graph, FUSIONS.get(backend, GENERAL), widths)
    return estimate_of(kernels, ceilings, unit, watts, network.name)


def estimate_of(
    kernels: tuple[Kernel, ...], ceilings: Ceilings, unit: str, watts: float | None, name: str
) -> Estimate:
    """The kernels' times under the ceilings.

    Raises:
        NetworkError: naming the first products whose shapes are unknown or that the engine refuses, if
            there are any, or if hardly anything is known.
    """
    unknown = [kernel for kernel in kernels if not kernel.known]
    if len(unknown) * 2 > len(kernels) or any(_is_product(kernel) for kernel in unknown):
        first = [k for k in unknown if _is_product(k)] or unknown
        raise NetworkError(
            f"{name}: the shapes or the work of {len(unknown)} of {len(kernels)} kernels cannot be told, "
            f"among them {', '.join(f'{k.name} ({k.op})' for k in first[:3])}; give fixed input shapes, "
            "or simplify the graph"
        )
    if unrated := [k for k in kernels if any(m.kind not in ceilings.matrix for m in k.matrices)]:
        raise NetworkError(
            f"{name}: the engine refused the micro-benchmarks of such products as "
            f"{unrated[0].name} ({unrated[0].op}); it takes no networks with them"
        )
    weights = sum(kernel.weights for kernel in kernels)
    nodes = [_timed(kernel, ceilings, unit, weights, watts) for kernel in kernels if kernel.known]
    mean = sum(node.time_us for node in nodes) / max(1, len(nodes))
    guessed = [
        NodeEstimate(k.name, k.op, unit, 0.0, k.bytes_moved, mean, "launch") for k in unknown
    ]
    order = {kernel.name: i for i, kernel in enumerate(kernels)}
    every = tuple(sorted([*nodes, *guessed], key=lambda node: order[node.node]))
    seconds = ceilings.call_s + sum(node.time_us for node in every) * 1e-6
    doubt = sum(node.time_us for node in guessed) * 1e-6
    down, up = ceilings.spread
    shares: dict[str, float] = {"launch": ceilings.call_s * 1e6}
    for node in every:
        shares[node.bound] = shares.get(node.bound, 0.0) + node.time_us
    return Estimate(
        latency_ms=seconds * 1e3,
        low_ms=(seconds - doubt * (1 - 1 / UNKNOWN)) * down * 1e3,
        high_ms=(seconds + doubt * (UNKNOWN - 1)) * up * 1e3,
        operations=sum(kernel.operations for kernel in kernels),
        bytes_moved=sum(kernel.bytes_moved for kernel in kernels),
        bound=max(shares, key=lambda bound: shares[bound]),
        basis=ceilings.basis,
        energy_mj=None if watts is None else watts * seconds * 1e3,
        nodes=every,
    )


def _is_product(kernel: Kernel) -> bool:
    from edgemp.estimate.operators import MATRIX_OPS

    return bool(MATRIX_OPS & set(kernel.op.split("+")))


def _timed(
    kernel: Kernel, ceilings: Ceilings, unit: str, all_weights: float, watts: float | None
) -> NodeEstimate:
    matrix = sum(ceilings.matrix[m.kind].seconds(m) for m in kernel.matrices)
    vector = sum(ops / ceilings.vector[kind] for kind, ops in kernel.vector.items())
    memory = ceilings.memory_seconds(kernel.read + kernel.written, kernel.weights, all_weights)
    # A product's epilogue follows it on the same unit; both overlap with memory traffic.
    busy = max(matrix + vector, memory)
    parts = {"matrix": matrix, "vector": vector, "memory": memory, "launch": ceilings.launch_s}
    bound = max(parts, key=lambda part: parts[part])
    seconds = busy + ceilings.launch_s
    return NodeEstimate(
        kernel.name,
        kernel.op,
        unit,
        kernel.operations,
        kernel.bytes_moved,
        seconds * 1e6,
        bound,
        None if watts is None else watts * seconds * 1e3,
    )
