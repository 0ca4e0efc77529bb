"""The kernels that an engine makes of a graph: which nodes it runs as one, and the bytes that each moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgemp.estimate.graph import Graph, Node, Tensor
from edgemp.estimate.operators import MATRIX_OPS, VIEWS, Matrix, Work, work_of

ELEMENTWISE = frozenset({"simple", "division", "sigmoid", "tanh", "erf"})
SELECTING = frozenset({"Gather", "GatherElements", "GatherND", "Slice", "Split"})
"""They read what they write, not the whole of their input."""


@dataclass(frozen=True)
class Widths:
    """Bytes per element: weights of products, tensors that feed products, and all other floats."""

    weight: int = 4
    product: int = 4
    other: int = 4


@dataclass(frozen=True)
class Fusion:
    """What an engine runs as one kernel.

    `after_conv` and `after_product` are the operators that join the convolution or product before
    them; with `chains` any elementwise operators in a row are one kernel.
    """

    after_conv: frozenset[str]
    after_product: frozenset[str]
    chains: bool


_ALL = frozenset({"*"})
GENERAL = Fusion(_ALL, _ALL, chains=True)
"""TensorRT's pointwise fusion, OpenVINO's post-operations and snippets, and NPU compilers alike."""

ONNXRUNTIME = Fusion(
    frozenset(
        {"BatchNormalization", "Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "Add"}
    ),
    frozenset({"Add", "Relu", "BatchNormalization"}),
    chains=False,
)
"""https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html"""

FUSIONS = {"onnxruntime": ONNXRUNTIME}


@dataclass(frozen=True)
class Kernel:
    """One kernel: its nodes, what they compute and the bytes they move.

    `vector` maps a class of vector operations to their number. `known` is False where shapes or the
    operator are not known, so that the work is not either.
    """

    name: str
    op: str
    matrices: tuple[Matrix, ...]
    vector: Mapping[str, float]
    read: float
    written: float
    weights: float
    known: bool = True

    @property
    def operations(self) -> float:
        return sum(m.operations for m in self.matrices) + sum(self.vector.values())

    @property
    def bytes_moved(self) -> float:
        return self.read + self.written + self.weights


@dataclass
class _Open:
    """A kernel that later nodes may still join."""

    nodes: list[Node]
    works: list[Work | None]
    makes: set[str] = field(default_factory=set)

    @property
    def head(self) -> Node:
        return self.nodes[0]


def kernels_of(graph: Graph, fusion: Fusion, widths: Widths) -> tuple[Kernel, ...]:
    """The graph's kernels in their order."""
    names = _names(graph.nodes)
    norms = _norms(graph.nodes, names)
    opened: list[_Open] = []
    made_by: dict[str, int] = {}
    for node in graph.nodes:
        if node.op in VIEWS:
            continue
        work = work_of(node)
        index = norms.get(node.name)
        if index is not None:
            place = next((i for i, k in enumerate(opened) if norms.get(k.head.name) == index), None)
            whole = Work(vector=8.0 * _largest(node), vector_class="norm")
            work = Work() if place is not None else whole
        else:
            place = _joins(node, work, opened, made_by, names, fusion)
        if place is None:
            opened.append(_Open([node], [work]))
            place = len(opened) - 1
        else:
            opened[place].nodes.append(node)
            opened[place].works.append(work)
        for out in node.outputs:
            opened[place].makes.add(out.name)
            made_by[out.name] = place
    return tuple(_closed(kernel, graph, names, widths) for kernel in opened)


def _largest(node: Node) -> int:
    return max(t.elements for t in (*node.inputs, *node.outputs) if t is not None)


def _names(nodes: Sequence[Node]) -> dict[str, str]:
    """What a view shows: the tensor that was computed, by the view's output."""
    names: dict[str, str] = {}
    for node in nodes:
        first = node.input(0)
        if node.op in VIEWS and first is not None:
            for out in node.outputs:
                names[out.name] = names.get(first.name, first.name)
    return names


