"""Builds a package's network with MagicMind on a machine that has it: `python build.py [--check]`.

A build package carries this very file, and `edgemp finish` calls it; it needs numpy and magicmind only.
Not run on an MLU: the calls are those of Cambricon's public magicmind_cloud samples.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

FLOORS = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.98}
"""Smallest cosine with the goldens that holds, by precision."""


class BuildError(Exception):
    """A step that MagicMind refused, or a package that is not whole."""


def expect(status, step):
    """MagicMind answers most calls with a status object."""
    if status is not None and hasattr(status, "ok") and not status.ok():
        raise BuildError(f"MagicMind refuses {step}: {status}")


def check_hashes(folder):
    """Compare every file with SHA256SUMS."""
    listed = {}
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    for name, digest in listed.items():
        path = folder / name
        if not path.is_file():
            raise BuildError(f"{name} is missing from the package")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise BuildError(f"{name} is damaged: its SHA-256 is not the one in SHA256SUMS")


def build(folder, output):
    """Parse network.onnx, configure with build_config.json, build and write the model to `output`."""
    import magicmind.python.runtime as mm
    from magicmind.python.runtime.parser import Parser

    io = json.loads((folder / "io.json").read_text())
    network = mm.Network()
    parser = Parser(mm.ModelKind.kOnnx)
    expect(parser.parse(network, str(folder / "network.onnx")), "to parse network.onnx")
    for i, item in enumerate(io["inputs"]):
        status = network.get_input(i).set_dimension(mm.Dims(tuple(item["shape"])))
        expect(status, f"shape {item['shape']} of input {item['name']}")
    config = mm.BuilderConfig()
    expect(config.parse_from_file(str(folder / "build_config.json")), "build_config.json")
    model = mm.Builder().build_model(io["name"], network, config)
    if model is None:
        raise BuildError("MagicMind builds no model; its log names the operator")
    expect(model.serialize_to_file(str(output)), f"to write {output.name}")


class Session:
    """A built model on one MLU; `run` takes and gives arrays by name."""

    def __init__(self, path, io, device=0):
        import magicmind.python.runtime as mm

        self.io = io
        self.model = mm.Model()
        expect(self.model.deserialize_from_file(str(path)), f"to load {path.name}")
        self.system = mm.System()
        self.system.__enter__()
        try:
            if device >= self.system.device_count():
                raise BuildError(f"there is no MLU {device}; cnmon lists the cards")
            self.device = mm.Device()
            self.device.id = device
            expect(self.device.active(), f"to activate MLU {device}")
            config = mm.Model.EngineConfig()
            config.device_type = "MLU"
            self.engine = made(self.model.create_i_engine(config), "engine")
            self.context = made(self.engine.create_i_context(), "context")
            self.queue = made(self.device.create_queue(), "queue")
            self.inputs = made(self.context.create_inputs(), "input tensors")
        except BaseException:
            self.close()
            raise
        self.order = in_order(self.model.get_input_names(), io["inputs"])
        self.results = in_order(self.model.get_output_names(), io["outputs"])

    def run(self, feeds):
        # No strict zip: MagicMind's images carry Pythons older than 3.10.
        for tensor, item in zip(self.inputs, self.order):  # noqa: B905
            expect(tensor.from_numpy(narrow(feeds[item["name"]])), f"input {item['name']}")
            expect(tensor.to(self.device), f"to copy input {item['name']} to the card")
        outputs = []
        expect(self.context.enqueue(self.inputs, outputs, self.queue), "to enqueue")
        expect(self.queue.sync(), "to wait for the queue")
        if len(outputs) != len(self.results):
            raise BuildError(
                f"MagicMind gives {len(outputs)} outputs, {len(self.results)} expected"
            )
        return {
            item["name"]: np.array(tensor.asnumpy(), dtype=item["dtype"])
            for tensor, item in zip(outputs, self.results)  # noqa: B905
        }

    def close(self):
        for name in ("inputs", "queue", "context", "engine", "device", "model"):
            self.__dict__.pop(name, None)
        system = self.__dict__.pop("system", None)
        if system is not None:
            system.__exit__(None, None, None)


def made(value, what):
    if value is None:
        raise BuildError(f"MagicMind creates no {what}")
    return value


def in_order(names, items):
    """The items in MagicMind's order, by name where it kept the names, else as they come."""
    by_name = {item["name"]: item for item in items}
    return [by_name[name] for name in names] if set(names) == set(by_name) else list(items)


def narrow(array):
    """64-bit integers as the 32-bit ones that `type64to32_conversion` makes of them."""
    if array.dtype == np.int64:
        if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
            raise BuildError(
                "an input exceeds 32 bits, which is all that MagicMind keeps of integers"
            )
        array = array.astype(np.int32)
    return np.ascontiguousarray(array)


def check(folder, path):
    """Run the golden inputs and return the smallest cosine with the expected outputs."""
    io = json.loads((folder / "io.json").read_text())
    session = Session(path, io)
    cosines = []
    for i in range(io["goldens"]):
        golden = folder / "goldens" / str(i)
        feeds = {
            item["name"]: np.load(golden / f"input_{j}.npy") for j, item in enumerate(io["inputs"])
        }
        found = session.run(feeds)
        for j, item in enumerate(io["outputs"]):
            a = np.load(golden / f"output_{j}.npy").astype(np.float64).ravel()
            b = found[item["name"]].astype(np.float64).ravel()
            norm = float(np.linalg.norm(a) * np.linalg.norm(b))
            cosines.append(float(a @ b) / norm if norm else float(not a.any() and not b.any()))
    session.close()
    return min(cosines)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--output", default="model.mm", help="where the model goes")
    options.add_argument("--check", action="store_true", help="then run the goldens on the card")
    options.add_argument(
        "--cosine", type=float, help="smallest that holds; by precision if left out"
    )
    asked = options.parse_args()
    folder = Path(__file__).resolve().parent
    output = Path(asked.output)
    try:
        check_hashes(folder)
        build(folder, output)
        print(f"built {output}: {output.stat().st_size} bytes")
        if asked.check:
            cosine = check(folder, output)
            precision = json.loads((folder / "io.json").read_text())["precision"]
            floor = FLOORS[precision] if asked.cosine is None else asked.cosine
            print(f"smallest cosine with the goldens: {cosine:.6f}, must be at least {floor:g}")
            return 0 if cosine >= floor else 1
    except (BuildError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
