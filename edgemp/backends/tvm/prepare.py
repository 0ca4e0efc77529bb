"""An ONNX model as TVM's importer takes it: static shapes, `Attention` lowered, constants folded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from edgemp.backends.tvm.graph import attribute
from edgemp.errors import BackendError, NetworkError, UnsupportedOpError
from edgemp.ingest.onnx_file import read_onnx
from edgemp.network import Network


def prepare(network: Network, folder: Path) -> Network:
    """The network simplified, in a file of its own.

    Raises:
        UnsupportedOpError: naming the nodes that cannot be lowered.
        BackendError: if a shape is not static.
    """
    import onnx

    model = read_onnx(network.model, f"tvm, {network.name}")
    refuse_unknown(model)
    if not network.is_static:
        dynamic = ", ".join(f"{spec.name} {spec}" for spec in network.inputs if not spec.is_static)
        raise BackendError(f"tvm compiles static shapes only, but {network.name} takes {dynamic}")
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    lower_attention(model)
    lower_group_normalization(model)
    model, problem = simplified(model, folder)
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    facts = {"tvm_not_simplified": problem} if problem else {}
    return network.transformed(path, "tvm-prepare", **facts)


def simplified(model: Any, folder: Path) -> tuple[Any, str]:
    """Constants folded, identities removed, batch normalisation folded into convolutions.

    These are ONNX Runtime's basic rewrites: all of them stay within standard ONNX operators. Where it
    refuses a model, the model stays as it is, and the second value says why.
    """
    import onnx
    import onnxruntime

    folder.mkdir(parents=True, exist_ok=True)
    before, after = folder / "before.onnx", folder / "after.onnx"
    onnx.save(model, str(before))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(after)
    options.log_severity_level = 4
    problem = ""
    try:
        onnxruntime.InferenceSession(
            str(before),
            options,
            providers=["CPUExecutionProvider"],
            # It would put reshapes between a product and what is added to it.
            disabled_optimizers=["MatMulAddFusion"],
        )
        found = onnx.load(str(after))
    except Exception as error:  # its exceptions share no public base class
        found = model
        problem = f"ONNX Runtime refused to simplify it: {str(error).strip()[:300]}"
    for path in (before, after):
        path.unlink(missing_ok=True)
    del found.graph.value_info[:]
    found = onnx.shape_inference.infer_shapes(found, data_prop=True)
    for index, node in enumerate(found.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{index}"
    return found, problem


def importable() -> frozenset[str]:
    """The ONNX operators that TVM's importer converts."""
    from tvm.relax.frontend.onnx import onnx_frontend

    return frozenset({*onnx_frontend._get_convert_map(), "Constant"})


def refuse_unknown(model: Any) -> None:
    """Raise for operators outside of ONNX's own domain, naming their nodes.

    Raises:
        UnsupportedOpError
    """
    unknown = [
        f"{node.name or node.output[0]} ({node.domain}.{node.op_type})"
        for node in model.graph.node
        if node.domain not in {"", "ai.onnx"}
    ]
    if unknown:
        raise UnsupportedOpError(
            f"tvm does not implement {len(unknown)} node(s): {', '.join(unknown[:8])}"
        )


def lower_attention(model: Any) -> None:
    """Rewrite opset-23 `Attention` to MatMul, Add and Softmax, in place.

    Query, key and value are [B, heads, L, D], or [B, L, heads * D] with `q_num_heads` and
    `kv_num_heads`; the mask is boolean or additive. The opset stays as it is: TVM's importer tells the
    versions of an operator apart, and Gelu or a scale per channel do not exist at 18.

    Raises:
        UnsupportedOpError: for caches, softcap, and outputs besides the first.
    """
    nodes = list(model.graph.node)
    if not any(node.op_type == "Attention" for node in nodes):
        return
    shapes = _shapes(model)
    del model.graph.node[:]
    for node in nodes:
        if node.op_type == "Attention" and node.domain in {"", "ai.onnx"}:
            _Attention(model, node, shapes).lower()
        else:
            model.graph.node.append(node)


def lower_group_normalization(model: Any) -> None:
    """Rewrite `GroupNormalization` of static shapes to InstanceNormalization over groups, in place.

    ONNX Runtime has no kernel for it: its simplification would put ONNX's definition there, which
    computes with shapes and which TVM refuses. Scale and shift are per channel; opset 18's per group are
    deprecated, and refused before.
    """
    from onnx import helper, numpy_helper

    nodes = list(model.graph.node)
    shapes = _shapes(model)
    del model.graph.node[:]
    for node in nodes:
        shape = shapes.get(node.input[0], ()) if node.op_type == "GroupNormalization" else ()
        if len(shape) < 3 or 0 in shape:
            model.graph.node.append(node)
            continue
        name, groups = node.name or node.output[0], attribute(node, "num_groups")
        constants = {
            "split": np.asarray([shape[0], groups, -1], np.int64),
            "whole": np.asarray(shape, np.int64),
            "channels": np.asarray([-1] + [1] * (len(shape) - 2), np.int64),
            "ones": np.ones(groups, np.float32),
            "zeros": np.zeros(groups, np.float32),
        }
        model.graph.initializer.extend(
            numpy_helper.from_array(value, f"{name}/{key}") for key, value in constants.items()
        )
        normal = {"epsilon": attribute(node, "epsilon", 1e-5)}
        steps: list[tuple[str, list[str], dict[str, Any]]] = [
            ("Reshape", [node.input[0], f"{name}/split"], {}),
            ("InstanceNormalization", [f"{name}/0", f"{name}/ones", f"{name}/zeros"], normal),
            ("Reshape", [f"{name}/1", f"{name}/whole"], {}),
            ("Reshape", [node.input[1], f"{name}/channels"], {}),
            ("Reshape", [node.input[2], f"{name}/channels"], {}),
            ("Mul", [f"{name}/2", f"{name}/3"], {}),
            ("Add", [f"{name}/5", f"{name}/4"], {}),
        ]
        for index, (op, inputs, more) in enumerate(steps):
            output = node.output[0] if index == len(steps) - 1 else f"{name}/{index}"
            made = helper.make_node(op, inputs, [output], name=f"{name}/{op}_{index}", **more)
            model.graph.node.append(made)


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    found = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
    return {**found, **{w.name: tuple(w.dims) for w in model.graph.initializer}}


