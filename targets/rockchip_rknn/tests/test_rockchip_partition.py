"""The compiler's log becomes a placement: which layer runs where, and what became of each ONNX node."""

from __future__ import annotations

import pytest
from edgemp_rockchip_rknn.partition import parse

from edgemp.errors import BackendError

ROWS = (
    ("InputOperator", "INT64", "CPU", "\\", "(1,6)", "0/0/0", "InputOperator:tokens"),
    ("Gather", "FLOAT16", "CPU", "(20,8),(1,6)", "(1,6,8)", "0/0/0", "Gather:embed"),
    ("ConvRelu", "INT8", "NPU", "(1,3,8,8),...", "(1,8,8,8)", "28/230/230", "Conv:conv_1"),
    ("Conv", "INT8", "NPU", "(1,16,3,3)", "(1,16,1,1)", "32/144/144", "Conv:pool_2conv0"),
    ("exNorm", "FLOAT16", "NPU", "(1,8,1,6)", "(1,8,1,6)", "0/0/0", "exNorm:norm#1"),
    ("Reshape", "INT8", "NPU", "(1,6)", "(1,6)", "0/0/0", "Reshape:name with spaces"),
    ("OutputOperator", "INT8", "CPU", "(1,16)", "\\", "0/0/0", "OutputOperator:y"),
)
REWRITES = """\
D fold_constant remove nodes = ['Shape.0', 'Slice.0']
D     convert_global_avgpool_to_conv: remove node = ['pool'], add node = ['pool_2conv0', 'pool_2conv1']
D     convert_layernorm_to_exnorm: remove node = ['norm'], add node = ['o_tp', 'norm#1', 'norm#1_rs']
D     fuse_two_reshape: remove node = ['norm#1_rs'], add node = ['norm#1_rs']
D     fuse_bn_into_conv: remove node = ['bn.0']
D     broken line: remove node = ['half
"""


def table(rows: tuple[tuple[str, ...], ...] = ROWS) -> str:
    """Rows as rknn-toolkit2 2.5.0 prints them."""
    lines = ["D RKNN: [23:48:58.983]           Network Layer Information Table          "]
    lines.append(
        "D RKNN: [23:48:58.983] ID   OpType   DataType Target InputShape   OutputShape ..."
    )
    for index, (op, dtype, unit, given, made, cycles, name) in enumerate(rows):
        lines.append(
            f"D RKNN: [23:48:58.983] {index:<4} {op:<18} {dtype:<8} {unit:<6} {given:<40} {made:<22} "
            f"{cycles:<24} 2            {name}     "
        )
    lines.append("D RKNN: [23:48:58.984]      Feature Tensor Information Table          ")
    lines.append("D RKNN: [23:48:58.984] 1   Conv   NPU (1,3)   (1,3)  1/1/1  5  Conv:not_a_layer")
    return "\n".join(lines) + "\n"


def test_layers_are_read_without_the_edges_of_the_graph() -> None:
    layers = parse(table()).layers
    assert [(x.name, x.op, x.unit, x.dtype, x.cycles) for x in layers] == [
        ("embed", "Gather", "CPU", "FLOAT16", 0),
        ("conv_1", "ConvRelu", "NPU", "INT8", 230),
        ("pool_2conv0", "Conv", "NPU", "INT8", 144),
        ("norm#1", "exNorm", "NPU", "FLOAT16", 0),
        ("name with spaces", "Reshape", "NPU", "INT8", 0),
    ]


def test_a_layer_that_the_toolkit_put_in_itself_may_have_no_name() -> None:
    own = ("Conv", "INT8", "NPU", "(1,3,8,8),(3,3,1,1),(3)", "(1,3,8,8)", "2/9/9", "")
    layers = parse(table((own, *ROWS[2:3]))).layers
    assert [(x.name, x.op, x.unit, x.cycles) for x in layers] == [
        ("", "Conv", "NPU", 9),
        ("conv_1", "ConvRelu", "NPU", 230),
    ]


def test_the_last_table_counts_where_a_build_prints_two() -> None:
    assert len(parse(table(ROWS[:2]) + table()).layers) == 5
    assert len(parse(table() + table(ROWS[:2])).layers) == 1


def test_nodes_are_found_through_the_compiler_s_rewrites() -> None:
    partition = parse(REWRITES + table())

    def layer(node: str, op: str) -> str:
        found = partition.find(node, op)
        return found.name if found else ""

    assert layer("embed", "Gather") == "embed"
    assert layer("pool", "GlobalAveragePool") == "pool_2conv0"
    assert layer("norm", "LayerNormalization") == "norm#1"
    assert layer("bn.0", "BatchNormalization") == ""
    assert layer("relu_1", "Relu") == ""
    assert partition.folded == {"Shape.0", "Slice.0"}


def test_a_log_without_a_table_has_no_layers() -> None:
    assert parse("I rknn building ...\nE RKNN: Not Support Dtype: 2\n").layers == ()


def test_the_column_that_rk3576_adds_does_not_hide_layers() -> None:
    sparse = table().replace("28/230/230  ", "28/230/230  0%  ")
    assert "0%" in sparse
    assert parse(sparse).layers == parse(table()).layers


def test_a_row_of_another_form_is_an_error_and_not_a_layer_less() -> None:
    odd = table().replace("28/230/230", "28 of 230")
    with pytest.raises(BackendError, match=r"unknown row: .*conv_1"):
        parse(odd)
