"""The largest skip rate that the staleness bounds of a pipeline's gates allow, node by node."""

from __future__ import annotations

from edgemp.bench.stats import skip_ceiling
from edgemp.pipeline import Module, Pipeline
from edgemp.runtime.gates import create_gate


def skip_ceilings(pipeline: Pipeline, fps: float, gated: bool = True) -> dict[str, float]:
    """By node: 1 - 1/(fps T) for its own gate's staleness T, or what the gates above it allow.

    A node without a gate runs whenever a node above it did, or a signal arrives that no gate above
    judges; a node with a gate can rest as long as the gates above it, or its own if that is longer.
    """
    ceilings: dict[str, float] = {}
    judged: dict[str, frozenset[str]] = {}
    for name in pipeline.order():
        item = pipeline.modules.get(name) or pipeline.functions[name]
        sources = pipeline.upstream(name)
        above = [source for source in sources if source not in pipeline.signals]
        known = frozenset[str]().union(*(judged[source] for source in above))
        unjudged = any(source in pipeline.signals and source not in known for source in sources)
        ceiling = 0.0 if unjudged or not above else min(ceilings[source] for source in above)
        if gated and isinstance(item, Module) and item.gate is not None:
            staleness = _staleness_ms(item, name)
            if staleness is not None:
                ceiling = max(ceiling, skip_ceiling(fps, staleness))
            known |= _watched(pipeline, item)
        ceilings[name] = ceiling
        judged[name] = known
    return ceilings


def _staleness_ms(module: Module, name: str) -> float | None:
    assert module.gate is not None
    gate = create_gate(module.gate.kind, module.gate.options, f"module {name}")
    # A vendor's gate need not keep its policy under this name.
    return getattr(getattr(gate, "policy", None), "max_staleness_ms", None)


def _watched(pipeline: Pipeline, module: Module) -> frozenset[str]:
    assert module.gate is not None
    if module.gate.signal:
        return frozenset({module.gate.signal})
    return frozenset([name for name in module.inputs.values() if name in pipeline.signals][:1])
