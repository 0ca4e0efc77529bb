"""What a description promises: one schema for Python and YAML, refusals that name the field."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

import edgemp
from edgemp.errors import PipelineError
from edgemp.pipeline import (
    FidelityBound,
    Function,
    GateSpec,
    Module,
    Pipeline,
    Preprocess,
    Signal,
    is_path,
)

YAML = """
name: reader
signals:
  frame: {modality: video, rate_hz: 25}
  hint: {modality: text, optional: true}
modules:
  detect:
    network: nets/detect.onnx
    inputs: {image: frame}
    preprocess: {image: {size: [480, 640], color: rgb, std: [0.5, 0.5, 0.5]}}
    gate: {kind: motion, threshold: 3.5}
    fidelity: {cosine_min: 0.98}
  read:
    network: some.package:make_reader
    inputs: {crop: boxes.crops}
    per_item: true
functions:
  boxes:
    function: app.steps:boxes
    inputs: {heat: detect, frame: frame}
    outputs: [crops, corners]
    assets: {names: names.txt}
    options: {limit: 8}
results: {text: read, corners: boxes.corners}
samples: app.steps:samples
"""


def described() -> dict[str, Any]:
    import yaml

    data: dict[str, Any] = yaml.safe_load(YAML)
    return data


def problem(change: Any) -> str:
    """The message for the description after `change(data)`."""
    data = copy.deepcopy(described())
    change(data)
    with pytest.raises(PipelineError) as caught:
        Pipeline.from_mapping(data, where="here.yaml")
    return str(caught.value)


def test_yaml_and_python_describe_the_same_pipeline(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(YAML)
    built = Pipeline(
        name="reader",
        signals={
            "frame": Signal(modality="video", dtype="uint8", shape=(None, None, 3), rate_hz=25),
            "hint": Signal(modality="text", optional=True),
        },
        modules={
            "detect": Module(
                network=str(tmp_path / "nets/detect.onnx"),
                inputs={"image": "frame"},
                preprocess={"image": Preprocess(size=(480, 640), color="rgb", std=(0.5, 0.5, 0.5))},
                gate=GateSpec(kind="motion", threshold=3.5),  # type: ignore[call-arg]
                fidelity=FidelityBound(cosine_min=0.98),
            ),
            "read": Module(
                network="some.package:make_reader", inputs={"crop": "boxes.crops"}, per_item=True
            ),
        },
        functions={
            "boxes": Function(
                function="app.steps:boxes",
                inputs={"heat": "detect", "frame": "frame"},
                outputs=("crops", "corners"),
                assets={"names": str(tmp_path / "names.txt")},
                options={"limit": 8},
            )
        },
        results={"text": "read", "corners": "boxes.corners"},
        samples="app.steps:samples",
    )
    assert Pipeline.from_yaml(tmp_path / "p.yaml") == built
    assert built.modules["detect"].gate is not None
    assert built.modules["detect"].gate.options == {"threshold": 3.5}


def test_relative_paths_are_taken_from_the_descriptions_own_folder(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "p.yaml").write_text(YAML.replace("app.steps:samples", "data/steps.npz"))
    found = Pipeline.from_yaml(folder / "p.yaml")
    assert found.modules["detect"].network == str(folder / "nets/detect.onnx")
    assert found.functions["boxes"].assets["names"] == str(folder / "names.txt")
    assert found.samples == str(folder / "data/steps.npz")
    assert found.modules["read"].network == "some.package:make_reader"


def test_the_published_schema_accepts_the_description_and_refuses_a_misspelt_field() -> None:
    schema = Pipeline.model_json_schema()
    jsonschema.validate(described(), schema)
    wrong = described()
    wrong["modules"]["detect"]["fidelty"] = {}
    with pytest.raises(jsonschema.ValidationError, match="fidelty"):
        jsonschema.validate(wrong, schema)


def test_execution_order_puts_every_node_after_what_it_reads() -> None:
    assert Pipeline.from_mapping(described()).order() == ["detect", "boxes", "read"]


def test_a_cycle_is_refused_and_names_its_nodes() -> None:
    def close_the_loop(data: dict[str, Any]) -> None:
        data["modules"]["detect"]["inputs"]["image"] = "boxes.crops"
        del data["modules"]["detect"]["preprocess"]

    text = problem(close_the_loop)
    assert "cycle" in text
    assert "boxes, detect" in text


def test_a_module_that_reads_itself_is_a_cycle() -> None:
    text = problem(lambda data: data["modules"]["read"]["inputs"].update(crop="read"))
    assert "cycle through: read" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda d: d["modules"]["read"]["inputs"].update(crop="boxs.crops"),
            ["read", "'boxs.crops'", "known: frame, hint, detect, read, boxes"],
        ),
        (
            lambda d: d["results"].update(text="boxes.words"),
            ["results", "'boxes.words'", "crops, corners"],
        ),
        (
            lambda d: d["modules"]["detect"]["preprocess"].update(picture={}),
            ["detect", "'picture' is not one of its inputs (image)"],
        ),
        (
            lambda d: d["modules"]["detect"]["gate"].update(signal="sound"),
            ["gate watches 'sound', which is not a signal"],
        ),
        (lambda d: d["signals"].update(detect={}), ["more than one thing: detect"]),
        (
            lambda d: d["functions"]["boxes"].update(outputs=["crops", "crops", "corners"]),
            ["boxes: an output is named twice"],
        ),
        (lambda d: d.update(colour="red"), ["colour", "Extra inputs"]),
        (lambda d: d.pop("results"), ["results: Field required"]),
        (lambda d: d.update(version=2), ["version"]),
        (lambda d: d.update(name="no spaces"), ["name"]),
        (
            lambda d: d["modules"]["detect"]["fidelity"].update(cosine_min=1.5),
            ["modules.detect.fidelity.cosine_min"],
        ),
        (
            lambda d: d["modules"]["detect"]["fidelity"].update(metric="a:b"),
            ["metric and metric_min go together"],
        ),
        (
            lambda d: d["modules"]["detect"]["preprocess"]["image"].update(std=[1, 0, 1]),
            ["std must not contain 0"],
        ),
        (lambda d: d["signals"]["frame"].update(rate_hz=float("inf")), ["signals.frame.rate_hz"]),
    ],
)
def test_an_invalid_description_is_refused_and_names_the_field(
    change: Any, expected: list[str]
) -> None:
    text = problem(change)
    assert text.startswith("here.yaml: invalid pipeline:")
    for part in expected:
        assert part in text


def test_every_invalid_field_is_listed_at_once() -> None:
    def break_two(data: dict[str, Any]) -> None:
        data["signals"]["frame"]["modality"] = "smell"
        data["modules"]["read"]["per_item"] = "perhaps"

    text = problem(break_two)
    assert "signals.frame.modality" in text
    assert "modules.read.per_item" in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"- a\n- b\n", "expected a mapping"),
        (b"name: [unclosed", "not valid YAML"),
        (b"\xff\xfe\x00bad", "cannot be read"),
        (b"", "expected a mapping"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_description_is_refused(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=expected) as caught:
        Pipeline.from_yaml(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="cannot be read"):
        Pipeline.from_yaml(tmp_path / "absent.yaml")


def test_a_description_cannot_be_changed_after_it_was_checked() -> None:
    pipeline = Pipeline.from_mapping(described())
    with pytest.raises(ValidationError):
        pipeline.name = "other"


def test_a_video_signal_is_a_colour_frame_of_any_size_unless_said_otherwise() -> None:
    assert Signal(modality="video").shape == (None, None, 3)
    assert Signal(modality="video").dtype == "uint8"
    assert Signal.model_validate({"modality": "video", "shape": [4, 4, 1]}).shape == (4, 4, 1)
    assert Signal().shape is None


def test_paths_and_import_references_are_told_apart() -> None:
    assert is_path("nets/a.onnx")
    assert is_path("/abs/a.onnx")
    assert is_path("./a:b.onnx")
    assert not is_path("package:nets/a.onnx")
    assert not is_path("my.module:factory")


def test_the_public_api_is_what_all_says() -> None:
    for name in edgemp.__all__:
        assert getattr(edgemp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'compil'"):
        _ = edgemp.compil
