"""What students promise: every route makes a network to compile, resumes when killed, and says why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import edgemp
from edgemp.compiler.cache import StageCache
from edgemp.compiler.compile import ingest_all
from edgemp.compiler.outcome import Options
from edgemp.compiler.progress import Silent
from edgemp.compiler.steps import pipeline_steps
from edgemp.compiler.student_line import Student
from edgemp.compiler.students import MINUTES, Asked, planned, students
from edgemp.compress.distill import blockwise, train
from edgemp.errors import BudgetError, CompressError, SamplesError
from edgemp.pipeline import Compression, Pipeline
from tests import networks
from tests.compiler import speller
from tests.conftest import Given

ALL = [
    "int8",
    "int8-blocks",
    "int8-joint",
    "mixed",
    "mixed-blocks",
    "mixed-joint",
    "depth-50%",
    "depth-50%-int8",
    "depth-50%-int8-joint",
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training of a fixed, small number of steps, whatever the machine is busy with."""
    monkeypatch.setattr(train._Run, "steps_in_time", lambda self: 12)
    monkeypatch.setattr(blockwise.Work, "steps_in", lambda self, seconds: 4)


class Loud(Silent):
    """Remembers what it is told; raises at the first note that contains `stop`."""

    def __init__(self, stop: str = "") -> None:
        self.notes: list[str] = []
        self.stop = stop

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self.stop and self.stop in text:
            raise KeyboardInterrupt


def made(
    pipeline: Pipeline,
    asked: Asked,
    cache: StageCache,
    progress: Any = None,
    room: float | None = None,
) -> dict[str, list[Student]]:
    progress = progress or Silent()
    steps = pipeline_steps(pipeline, None)
    with cache.in_use():
        originals, networks, _, _ = ingest_all(pipeline, steps, Options(), cache, progress)
        plan = planned(originals, networks, asked, 0, progress, [])
        return students(plan, room, cache, progress, [])


def cosines(student: Student) -> list[float]:
    """Of the exported network's outputs with the original's, held-out samples."""
    session = onnxruntime.InferenceSession(str(student.network.model))
    found = []
    for feed, expected in zip(
        student.network.samples.held_out, student.network.reference, strict=True
    ):
        (a,), (b,) = session.run(None, dict(feed)), expected.values()
        found.append(float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)))
    return found


@pytest.mark.usefixtures("few_steps")
def test_every_route_makes_a_network_that_answers_like_the_original(stage_cache: Path) -> None:
    cache = StageCache(stage_cache)
    found = made(speller.pipeline(), Asked(1.0), cache)["encoder"]
    assert [s.name for s in found] == ALL
    assert [s.name for s in found if s.twin is None] == ["depth-50%"]
    by_name = {s.name: s for s in found}
    assert by_name["depth-50%-int8"].twin == by_name["depth-50%"].network
    assert min(cosines(by_name["int8"])) > 0.998
    assert min(cosines(by_name["int8-joint"])) > 0.998
    assert min(cosines(by_name["depth-50%"])) > 0.8
    sizes = {name: s.network.model.stat().st_size for name, s in by_name.items()}
    assert sizes["int8"] < sizes["depth-50%"]
    assert by_name["int8-joint"].network.transforms == (
        "quantize_levelled",
        "int8_embeddings",
        "blockwise_0.182_min",
        "quantized_distilled_0.0909_min",
    )
    assert not list((stage_cache / "training").glob("*"))
    again = StageCache(stage_cache)
    assert [s.network.digest for s in made(speller.pipeline(), Asked(1.0), again)["encoder"]] == [
        s.network.digest for s in found
    ]
    assert again.use["student"].computed == 0


