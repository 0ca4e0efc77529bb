"""The run-time half of the stand-in: networks, configurations, models, devices."""

import json
import os

import numpy as np

import magicmind

HEADER = b"STAND-IN, NOT A MAGICMIND MODEL\n"


class Status:
    def __init__(self, name):
        self.name = name

    def ok(self):
        return self.name not in magicmind.FAILING

    def __str__(self):
        return f"stand-in status of {self.name}"


def called(name, *arguments):
    magicmind.CALLS.append((name, *arguments))
    return Status(name)


def created(name, value, *arguments):
    called(name, *arguments)
    return None if name in magicmind.FAILING else value


class ModelKind:
    kOnnx = "kOnnx"  # noqa: N815 (the vendor's name)


class Dims:
    def __init__(self, dims):
        self.dims = tuple(dims)


class Tensor:
    def __init__(self, index):
        self.index = index

    def set_dimension(self, dims):
        return called("set_dimension", self.index, dims.dims)


class Network:
    def __init__(self):
        called("Network")
        self.onnx = b""

    def get_input(self, index):
        return Tensor(index)


class BuilderConfig:
    def __init__(self):
        called("BuilderConfig")
        self.json = {}

    def parse_from_file(self, path):
        with open(path) as stream:
            self.json = json.load(stream)
        return called("parse_from_file", os.path.basename(path))


class Builder:
    def __init__(self):
        called("Builder")

    def build_model(self, name, network, config):
        return created("build_model", Model(network.onnx), name, config.json["precision_config"])


class Engine:
    def create_i_context(self):
        return created("create_i_context", self)

    def create_inputs(self):
        return created("create_inputs", [Value() for _ in self.session.get_inputs()])

    def enqueue(self, inputs, outputs, queue):
        feeds = {}
        for item, value in zip(self.session.get_inputs(), inputs, strict=True):
            wide = item.type == "tensor(int64)"
            feeds[item.name] = value.array.astype(np.int64) if wide else value.array
        for array in self.session.run(None, feeds):
            outputs.append(Value(array))
        return called("enqueue")


class Value:
    def __init__(self, array=None):
        self.array = array

    def from_numpy(self, array):
        self.array = array.copy()
        return called("from_numpy", str(array.dtype), array.shape)

    def to(self, device):
        return called("to", device.id)

    def asnumpy(self):
        called("asnumpy")
        return self.array


class Model:
    class EngineConfig:
        device_type = ""

    def __init__(self, onnx=b""):
        self.onnx = onnx
        if not onnx:
            called("Model")

    def serialize_to_file(self, path):
        with open(path, "wb") as stream:
            stream.write(HEADER + self.onnx)
        return called("serialize_to_file", os.path.basename(path))

    def deserialize_from_file(self, path):
        with open(path, "rb") as stream:
            content = stream.read()
        if not content.startswith(HEADER):
            magicmind.FAILING.add("deserialize_from_file")
        self.onnx = content[len(HEADER) :]
        return called("deserialize_from_file", os.path.basename(path))

    def create_i_engine(self, config):
        import onnxruntime

        engine = Engine()
        engine.session = onnxruntime.InferenceSession(self.onnx)
        return created("create_i_engine", engine, config.device_type)

    def get_input_names(self):
        import onnxruntime

        return [item.name for item in onnxruntime.InferenceSession(self.onnx).get_inputs()]

    def get_output_names(self):
        import onnxruntime

        return [item.name for item in onnxruntime.InferenceSession(self.onnx).get_outputs()]


class System:
    def __enter__(self):
        called("System.enter")
        return self

    def __exit__(self, *_):
        called("System.exit")

    def device_count(self):
        return int(os.environ.get("MAGICMIND_STANDIN_DEVICES", "1"))


class Queue:
    def sync(self):
        return called("sync")


class Device:
    id = -1

    def active(self):
        return called("active", self.id)

    def create_queue(self):
        return created("create_queue", Queue())