def _joins(
    node: Node,
    work: Work | None,
    opened: Sequence[_Open],
    made_by: Mapping[str, int],
    names: Mapping[str, str],
    fusion: Fusion,
) -> int | None:
    """The kernel that a node joins: its latest input's, so that no kernel waits for itself."""
    if work is None or work.matrices or work.vector_class not in ELEMENTWISE:
        return None
    sources = [names.get(t.name, t.name) for t in node.inputs if t is not None and not t.constant]
    places = [made_by[name] for name in sources if name in made_by]
    if not places:
        return None
    place = max(places)
    kernel = opened[place]
    result = kernel.nodes[-1].outputs[0]
    if result.elements != node.outputs[0].elements or kernel.works[-1] is None:
        return None
    head = kernel.head.op
    if head in MATRIX_OPS:
        joining = fusion.after_conv if "Conv" in head else fusion.after_product
        allowed = joining == _ALL or node.op in joining
        return place if allowed else None
    first = kernel.works[0]
    if first is None or first.vector_class not in ELEMENTWISE:
        return None
    ops = [member.op for member in kernel.nodes]
    # Gelu and SiLU in their parts; every engine here knows them.
    gelu = node.op == "Erf" or "Erf" in ops or (node.op == "Mul" and ops[-1] == "Sigmoid")
    return place if fusion.chains or gelu else None


def _norms(nodes: Sequence[Node], names: Mapping[str, str]) -> dict[str, int]:
    """Nodes of layer normalisations written out in parts (mean, difference, variance, quotient)."""
    users: dict[str, list[Node]] = {}
    for node in nodes:
        for tensor in node.inputs:
            if tensor is not None and node.op not in VIEWS:
                users.setdefault(names.get(tensor.name, tensor.name), []).append(node)

    def then(node: Node, *ops: str) -> Node | None:
        return next((n for n in users.get(node.outputs[0].name, []) if n.op in ops), None)

    found: dict[str, int] = {}
    for index, node in enumerate(nodes):
        if node.op != "ReduceMean" or node.name in found:
            continue
        chain: list[Node] = [node]
        for ops in (("Sub",), ("Pow", "Mul"), ("ReduceMean",), ("Add",), ("Sqrt",), ("Div",)):
            after = then(chain[-1], *ops)
            if after is None:
                break
            chain.append(after)
        else:
            for ops in (("Mul",), ("Add",)):
                after = then(chain[-1], *ops)
                if after is None or not any(t is not None and t.constant for t in after.inputs):
                    break
                chain.append(after)
            found.update({member.name: index for member in chain})
    return found


def _closed(kernel: _Open, graph: Graph, names: Mapping[str, str], widths: Widths) -> Kernel:
    feeds_product, outside = _uses(graph, names, kernel)

    def size(tensor: Tensor, elements: int | None = None) -> float:
        count = tensor.elements if elements is None else elements
        if not tensor.floating:
            return float(count * tensor.itemsize)
        name = names.get(tensor.name, tensor.name)
        return float(count * (widths.product if name in feeds_product else widths.other))

    read = written = weights = 0.0
    seen: set[str] = set()
    for node, work in zip(kernel.nodes, kernel.works, strict=True):
        product = work is not None and bool(work.matrices)
        for tensor in node.inputs:
            if tensor is None:
                continue
            name = names.get(tensor.name, tensor.name)
            if name in kernel.makes or name in seen:
                continue
            seen.add(name)
            taken = min(tensor.elements, node.outputs[0].elements)
            if node.op in SELECTING:
                read += size(tensor, taken)
            elif tensor.constant:
                weights += tensor.elements * (widths.weight if product else 4)
            else:
                read += size(tensor)
        written += sum(size(out) for out in node.outputs if out.name in outside)
    vector: dict[str, float] = {}
    for node, work in zip(kernel.nodes, kernel.works, strict=True):
        folded = node.op == "BatchNormalization" and len(kernel.nodes) > 1
        if work is not None and work.vector and not folded:
            vector[work.vector_class] = vector.get(work.vector_class, 0.0) + work.vector
    ops = list(dict.fromkeys(node.op for node in kernel.nodes))
    return Kernel(
        kernel.head.name,
        "+".join(ops[:3]) + ("+…" if len(ops) > 3 else ""),
        tuple(m for work in kernel.works if work is not None for m in work.matrices),
        vector,
        read,
        written,
        weights,
        known=all(work is not None for work in kernel.works),
    )


def _uses(
    graph: Graph, names: Mapping[str, str], kernel: _Open
) -> tuple[frozenset[str], frozenset[str]]:
    """Tensors that feed products with weights, and those of the kernel that are used outside of it."""
    inside = {id(node) for node in kernel.nodes}
    feeds, outside = set(), {names.get(name, name) for name in graph.outputs}
    for node in graph.nodes:
        if node.op in VIEWS:
            continue
        second = node.input(1)
        weighted = node.op in MATRIX_OPS and second is not None and second.constant
        for tensor in node.inputs:
            if tensor is None:
                continue
            name = names.get(tensor.name, tensor.name)
            if weighted:
                feeds.add(name)
            if id(node) not in inside:
                outside.add(name)
    return frozenset(feeds), frozenset(outside)