@pytest.mark.usefixtures("few_steps")
def test_a_killed_search_goes_on_and_ends_with_the_same_students(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = speller.pipeline(depths=())
    whole = made(pipeline, Asked(1.0), StageCache(tmp_path / "whole"))["encoder"]
    cache = StageCache(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        made(pipeline, Asked(1.0), cache, Loud("int8-blocks: blocks.1"))
    (folder,) = (tmp_path / "killed" / "training").iterdir()
    assert (folder / "checkpoint.pt").exists()
    told = Loud()
    found = made(pipeline, Asked(1.0), cache, told)["encoder"]
    assert any("int8-blocks: blocks.2" in note for note in told.notes)
    assert not any("int8-blocks: blocks.1" in note for note in told.notes), "went on, not over"
    assert [s.network.digest for s in found] == [s.network.digest for s in whole]


def test_without_training_data_only_what_needs_none_is_made(stage_cache: Path) -> None:
    told = Loud()
    found = made(speller.pipeline(data=None), Asked(), StageCache(stage_cache), told)
    assert [s.name for s in found["encoder"]] == ["int8", "mixed"]
    assert any("no training data" in note for note in told.notes)


def test_for_another_machine_a_quantized_student_is_rated_as_int8(
    stage_cache: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"backends": ["onnxruntime"], "cache": stage_cache, "minutes": 0}
    pipeline = speller.pipeline(data=None)
    compiled = edgemp.compile(pipeline, tmp_path / "m.edgemp", target="rpi5", **given)
    rated = {
        (t.candidate.student, t.candidate.precision): t.estimate.latency_ms
        for t in compiled.trials["encoder"]
        if t.estimate is not None
    }
    assert rated["int8", "fp32"] == rated["", "int8"] < rated["", "fp32"]


@pytest.mark.usefixtures("few_steps")
def test_labels_train_a_network_without_blocks_jointly(stage_cache: Path) -> None:
    told = Loud()
    pipeline = speller.pipeline(
        network="straight",
        data="tests.compiler.speller:labelled",
        loss=[{"term": "cosine"}, {"term": "labels", "weight": 0.1}],
    )
    found = made(pipeline, Asked(1.0), StageCache(stage_cache), told)["encoder"]
    assert [s.name for s in found] == ["int8", "int8-joint"]
    # Either of its layers has more than a mixed student's part of the multiplications.
    assert any("no student mixed: no layers with at most 15%" in note for note in told.notes)
    # Half of the minute: what blocks could not use is left to the others.
    assert found[1].network.transforms == (
        "quantize_levelled",
        "int8_embeddings",
        "quantized_distilled_0.5_min",
    )
    assert any("no chain of blocks: no student that needs one" in note for note in told.notes)


@pytest.mark.usefixtures("few_steps")
def test_frozen_modules_train_and_layers_that_never_run_stay_as_they_are(stage_cache: Path) -> None:
    pipeline = speller.pipeline(network="partial", output="encoder.embedding", depths=())
    found = made(pipeline, Asked(1.0), StageCache(stage_cache))["encoder"]
    assert [s.name for s in found][:3] == ["int8", "int8-blocks", "int8-joint"]
    import torch

    first, last = (
        torch.load(s.network.model.with_name("student.pt"), weights_only=False) for s in found[:3:2]
    )
    moved = {
        name
        for name, value in last.state_dict().items()
        if not torch.equal(value, first.state_dict()[name])
    }
    # Blocks that training made worse are left; of the others also the frozen weights moved.
    assert any(name.endswith(".layer.weight") for name in moved)
    assert not any("unused" in name or "words" in name for name in moved)


def test_a_module_whose_first_axis_is_no_batch_axis_has_no_students(stage_cache: Path) -> None:
    told = Loud()
    pipeline = speller.pipeline(network="glued")
    assert made(pipeline, Asked(1.0), StageCache(stage_cache), told) == {}
    assert any("no students: output 'output' of two samples together" in n for n in told.notes)


def test_minutes_without_training_data_are_refused(stage_cache: Path) -> None:
    with pytest.raises(CompressError, match=r"no module has training data.*--data MODULE"):
        made(speller.pipeline(data=None), Asked(5.0), StageCache(stage_cache))


@pytest.mark.parametrize(
    ("compress", "message"),
    [
        ({"data": "tests.compiler.speller:too_few"}, "gave 1 training samples"),
        (
            {"data": "tests.compiler.speller:broken"},
            "sample 7: cannot be read: OSError: the disk is gone",
        ),
        (
            {"data": "tests.compiler.speller:leaked"},
            "sample 1[0-9]: is one of the held-out samples",
        ),
        ({"data": "tests.compiler.speller:absent"}, "absent"),
        ({"loss": [{"term": "cosinus"}]}, "cosinus"),
        ({"loss": [{"term": "features", "student": "blocks.9"}]}, "blocks.9"),
    ],
)
def test_bad_data_and_terms_say_what_where_and_what_to_do(
    compress: dict[str, Any], message: str, stage_cache: Path
) -> None:
    with pytest.raises(edgemp.errors.EdgempError, match=message):
        made(speller.pipeline(**compress), Asked(0.01), StageCache(stage_cache))


def test_data_for_a_module_that_is_not_there_is_refused(stage_cache: Path) -> None:
    with pytest.raises(CompressError, match="there is no module 'decoder'; modules: encoder"):
        made(speller.pipeline(), Asked(0.1, {"decoder": "x.npz"}), StageCache(stage_cache))


def test_a_file_of_training_samples_that_is_not_there_is_named(stage_cache: Path) -> None:
    with pytest.raises(edgemp.errors.EdgempError, match=r"no file .*x\.npz"):
        made(speller.pipeline(), Asked(0.1, {"encoder": "./x.npz"}), StageCache(stage_cache))


def test_samples_without_an_input_are_named(stage_cache: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", words=np.zeros((4, 12), np.int64))
    asked = Asked(0.1, {"encoder": str(tmp_path / "other.npz")})
    with pytest.raises((CompressError, SamplesError), match=r"sample 0: has \['words'\]"):
        made(speller.pipeline(), asked, StageCache(stage_cache))


def onnx_students(
    model: Path, samples: Path, asked: Asked, cache: StageCache
) -> tuple[list[Student], list[str]]:
    """The students of an ONNX file, and what was said."""
    from edgemp.compiler.single import single_network

    pipeline, told = single_network(str(model), samples), Loud()
    with cache.in_use():
        steps = pipeline_steps(pipeline, samples)
        originals, networks, _, _ = ingest_all(pipeline, steps, Options(), cache, told)
        plan = planned(originals, networks, asked, 0, told, [])
        found = students(plan, None, cache, told, [])
    return found.get("network", []), told.notes


def test_an_onnx_file_without_training_data_has_no_students(conv: Given, stage_cache: Path) -> None:
    found, notes = onnx_students(conv.model, conv.samples, Asked(), StageCache(stage_cache))
    assert not found
    assert any("without training data (--data network=...)" in note for note in notes)


@pytest.mark.usefixtures("few_steps")
def test_an_onnx_file_with_training_data_has_students(
    conv: Given, stage_cache: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "train.npz", x=networks.samples(40, (3, 16, 16), seed=5))
    asked = Asked(0.1, {"network": str(tmp_path / "train.npz")})
    found, notes = onnx_students(conv.model, conv.samples, asked, StageCache(stage_cache))
    assert [student.name for student in found][:2] == ["int8", "int8-joint"], notes
    for student in found:
        kinds = [node.op_type for node in onnx.load(str(student.network.model)).graph.node]
        assert "QuantizeLinear" in kinds
        assert min(cosines(student)) > 0.98


def test_without_blocks_the_last_layer_stands_for_them() -> None:
    from edgemp.compress.students.data import Joining, TrainingData
    from edgemp.compress.students.make import Making, loss_terms
    from edgemp.ingest.trainable import trainable
    from edgemp.tensor import TensorSpec

    module = trainable(networks.conv_model())
    feeds = [{"x": row[None]} for row in networks.samples(2, (3, 16, 16))]
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, 16, 16))
    data = TrainingData(feeds, "test", lambda feed: feed, (spec,))
    terms = loss_terms(Making(module, feeds, data, Compression(), Joining()), module)
    assert {
        "term": "features",
        "name": "last features",
        "student": "layers.c",
        "teacher": "layers.c",
    } in terms


def test_an_onnx_file_that_torch_cannot_run_says_why(
    conv: Given, stage_cache: Path, tmp_path: Path
) -> None:
    model = networks.conv_model()
    model.graph.node[-1].output[0] = "flat"
    model.graph.node.append(onnx.helper.make_node("CumSum", ["flat", "axis"], ["y"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "axis"))
    np.savez(tmp_path / "train.npz", x=networks.samples(40, (3, 16, 16), seed=5))
    asked = Asked(0.1, {"network": str(tmp_path / "train.npz")})
    path = networks.saved(model, tmp_path / "sums.onnx")
    found, notes = onnx_students(path, conv.samples, asked, StageCache(stage_cache))
    assert not found
    assert any("no students: 'y' (CumSum) has no counterpart in torch" in note for note in notes)


def test_a_share_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="depths names the same share twice"):
        Compression(depths=(0.5, 0.501))


def test_default_minutes_are_spent_only_where_there_is_data() -> None:
    from edgemp.compiler.students import _minutes

    class Fake:
        torch_module = object()
        module = speller.pipeline().modules["encoder"]

    originals: Any = {"encoder": Fake()}
    assert _minutes(originals, Asked()) == MINUTES
    Fake.module = speller.pipeline(data=None).modules["encoder"]
    assert _minutes(originals, Asked()) == 0.0


@pytest.mark.usefixtures("few_steps")
def test_a_student_is_chosen_where_the_budget_asks_for_it_and_travels_in_the_bundle(
    stage_cache: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "backends": ["onnxruntime"],
        "precisions": ["fp32"],
        "cache": stage_cache,
        "minutes": 1.0,
    }
    pipeline = speller.pipeline(cosine_min=0.5)
    whole = edgemp.compile(pipeline, tmp_path / "a.edgemp", **given)
    sizes = {t.candidate.student: t.size_bytes for t in whole.trials["encoder"]}
    assert sizes["depth-50%"] < sizes[""]
    small = edgemp.compile(
        pipeline, tmp_path / "b.edgemp", budget_size=sizes["depth-50%"], **given
    ).record()["modules"]["encoder"]
    assert small["chosen"]["student"] in ALL
    assert small["size_bytes"] <= sizes["depth-50%"]
    assert small["chosen"]["transforms"]
    with edgemp.load(tmp_path / "b.edgemp") as app:
        assert app.step(**speller.steps(1)[0], t=0.0)["embedding"].value.shape == (1, 32)
    with pytest.raises(BudgetError, match="the smallest takes"):
        edgemp.compile(pipeline, tmp_path / "c.edgemp", budget_size=1000, **given)
    assert not (tmp_path / "c.edgemp").exists()


@pytest.mark.usefixtures("few_steps")
def test_low_rank_students_are_made_and_train(stage_cache: Path) -> None:
    pipeline = speller.pipeline(depths=(), ranks=(0.5,))
    found = {s.name: s for s in made(pipeline, Asked(1.0), StageCache(stage_cache))["encoder"]}
    thin, whole = found["rank-50%"], found["rank-50%-int8"]
    assert whole.twin == thin.network
    assert thin.network.transforms[0].startswith("rank_50%_distilled_")
    assert min(cosines(thin)) > 0.8
    inner = speller.encoder().blocks[0].up.weight.shape  # [64, 32]
    rank = int(0.5 * inner.numel() / sum(inner))
    shapes = weights(thin.network.model)
    assert (rank, inner[1]) in shapes or (inner[1], rank) in shapes


def weights(model: Path) -> set[tuple[int, ...]]:
    """Shapes of a graph's float32 initializers."""
    kept = onnx.load(str(model)).graph.initializer
    return {tuple(x.dims) for x in kept if x.data_type == onnx.TensorProto.FLOAT}


def test_students_without_the_tokens_that_nobody_needs_keep_the_ids(stage_cache: Path) -> None:
    pipeline = speller.pipeline(data=None, tokens="tests.compiler.speller:needed", unknown=0)
    found = {s.name: s for s in made(pipeline, Asked(), StageCache(stage_cache))["encoder"]}
    assert list(found) == ["trimmed", "int8", "mixed"]
    assert found["int8"].network.transforms[0] == "vocabulary_trimmed"
    original, session = (
        speller.encoder().eval(),
        onnxruntime.InferenceSession(str(found["trimmed"].network.model)),
    )
    import torch

    ids = np.arange(12, dtype=np.int64)[None] + 20
    with torch.no_grad():
        (answer,) = session.run(None, {"ids": ids})
        assert np.allclose(answer, original(torch.from_numpy(ids)).numpy(), atol=1e-5)
        # Ids that are gone are read as the unknown one.
        (answer,) = session.run(None, {"ids": np.full((1, 12), 79)})
        unknown = original(torch.zeros((1, 12), dtype=torch.int64)).numpy()
        assert np.allclose(answer, unknown, atol=1e-5)
    shapes = weights(found["trimmed"].network.model)
    assert (60, 32) in shapes
    assert (80, 32) not in shapes


@pytest.mark.parametrize(
    ("tokens", "message"),
    [("words", "must give token ids"), ("absent", "absent"), ("beyond", "reach from 0 to 500")],
)
def test_tokens_that_are_none_are_refused(tokens: str, message: str, stage_cache: Path) -> None:
    pipeline = speller.pipeline(data=None, tokens=f"tests.compiler.speller:{tokens}", unknown=0)
    with pytest.raises(edgemp.errors.EdgempError, match=message):
        made(pipeline, Asked(), StageCache(stage_cache))


@pytest.mark.usefixtures("few_steps")
def test_a_budget_that_no_whole_network_meets_is_met_by_a_student_made_for_it(
    stage_cache: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "backends": ["onnxruntime"],
        "precisions": ["fp32", "int8"],
        "cache": stage_cache,
    }
    pipeline = speller.pipeline(cosine_min=0.3)
    whole = edgemp.compile(pipeline, tmp_path / "a.edgemp", minutes=0, **given)
    least = min(t.size_bytes for t in whole.trials["encoder"] if not t.candidate.student)
    budget = int(0.7 * least)
    small = edgemp.compile(
        pipeline, tmp_path / "b.edgemp", minutes=1.0, budget_size=budget, **given
    )
    (note,) = [n for n in small.notes if "leaves room for" in n]
    share = note.split("room for ")[1].split(" of ")[0]
    shrunk = {t.candidate.student for t in small.trials["encoder"]}
    assert {f"depth-{share}", f"width-{share}"} <= shrunk
    assert small.record()["modules"]["encoder"]["size_bytes"] <= budget
    roomy = edgemp.compile(
        pipeline, tmp_path / "c.edgemp", minutes=0.5, budget_size=10 * least, **given
    )
    assert not any(t.candidate.student.startswith("depth") for t in roomy.trials["encoder"])


def test_attention_that_is_one_module_is_quantized_too(stage_cache: Path) -> None:
    pipeline = speller.pipeline(network="transformer", data=None)
    found = {s.name: s for s in made(pipeline, Asked(), StageCache(stage_cache))["encoder"]}
    assert min(cosines(found["int8"])) > 0.99
    kept = onnx.load(str(found["int8"].network.model)).graph.initializer
    integers = [tuple(x.dims) for x in kept if x.data_type == onnx.TensorProto.INT8]
    # Query, key, value and output of two layers.
    assert integers.count((16, 16)) == 8


@pytest.mark.usefixtures("few_steps")
def test_torchs_own_encoder_loses_blocks(stage_cache: Path) -> None:
    pipeline = speller.pipeline(network="transformer", depths=(0.5,))
    told = Loud()
    found = made(pipeline, Asked(0.5), StageCache(stage_cache), told)["encoder"]
    assert "depth-50%" in [student.name for student in found], told.notes


def test_training_samples_with_nan_are_named(
    stage_cache: Path, conv: Given, tmp_path: Path
) -> None:
    rows = networks.samples(40, (3, 16, 16), seed=5)
    rows[7, 0, 0, 0] = np.nan
    np.savez(tmp_path / "train.npz", x=rows)
    asked = Asked(0.1, {"network": str(tmp_path / "train.npz")})
    with pytest.raises(CompressError, match="sample 7: 'x': holds NaN"):
        onnx_students(conv.model, conv.samples, asked, StageCache(stage_cache))


def test_weights_are_fitted_to_training_samples_alone() -> None:
    from edgemp.compress.students.data import Joining, TrainingData
    from edgemp.compress.students.make import Making
    from edgemp.tensor import TensorSpec

    spec = TensorSpec(name="ids", dtype="int64", shape=(1, speller.LENGTH))
    data = TrainingData(speller.training(), "test", lambda feed: feed, (spec,))
    calibration = [{"ids": np.full((1, speller.LENGTH), -1)}] * 40
    making = Making(speller.encoder(), calibration, data, Compression(), Joining())
    fitted = np.concatenate([batch["ids"].numpy() for batch in making.batches(40, fitting=True)])
    assert len(fitted) == 40
    assert fitted.min() >= 0
    both = np.concatenate([batch["ids"].numpy() for batch in making.batches(40)])
    assert (both[:, 0] == -1).sum() == 20
