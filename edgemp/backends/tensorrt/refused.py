"""Saying which node a parser or builder refuses, and whether that holds for the device as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgemp.backends.tensorrt.build import BuilderFailed, Built, build, refused_by_parser
from edgemp.backends.tensorrt.library import Library, nearest, sm
from edgemp.backends.tensorrt.operators import SOURCE, refusals
from edgemp.backends.tensorrt.placement import Refusal
from edgemp.backends.tensorrt.plan import BuildPlan
from edgemp.errors import BackendError, UnsupportedOpError


@dataclass(frozen=True)
class Said:
    """Sentences for a build package: what was checked, and what could not be."""

    checked: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Legality:
    """Nodes that TensorRT does not take, and those that only the parser at hand does not take."""

    refused: tuple[Refusal, ...]
    doubtful: tuple[Refusal, ...] = ()


def build_or_name(lib: Library, model: Any, plan: BuildPlan, without_gpu: str) -> Built:
    """Build ahead of time; a failure names its node even if the builder's message does not.

    Raises:
        UnsupportedOpError: naming the node.
        BackendError: if the library cannot build for that compute capability.
    """
    try:
        return build(lib, model, plan, without_gpu)
    except BuilderFailed as failure:
        if failure.nodes:
            raise
        raise UnsupportedOpError(_located(lib, model, plan, without_gpu, failure)) from failure


def _located(
    lib: Library, model: Any, plan: BuildPlan, without_gpu: str, failure: BuilderFailed
) -> str:
    from edgemp.backends.tensorrt.locate import failing_node

    found = failing_node(lib.name, model, plan, without_gpu)
    if found is None:
        return str(failure)
    return (
        f"{failure} (the graph up to node {found[0]} ({found[1]}) is the shortest part that fails)"
    )


def legality(model: Any, parser: Library | None) -> Legality:
    """What TensorRT refuses, as far as its own parser, TensorRT-RTX's or the operator table can tell.

    TensorRT-RTX ships without TensorRT's plugins, so a node that it lacks a plugin for and that the
    table lists is doubtful rather than refused.
    """
    by_table = refusals(model)
    if parser is None:
        return Legality(tuple(by_table))
    by_parser = refused_by_parser(parser, model)
    if parser.name == "tensorrt":
        return Legality(tuple(by_parser))
    out = {item.node for item in by_table}
    doubtful = [r for r in by_parser if "plugin" in r.reason.lower() and r.node not in out]
    both = [*by_table, *(r for r in by_parser if r not in doubtful and r.node not in out)]
    return Legality(tuple(both), tuple(doubtful))


def check_legal(model: Any, parser: Library | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What to say of a network that nothing here refuses.

    Raises:
        UnsupportedOpError: naming the nodes that are refused.
    """
    found = legality(model, parser)
    by = f"{parser.title}'s ONNX parser" if parser else "TensorRT's operator table"
    if found.refused:
        raise UnsupportedOpError(
            f"tensorrt does not take {len(found.refused)} node(s), says {by}: "
            + "; ".join(map(str, found.refused[:5]))
        )
    table = f"{len(model.graph.node)} nodes looked up in TensorRT's operator table ({SOURCE})"
    if parser is None:
        return (table,), (
            "not parsed: no TensorRT parser here; pip install 'edgemp[tensorrt-rtx]'",
        )
    if found.doubtful:
        names = ", ".join(f"{item.node} ({item.op})" for item in found.doubtful[:5])
        return (table,), (f"{by} lacks a plugin that TensorRT has, for {names}",)
    return (f"parsed by {by} as a strongly typed network", table), ()


def rehearse(lib: Library, model: Any, plan: BuildPlan) -> Said:
    """A TensorRT-RTX build for the nearest compute capability, to see that the network is legal.

    Raises:
        UnsupportedOpError: naming a node that breaks one of the builder's rules.
    """
    try:
        near = nearest(plan.compute_capability, lib.capabilities())
        built = build(lib, model, plan, near)
    except BuilderFailed as failure:
        if not failure.internal:
            raise
        said = str(failure) if failure.nodes else _located(lib, model, plan, near, failure)
        return Said(
            unchecked=(f"a rehearsal failed inside the builder, TensorRT's may too: {said}",)
        )
    except (UnsupportedOpError, BackendError) as error:
        return Said(unchecked=(f"no rehearsal: {error}",))
    return Said(
        checked=(
            f"built by {lib.title} for {sm(near)}, the nearest that it accepts to "
            f"{sm(plan.compute_capability)}, in {len(built.layers)} layers; that engine is not shipped",
        )
    )
