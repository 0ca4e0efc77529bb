"""From a prepared ONNX model to one scheduled TVM module, and to machine code for a target."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemp.backends.base import NodePlacement
from edgemp.backends.tvm.calls import constants, function
from edgemp.backends.tvm.graph import Graph
from edgemp.backends.tvm.records import Records, apply_records, describe
from edgemp.backends.tvm.schedule import scheduled
from edgemp.backends.tvm.selection import Kernel, select
from edgemp.backends.tvm.toolchain import Processor, Tile, kernels_object, link
from edgemp.errors import UnsupportedOpError

KERNEL = "EdgempKernel"


@dataclass(frozen=True)
class Lowered:
    """`module` is Relax after fusion and scheduling; `calls` is what `main` calls, in order.

    `unscheduled` names the functions whose loops stayed as TVM wrote them, `tuned` those that took a
    tuning record, of what `records` describes.
    """

    module: Any
    calls: tuple[NodePlacement, ...]
    unscheduled: tuple[str, ...]
    tuned: tuple[str, ...] = ()
    records: str = ""


def lower(model: Any, cpu: Processor, found: Sequence[Records] = ()) -> Lowered:
    """Import, fuse and schedule a prepared model, by records where there are any.

    Raises:
        UnsupportedOpError: if TVM's ONNX importer refuses a node.
    """
    import tvm

    module, called = fused(model, cpu)
    tuned: tuple[str, ...] = ()
    if found:
        module, tuned = apply_records(module, tvm.target.Target(cpu.llvm()), found)
    module, left = scheduled(module, cpu.tile.lanes)
    return Lowered(
        module, _calls(module, called, set(tuned)), tuple(left), tuned, describe(found, cpu)
    )


def fused(model: Any, cpu: Processor) -> tuple[Any, dict[str, list[Kernel]]]:
    """The module with the kernels' functions and fused ones without a schedule."""
    import tvm
    from tvm import relax

    graph = Graph(model)
    module, called = _imported(model, graph, select(graph), cpu)
    passes = relax.transform
    with tvm.target.Target(cpu.llvm()):
        module = tvm.transform.Sequential(
            [
                passes.DecomposeOpsForInference(),
                passes.CanonicalizeBindings(),
                passes.FoldConstant(),
                passes.FastMathTransform(),
                passes.LegalizeOps(),
                passes.AnnotateTIROpPattern(),
                passes.FoldConstant(),
                passes.FuseOps(),
                passes.FuseTIR(),
                passes.DeadCodeElimination(),
            ]
        )(module)
    return module, called


def imported(model: Any) -> Any:
    """The module as TVM's importer makes it, without any kernel of edgemp's.

    Raises:
        UnsupportedOpError: if the importer refuses a node.
    """
    cpu = Processor("x86_64", "x86-64", 1, Tile(4, 8, 4))  # no kernel, so it decides nothing
    module, _ = _imported(model, Graph(model), [], cpu)
    return module


def build(lowered: Lowered, cpu: Processor) -> Any:
    """The Relax executable."""
    import tvm
    from tvm import relax

    return relax.build(lowered.module, tvm.target.Target(cpu.llvm()))


def export(executable: Any, cpu: Processor, folder: Path) -> bytes:
    """A shared library with the kernels linked in.

    Raises:
        ToolchainMissing: if zig is not installed.
    """
    path = folder / "model.so"
    addons = [str(kernels_object(cpu))]

    def linked(output: str, objects: list[str], **_: Any) -> None:
        link(cpu, Path(output), objects)

    executable.export_library(str(path), fcompile=linked, addons=addons)
    return path.read_bytes()


def _imported(
    model: Any, graph: Graph, chosen: list[Kernel], cpu: Processor
) -> tuple[Any, dict[str, list[Kernel]]]:
    """Relax of the model, with one call per kernel in the place of the nodes that it covers.

    The second value has the kernels behind each function, in the order of the calls: those that differ
    in their constants only share one.
    """
    called: dict[str, list[Kernel]] = {}
    importer = _importer(chosen, cpu, graph, called)
    opset = next(item.version for item in model.opset_import if item.domain in {"", "ai.onnx"})
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said):
            warnings.simplefilter("ignore")
            return importer.from_onnx(_with_calls(graph, chosen), opset), called
    except Exception as error:  # the importer raises many unrelated types
        first = (said.getvalue() or str(error)).strip().splitlines() or [type(error).__name__]
        raise UnsupportedOpError(
            f"tvm cannot import the network: {first[0][:160]}: {str(error).strip()[:200]}"
        ) from error


