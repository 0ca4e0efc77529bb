"""The largest skip rate that the staleness bounds of a pipeline's gates allow, node by node."""

from __future__ import annotations

from edgemp.bench.stats import skip_ceiling
from edgemp.pipeline import Module, Pipeline
from edgemp.runtime.gates import create_gate


def skip_ceilings(pipeline: Pipeline, fps: float, gated: bool = True) -> dict[str, float]:
    """By node: 1 - 1/(fps T) for its own gate's staleness T, or what the gates above it allow.

    A node without a gate runs whenever something it reads is news that no gate above it judges; a
    node with a gate can rest as long as those above it, or as its own bound says if that is longer.
    0 for a node that runs in every step. Signals are taken to arrive in every step.
    """
    ceilings: dict[str, float] = {}
    behind: dict[str, frozenset[str]] = {}
    judged: dict[str, frozenset[str]] = {}
    for name in pipeline.order():
        item = pipeline.modules.get(name) or pipeline.functions[name]
        sources = pipeline.upstream(name)
        above = [source for source in sources if source not in pipeline.signals]
        direct = frozenset(sources) & frozenset(pipeline.signals)
        known = frozenset[str]().union(*(judged[node] for node in above))
        behind[name] = direct.union(*(behind[node] for node in above))
        restless = direct - known or any(
            ceilings[node] == 0 and node not in known and not behind[node] <= known
            for node in above
        )
        ceiling = 0.0 if restless else max((ceilings[node] for node in above), default=0.0)
        if gated and isinstance(item, Module) and item.gate is not None:
            staleness = _staleness_ms(item, name)
            if staleness is not None:
                ceiling = max(ceiling, skip_ceiling(fps, staleness))
            watched = item.gate.signal or next((s for s in sources if s in direct), sources[0])
            # A gate on what the module does not read stands for all that it reads.
            known |= {watched} if watched in sources else behind[name]
        ceilings[name] = ceiling
        judged[name] = known
    return ceilings


def _staleness_ms(module: Module, name: str) -> float | None:
    assert module.gate is not None
    gate = create_gate(module.gate.kind, module.gate.options, f"module {name}")
    # A vendor's gate need not keep its policy under this name.
    return getattr(getattr(gate, "policy", None), "max_staleness_ms", None)
