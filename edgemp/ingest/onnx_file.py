"""Reading ONNX files: clear errors, input and output specs, fixed shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemp.errors import NetworkError
from edgemp.tensor import TensorSpec

MINIMUM_OPSET = 13
"""Per-channel QuantizeLinear starts at opset 13; older graphs are converted upward on ingest."""


def read_onnx(path: Path, where: str) -> Any:
    """The `onnx.ModelProto` of a file, checked, with its external data.

    Raises:
        NetworkError: if the file is not ONNX, is damaged, or its external data is missing.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise NetworkError(f"{where}: {path} is not an ONNX file: {error}") from None
    if not model.graph.node:
        raise NetworkError(f"{where}: {path} is not an ONNX file, or its graph has no nodes")
    for missing in _missing_external_data(model, path.parent):
        raise NetworkError(
            f"{where}: {path.name} keeps weights in {missing!r}, which is not beside it; "
            "copy that file next to the model"
        )
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        if "No Op registered" not in str(error) and "No opset import" not in str(error):
            raise NetworkError(f"{where}: {path} is not valid ONNX: {error}") from None
    return model


def _missing_external_data(model: Any, folder: Path) -> list[str]:
    import onnx

    locations = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(name for name in locations if not (folder / name).is_file())


def graph_inputs(model: Any, where: str) -> tuple[TensorSpec, ...]:
    """Specs of the inputs that a caller feeds (initializers listed as inputs are left out)."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(v, where) for v in model.graph.input if v.name not in weights)


def graph_outputs(model: Any, where: str) -> tuple[TensorSpec, ...]:
    return tuple(_spec(value, where) for value in model.graph.output)


def _spec(value: Any, where: str) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type":
        raise NetworkError(
            f"{where}: {value.name!r} is not a tensor (sequences and maps are not supported)"
        )
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except KeyError:
        raise NetworkError(f"{where}: {value.name!r} has no element type") from None
    dims = tuple(
        dim.dim_value if dim.WhichOneof("value") == "dim_value" and dim.dim_value > 0 else None
        for dim in tensor.shape.dim
    )
    return TensorSpec(name=value.name, dtype=dtype, shape=dims)


def resolve_shapes(
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    sample_shapes: Mapping[str, set[tuple[int, ...]]],
    where: str,
    remedy: str = "",
) -> dict[str, tuple[int | None, ...]]:
    """A shape per input: from the description, else from samples that all agree, else the network's own.

    `remedy` says what to do where there is no description that could give shapes.

    Raises:
        NetworkError: if a dimension stays dynamic without anybody having asked for that (-1).
    """
    resolved: dict[str, tuple[int | None, ...]] = {}
    for spec in inputs:
        asked = shapes.get(spec.name)
        if asked is not None:
            if len(asked) != len(spec.shape) or any(
                own is not None and want not in {own, -1}
                for own, want in zip(spec.shape, asked, strict=True)
            ):
                raise NetworkError(
                    f"{where}: shapes gives {spec.name!r} {list(asked)}, but the network has {spec}"
                )
            resolved[spec.name] = tuple(
                own if want == -1 else want for own, want in zip(spec.shape, asked, strict=True)
            )
            continue
        seen = sample_shapes.get(spec.name, set())
        if not spec.is_static and len(seen) == 1:
            (only,) = seen
            if len(only) == len(spec.shape):
                resolved[spec.name] = only
                continue
        if not spec.is_static:
            raise NetworkError(
                f"{where}: input {spec.name!r} is {spec} with a dynamic dimension that has no value; "
                + (
                    remedy
                    or f"give shapes: {{{spec.name}: [...]}} (-1 keeps a dimension dynamic on purpose)"
                )
            )
        resolved[spec.name] = spec.shape
    return resolved


def fix_shapes(model: Any, shapes: Mapping[str, tuple[int | None, ...]]) -> Any:
    """A copy of the model whose inputs have `shapes`, with shapes inferred anew from there."""
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for dim, want in zip(
            value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False
        ):
            if want is not None:
                dim.dim_value = want
    if all(dim is not None for shape in shapes.values() for dim in shape):
        for value in fixed.graph.output:
            value.type.tensor_type.ClearField("shape")
        del fixed.graph.value_info[:]
        fixed = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    return fixed


def raise_opset(model: Any, where: str) -> Any:
    """The model at opset `MINIMUM_OPSET` or above, so that quantizers take it.

    Raises:
        NetworkError: if an operator of an old opset cannot be converted.
    """
    import onnx
    from onnx import version_converter

    opset = next((item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), 0)
    if opset >= MINIMUM_OPSET or opset == 0:
        return model
    try:
        return version_converter.convert_version(model, 17)
    except (RuntimeError, onnx.checker.ValidationError) as error:
        raise NetworkError(f"{where}: cannot raise opset {opset} to 17: {error}") from None