def _with_calls(whole: Graph, chosen: list[Kernel]) -> Any:
    """The graph with kernels as single nodes, without the weights that only they read."""
    import onnx
    from onnx import helper

    at: dict[int, int] = {}
    covered: set[int] = set()
    order = {id(node): i for i, node in enumerate(whole.nodes)}
    for index, kernel in enumerate(chosen):
        places = [order[id(node)] for node in kernel.nodes]
        covered.update(places)
        at[max(places)] = index
    graph = onnx.GraphProto()
    graph.name = whole.graph.name
    graph.input.extend(whole.graph.input)
    graph.output.extend(whole.graph.output)
    used = {item.name for item in graph.output}
    for place, node in enumerate(whole.nodes):
        if place in at:
            kernel = chosen[at[place]]
            inputs = [*kernel.inputs, *([kernel.residual] if kernel.residual else [])]
            call = helper.make_node(
                KERNEL, inputs, [kernel.output], name=str(at[place]), domain="edgemp"
            )
            graph.node.append(call)
            used.update(inputs)
        elif place not in covered:
            graph.node.append(node)
            used.update(node.input)
    graph.initializer.extend(item for item in whole.graph.initializer if item.name in used)
    return graph


def _importer(
    chosen: list[Kernel], cpu: Processor, shapes: Graph, called: dict[str, list[Kernel]]
) -> Any:
    from tvm import relax
    from tvm.relax.frontend.onnx import onnx_frontend

    class Importer(onnx_frontend.ONNXGraphImporter):  # type: ignore[misc]
        """TVM's importer, which also knows the nodes that stand for kernels."""

        def _check_for_unsupported_ops(self, graph: Any) -> None:
            import onnx

            rest = onnx.GraphProto()
            rest.node.extend(node for node in graph.node if node.op_type != KERNEL)
            super()._check_for_unsupported_ops(rest)

        def _convert_operator(self, name: str, inputs: Any, attrs: Any, opset: int) -> Any:
            if name != KERNEL:
                return super()._convert_operator(name, inputs, attrs, opset)
            index = int(attrs["tvm_custom"]["name"])
            kernel = chosen[index]
            values = constants(kernel, cpu)
            given = [tuple(int(d) for d in value.ty.shape.values) for value in inputs]
            out = shapes.shape(kernel.output)
            assert out is not None
            body = function(kernel, cpu, [*given, *(v.shape for v in values)], out)
            target = self.bb.add_func(body, f"edgemp_{kernel.kind}_{index}")
            called.setdefault(target.name_hint, []).append(kernel)
            arguments = [*inputs, *(relax.const(value) for value in values)]
            return self.bb.emit(
                relax.call_tir(target, arguments, out_ty=relax.TensorType(out, "float32"))
            )

    return Importer({}, "float32", keep_params_in_input=False, sanitize=True)


def _calls(
    module: Any, called: dict[str, list[Kernel]], tuned: set[str]
) -> tuple[NodePlacement, ...]:
    """What `main` calls after fusion: the nodes that each kernel covers, and generated functions."""
    from tvm import relax

    found: list[NodePlacement] = []
    left = {name: list(kernels) for name, kernels in called.items()}
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if not isinstance(call, relax.Call) or not call.args:
                continue
            name = getattr(call.args[0], "name_hint", "")
            if not name:
                continue
            if left.get(name):
                kernel = left[name].pop(0)
                found += [
                    NodePlacement(
                        node.name or node.output[0], node.op_type, "CPU", "f32", kernel.what
                    )
                    for node in kernel.nodes
                ]
            else:
                how = "tuned schedule" if name in tuned else "generated schedule"
                found.append(NodePlacement(name, "generated", "CPU", "", how))
    return tuple(found)