class _Attention:
    """One `Attention` node, and the nodes that take its place."""

    def __init__(self, model: Any, node: Any, shapes: dict[str, tuple[int, ...]]) -> None:
        self.model, self.node, self.shapes = model, node, shapes
        self.name = node.name or node.output[0]
        self.count = 0

    def lower(self) -> None:
        node = self.node
        extra = [name for name in node.input[4:] if name] + [
            name for name in node.output[1:] if name
        ]
        if extra or attribute(node, "softcap", 0.0) or attribute(node, "qk_matmul_output_mode", 0):
            raise UnsupportedOpError(
                f"tvm: {self.name} (Attention) uses a cache, a softcap or further outputs, "
                "which are not lowered"
            )
        q, k, v = node.input[:3]
        flat = len(self._shape(q)) == 3
        if flat:
            heads, shared = attribute(node, "q_num_heads", 0), attribute(node, "kv_num_heads", 0)
            q, k, v = self._split(q, heads), self._split(k, shared), self._split(v, shared)
        batch, heads, length, depth = self._shape(q)
        shared = self._shape(k)[1]
        if shared != heads:
            k, v = (self._repeat(value, heads // shared) for value in (k, v))
        scale = attribute(node, "scale", 0.0) or 1 / math.sqrt(depth)
        turned = self._step("Transpose", [k], perm=[0, 1, 3, 2])
        scores = self._step("MatMul", [q, turned])
        scores = self._step("Mul", [scores, self._constant(np.float32(scale))])
        scores = self._masked(scores, length, self._shape(k)[2])
        weights = self._step("Softmax", [scores], axis=-1)
        mixed = self._step("MatMul", [weights, v], output="" if flat else node.output[0])
        if flat:
            turned = self._step("Transpose", [mixed], perm=[0, 2, 1, 3])
            width = heads * self._shape(v)[3]
            shape = self._constant(np.asarray([batch, length, width], np.int64))
            self._step("Reshape", [turned, shape], output=node.output[0])

    def _shape(self, value: str) -> tuple[int, ...]:
        shape = self.shapes.get(value, ())
        if not shape or 0 in shape:
            raise NetworkError(f"tvm: the shape of {value!r} at {self.name} (Attention) is unknown")
        return shape

    def _masked(self, scores: str, length: int, keys: int) -> str:
        from onnx import TensorProto

        if len(self.node.input) > 3 and self.node.input[3]:
            mask = self.node.input[3]
            kinds = {v.name: v.type.tensor_type.elem_type for v in self.model.graph.input}
            kinds |= {v.name: v.type.tensor_type.elem_type for v in self.model.graph.value_info}
            kinds |= {w.name: w.data_type for w in self.model.graph.initializer}
            if kinds.get(mask) == TensorProto.BOOL:
                low = self._constant(np.float32(-1e30))
                scores = self._step("Where", [mask, scores, low])
            else:
                scores = self._step("Add", [scores, mask])
        if attribute(self.node, "is_causal", 0):
            future = np.triu(np.full((length, keys), -1e30, np.float32), 1)
            scores = self._step("Add", [scores, self._constant(future)])
        return scores

    def _split(self, value: str, heads: int) -> str:
        """[B, L, heads * D] -> [B, heads, L, D]"""
        batch, length, width = self._shape(value)
        if heads < 1 or width % heads:
            raise NetworkError(f"tvm: {self.name} (Attention) splits {width} into {heads} heads")
        shape = (batch, length, heads, width // heads)
        split = self._step("Reshape", [value, self._constant(np.asarray(shape, np.int64))])
        turned = self._step("Transpose", [split], perm=[0, 2, 1, 3])
        self.shapes[turned] = (batch, heads, length, width // heads)
        return turned

    def _repeat(self, value: str, times: int) -> str:
        """Each key/value head serves `times` query heads in a row."""
        batch, heads, length, depth = self._shape(value)
        order = np.repeat(np.arange(heads, dtype=np.int64), times)
        repeated = self._step("Gather", [value, self._constant(order)], axis=1)
        self.shapes[repeated] = (batch, heads * times, length, depth)
        return repeated

    def _constant(self, value: Any) -> str:
        from onnx import numpy_helper

        name = f"{self.name}/constant_{self.count}"
        self.count += 1
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _step(self, op: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = f"{self.name}/{op}_{self.count}"
        self.count += 1
        out = output or name
        self.model.graph.node.append(helper.make_node(op, inputs, [out], name=name, **attributes))
        return out
