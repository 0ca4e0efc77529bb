"""A whole backend: ONNX's own reference evaluator, right everywhere and fast nowhere."""

import onnx.reference

from edgemp.backends.base import Artifact, BackendDefaults, NodePlacement, Placement, Probe
from edgemp.errors import BackendError, UnsupportedOpError


class ReferenceBackend(BackendDefaults):
    name = "reference"

    def probe(self):
        return Probe(True, engine="onnx", version=onnx.__version__, devices=("CPU",))

    def place(self, network, target):
        return Placement(tuple(map(verdict, load(network.model.read_bytes()).graph.node)))

    def compile(self, network, target, precision):
        placement = self.place(network, target)
        for node in placement.refused:
            raise UnsupportedOpError(f"reference refuses {node.op} ({node.node}): {node.reason}")
        made = (self.name, precision, {"model.onnx": network.model.read_bytes()})
        about = {"engine": "onnx", "version": onnx.__version__, "units": ("CPU",)}
        return Artifact(*made, network.inputs, network.outputs, placement=placement, **about)

    def open(self, artifact, target):
        return ReferenceSession(artifact, load(artifact.files.get("model.onnx", b"")))


class ReferenceSession:
    def __init__(self, artifact, model):
        self.artifact, self.engine = artifact, onnx.reference.ReferenceEvaluator(model)

    def run(self, inputs):
        if self.engine is None:
            raise BackendError("this session is closed")
        feeds = {spec.name: spec.check(inputs[spec.name], "run") for spec in self.artifact.inputs}
        return dict(zip(self.engine.output_names, self.engine.run(None, feeds), strict=True))

    def units(self):
        return ("CPU",)

    def profile(self):
        return self.artifact.placement

    def close(self):
        self.engine = None


def verdict(n):
    return NodePlacement(n.name, n.op_type, "" if n.domain else "CPU", reason=f"is of {n.domain}")


def load(content):
    try:
        onnx.checker.check_model(content)
        return onnx.load_from_string(content)
    except Exception as error:  # the checker's and protobuf's own classes
        raise BackendError(f"reference cannot load the network: {error}") from None
