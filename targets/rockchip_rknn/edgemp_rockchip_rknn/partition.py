"""Reads from rknn-toolkit2's build log which layer runs on the NPU and which falls back to the CPU."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from edgemp.errors import BackendError

_TABLE = "Network Layer Information Table"
_ROW = re.compile(
    r"^[A-Z] RKNN: \[[^\]]*\]\s+\d+\s+(?P<op>\S+)\s+(?P<dtype>\S+)\s+(?P<unit>NPU|CPU|GPU)\s+"
    r"\S+\s+\S+\s+(?P<ddr>\d+)/(?P<npu>\d+)/(?P<total>\d+)\s+([\d.]+%\s+)?\d+(\s+(?P<name>\S.*?))?\s*$"
)
_ANY_ROW = re.compile(r"^[A-Z] RKNN: \[[^\]]*\]\s+\d+\s+\S")
_REWRITE = re.compile(
    r"^D\s+(?P<rule>\w+): remove node = (?P<removed>\[.*?\])(, add node = (?P<added>\[.*?\]))?\s*$"
)
_FOLDED = re.compile(r"^D\s+fold_constant remove nodes = (?P<removed>\[.*?\])\s*$")
_EDGES = frozenset({"InputOperator", "OutputOperator"})


@dataclass(frozen=True)
class Layer:
    """One layer of the compiled network: its name without the compiler's suffixes, and where it runs.

    `cycles` is the compiler's own count for the NPU, 0 for what it does not count.
    """

    name: str
    op: str
    unit: str
    dtype: str
    cycles: int

    @property
    def base(self) -> str:
        """The name of the node that the layer was made from, as the compiler derives names."""
        return re.sub(r"(#\d+.*|_ConvAdd)$", "", self.name)


@dataclass(frozen=True)
class Partition:
    """The layers in order, and what the compiler's rewrites replaced by what (in order too)."""

    layers: tuple[Layer, ...]
    rewrites: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    folded: frozenset[str] = frozenset()

    def find(self, node: str, op: str) -> Layer | None:
        """The layer that computes an ONNX node, through all rewrites; None if another one absorbed it."""
        names, seen = [node], {node}
        reached: list[Layer] = []
        for name in names:
            reached += [x for x in self.layers if name in (x.name, x.base)]
            for removed, added in self.rewrites:
                if name in removed:
                    fresh = [item for item in added if item not in seen]
                    seen.update(fresh)
                    names += fresh
        # A rewrite adds reshapes and transposes around what does the work.
        alike = [x for x in reached if x.op == op or x.op.startswith(("ex", op))]
        return next(iter(alike or reached), None)


def parse(log: str) -> Partition:
    """The partition that a verbose build printed; without a table there are no layers.

    Raises:
        BackendError: for a row of another form: a layer that is not counted would hide a fallback.

    The table's columns are ID, OpType, DataType, Target, InputShape, OutputShape, Cycles(DDR/NPU/Total),
    for RK3576 SparseRatio (empty where nothing is counted), RW(KB) and FullName, which is "OpType:name".
    """
    layers: list[Layer] = []
    rewrites: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    folded: set[str] = set()
    inside = False
    for line in log.splitlines():
        if _TABLE in line:
            inside, layers = (
                True,
                [],
            )  # a build may print more than one; the last is what was written
        elif inside and (row := _ROW.match(line)):
            if row["op"] not in _EDGES:
                # A layer that the toolkit put in itself, a scaling convolution say, may have no name.
                name = (row["name"] or "").partition(":")[2].strip()
                cycles = int(row["total"])
                layers.append(Layer(name, row["op"], row["unit"], row["dtype"], cycles))
        elif inside and "Tensor Information Table" in line:
            inside = False
        elif inside and _ANY_ROW.match(line):
            raise BackendError(
                f"rknn-toolkit2's table of layers has an unknown row: {line.strip()}"
            )
        elif found := _REWRITE.match(line):
            rewrites.append((_names(found["removed"]), _names(found["added"] or "[]")))
        elif found := _FOLDED.match(line):
            folded.update(_names(found["removed"]))
    return Partition(tuple(layers), tuple(rewrites), frozenset(folded))


def _names(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(item) for item in ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return ()
