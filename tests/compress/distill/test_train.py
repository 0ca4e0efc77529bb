"""What the training loop promises: one result per seed, after a kill, with less memory, after a NaN."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgemp.compress.distill import gradients
from edgemp.compress.distill.outputs import Recorded, record
from edgemp.compress.distill.recipe import Outcome, Progress, Recipe
from edgemp.compress.distill.samples import Order, concatenate, split
from edgemp.compress.distill.train import FEWEST, distill, steps_within
from edgemp.compress.fake_quant import calibrate, fake_quantize, freeze
from edgemp.compress.layer_quant import Scheme
from edgemp.errors import CompressError, DivergedError
from tests.compress.modules import Encoder, Faulty, Mlp, output, seeded, tokens, vectors

COSINE = [{"term": "cosine"}]
ROOT = Path(__file__).parents[3]


def recipe(**more: Any) -> Recipe:
    options = {"steps": 40, "learning_rate": 0.01, "batch_size": 8, "validate_every": 10}
    return Recipe(**{**options, **more})


def trained(student: nn.Module, *, terms: Any = COSINE, **more: Any) -> Outcome:
    options: dict[str, Any] = {
        "recipe": recipe(),
        "teacher": seeded(Mlp, 16),
        "dataset": vectors(80),
    }
    given = {**options, **more}
    teacher, dataset, asked = (given.pop(n) for n in ("teacher", "dataset", "recipe"))
    return distill(student, teacher, dataset, terms, asked, **given)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_student_learns_and_the_teacher_stays_as_it_is() -> None:
    student, teacher = seeded(Mlp, 16, seed=1), seeded(Mlp, 16)
    outcome = trained(student, teacher=teacher, recipe=recipe(steps=400))
    assert outcome.initial_fidelity is not None
    assert outcome.initial_fidelity < 0.3
    assert outcome.fidelity is not None
    assert outcome.fidelity > 0.95
    assert same(teacher, seeded(Mlp, 16))
    held_out = {"x": torch.stack([s["x"] for s in vectors(50, seed=77)])}
    near = torch.cosine_similarity(output(student, held_out), output(teacher, held_out))
    assert float(near.mean()) > 0.9


def test_a_seed_determines_every_bit_and_another_seed_another_result() -> None:
    students = [seeded(Mlp, 16, seed=1) for _ in range(3)]
    for student, seed in zip(students, (0, 0, 1), strict=True):
        torch.rand(5)  # what happened before must not matter
        trained(student, recipe=recipe(seed=seed))
    assert same(students[0], students[1])
    assert not same(students[0], students[2])


def run_apart(folder: Path, minutes: float = 0.0, die_at: int = 0) -> int:
    folder.mkdir(exist_ok=True)
    arguments = [str(folder), "0", str(minutes), str(die_at)]
    return subprocess.run(
        [sys.executable, "-m", "tests.compress.distill.killed", *arguments],
        cwd=ROOT,
        timeout=120,
        check=False,
    ).returncode


def test_a_killed_run_goes_on_and_ends_with_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    assert run_apart(tmp_path / "whole") == 0
    assert run_apart(tmp_path / "killed", die_at=27) == -9
    assert not (tmp_path / "killed" / "done.pt").exists()
    assert run_apart(tmp_path / "killed", die_at=44) == -9
    assert run_apart(tmp_path / "killed") == 0
    whole, killed = (torch.load(tmp_path / name / "done.pt") for name in ("whole", "killed"))
    assert whole["steps"] == killed["steps"] == 60
    assert whole["notes"] == []
    assert killed["notes"] == ["resumed at step 20", "resumed at step 40"]
    for name, weight in whole["weights"].items():
        assert torch.equal(weight, killed["weights"][name]), name


@pytest.mark.parametrize("seconds", [10.0, 60.0, 163.0, 600.0])
@pytest.mark.parametrize(("each", "judging"), [(1.0, 8.0), (0.01, 0.5), (2.0, 0.1)])
def test_minutes_are_for_steps_and_not_for_looking(
    seconds: float, each: float, judging: float
) -> None:
    steps = steps_within(seconds, each, judging)
    looks = 1 + steps // max(min(FEWEST, steps), steps // 20)
    assert steps == 1 or steps * each + (looks - 1) * judging <= seconds
    # As many as if they looked every `FEWEST` steps to the end, or more.
    assert steps + 1 >= (seconds - judging) / (each + judging / FEWEST)


def test_minutes_become_steps_once_and_an_interrupted_run_keeps_them(tmp_path: Path) -> None:
    assert run_apart(tmp_path / "run", minutes=0.02, die_at=12) == -9
    decided = (tmp_path / "run" / "run" / "run.json").read_text()
    assert run_apart(tmp_path / "run", minutes=0.02) == 0
    assert (tmp_path / "run" / "run" / "run.json").read_text() == decided
    done = torch.load(tmp_path / "run" / "done.pt")
    assert f'"steps": {done["steps"]}' in decided
    assert done["steps"] > 20


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    students = [seeded(Mlp, 16, seed=1) for _ in range(2)]
    steps: list[int] = []
    for student in students:
        trained(student, folder=tmp_path, report=lambda p: steps.append(p.step) if p.loss else None)
    assert len(steps) == 40
    assert same(*students)


def test_measuring_the_pace_leaves_no_trace() -> None:
    student = seeded(Mlp, 16, seed=1)
    outcome = trained(student, recipe=recipe(steps=None, minutes=0.01, ema=None, patience=None))
    again = seeded(Mlp, 16, seed=1)
    trained(again, recipe=recipe(steps=outcome.steps, ema=None, patience=None))
    assert same(student, again)


class Greedy(nn.Module):
    """An Mlp that runs out of memory for more than so many samples at a time."""

    def __init__(self, most: int, error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.body, self.most, self.error = seeded(Mlp, 16, seed=1), most, error

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > self.most:
            raise self.error(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: tried 9 GB"
            )
        return self.body(x)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.OutOfMemoryError])
def test_out_of_memory_halves_the_parts_but_not_the_batch(error: type[Exception]) -> None:
    terms = [{"term": "cosine"}, {"term": "neighbours"}, {"term": "features"}]
    plenty, scarce = Greedy(99), Greedy(3, error)
    trained(plenty, terms=terms)
    outcome = trained(scarce, terms=terms)
    assert outcome.batch_parts == 4
    assert [note.partition(":")[0] for note in outcome.notes] == ["out of memory at step 0"] * 2
    for a, b in zip(plenty.parameters(), scarce.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_single_sample_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(
        CompressError, match=r"out of memory with a single sample.*a smaller batch_size"
    ):
        trained(Greedy(0))


def test_other_runtime_errors_are_not_mistaken_for_memory() -> None:
    assert not gradients.ran_out_of_memory(RuntimeError("shape mismatch"))
    student = seeded(Mlp, 16, seed=1)
    student.second = nn.Linear(3, 4)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trained(student)


class Unstable(nn.Module):
    """An Mlp whose answer is NaN at some training passes, as after a step that was too large."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.body, self.bad, self.passes = seeded(Mlp, 16, seed=1), bad, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        return self.body(x) * (float("nan") if self.training and self.passes in self.bad else 1.0)


def test_a_nan_rolls_back_to_the_last_checkpoint_with_half_the_rate_and_says_so() -> None:
    student, rates = Unstable({25}), dict[int, float]()

    def keep(progress: Progress) -> None:
        rates[progress.step] = progress.learning_rate

    outcome = trained(student, report=keep)
    (note,) = outcome.notes
    assert "loss nan" in note
    assert "at step 24: rolled back to step 20, learning rate x 0.5" in note
    assert outcome.steps == 40
    assert student.passes == 40 + 4 + 1
    assert rates[21] == pytest.approx(0.5 * recipe().rate(20, 40))
    assert all(torch.isfinite(p).all() for p in student.parameters())


def test_training_that_diverges_again_and_again_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(
        DivergedError, match=r"diverged at step 0 .* after 2 roll-backs; lower learn"
    ):
        trained(Unstable(set(range(99))), recipe=recipe(retries=2), folder=tmp_path)


def test_half_precision_overflow_is_named() -> None:
    class Loud(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 60000.0 * 8.0

    with pytest.raises(DivergedError, match="float16 overflows beyond 65504: bf16 does not"):
        trained(seeded(Loud, 16), terms=[{"term": "features"}], recipe=recipe(precision="fp16"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_float_weights(precision: str) -> None:
    student = seeded(Mlp, 16, seed=1)
    outcome = trained(student, recipe=recipe(steps=200, precision=precision))
    assert outcome.fidelity is not None
    assert outcome.fidelity > 0.9
    assert {p.dtype for p in student.parameters()} == {torch.float32}


def test_a_dataset_that_raises_midway_is_an_error_that_names_the_sample() -> None:
    samples = vectors(80)
    with pytest.raises(
        CompressError, match="training sample 41 cannot be read: OSError: disk on fire"
    ):
        trained(seeded(Mlp), dataset=Faulty(samples, 41))
    wrong = [
        ([1, 2], "training sample 41 is a list"),
        ({"x": torch.full((8,), float("inf"))}, "training sample 41: 'x' contains NaN"),
        ({"x": torch.zeros(9)}, r"41 \{'x': \[9\]\} cannot be joined"),
        ({"y": torch.zeros(8)}, "41 has|has \\['y'\\]"),
    ]
    for sample, message in wrong:
        with pytest.raises(CompressError, match=message):
            trained(seeded(Mlp), dataset=Faulty(samples, 41, sample))


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (4, "labels reach from 4 to 4, but the student has 4 classes"),
        (-1, "labels reach from -1 to -1"),
        (2.5, r"'label' is torch.float32 \[\], expected one int64"),
        ([0, 1], r"'label' is torch.int64 \[2\], expected one int64"),
    ],
    ids=str,
)
def test_a_label_that_is_no_class_is_an_error_that_names_the_sample(
    label: Any, message: str, validates: bool
) -> None:
    at = split(80, 0.2, seed=0)[validates][-1]
    samples = [{**sample, "label": i % 4} for i, sample in enumerate(vectors(80))]
    bad = {**samples[at], "label": label}
    with pytest.raises(CompressError, match=f"training sample {at}, term 'labels': {message}"):
        trained(
            seeded(Mlp, 16, seed=1),
            terms=[{"term": "labels"}],
            dataset=Faulty(samples, at, bad),
            recipe=recipe(validation=0.2),
        )


def frozen() -> nn.Module:
    return seeded(Mlp).requires_grad_(False)


class OnlyBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.ones(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


def test_what_cannot_be_trained_is_refused_with_the_reason() -> None:
    with pytest.raises(CompressError, match="Mlp cannot be trained: all 4 parameters are frozen"):
        trained(frozen())
    with pytest.raises(CompressError, match="OnlyBuffers cannot be trained: it has no parameters"):
        trained(OnlyBuffers())
    teacher = seeded(Mlp)
    with pytest.raises(CompressError, match=r"share the weight 'first.weight'.*deepcopy"):
        trained(teacher, teacher=teacher)
    for few in (0, 1):
        with pytest.raises(CompressError, match=f"at least 2 .* and was given {few}"):
            trained(seeded(Mlp), dataset=vectors(few))
    with pytest.raises(CompressError, match=r"Mlp needs inputs, .* they have \['y'\]"):
        trained(seeded(Mlp), dataset=[{"y": torch.zeros(8)}] * 4)
    wide = seeded(Mlp)
    wide.second = nn.Linear(16, 7)
    with pytest.raises(CompressError, match=r"\[4, 4\].*the teacher is \[4, 7\]"):
        trained(seeded(Mlp, seed=1), teacher=wide)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": None}, "either steps or minutes"),
        ({"minutes": 1.0}, "either steps or minutes"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"validation": 1.0}, r"validation is 1\.0"),
    ],
)
def test_recipes_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        recipe(**options)


class TiedEncoder(Encoder):
    """Its blocks share their weights, as ALBERT's do."""

    def __init__(self) -> None:
        super().__init__(depth=3)
        self.blocks = nn.ModuleList([self.blocks[0]] * 3)
        self.again = nn.Linear(32, 50, bias=False)
        self.again.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.again(super().forward(ids))


def test_shared_weights_stay_shared(tmp_path: Path) -> None:
    student, data = seeded(TiedEncoder, seed=1), [{"ids": x} for b in tokens(6) for x in b["ids"]]
    outcome = trained(student, teacher=seeded(TiedEncoder), dataset=data, folder=tmp_path)
    assert student.again.weight is student.words.weight
    assert student.blocks[0] is student.blocks[2]
    assert outcome.loss < outcome.initial_loss
    again = seeded(TiedEncoder, seed=1)
    trained(again, teacher=seeded(TiedEncoder), dataset=data, folder=tmp_path)
    assert same(student, again)


def test_frozen_parts_and_buffers_of_the_student_stay() -> None:
    student = seeded(Mlp, 16, seed=1)
    student.first.requires_grad_(False)
    before = student.first.weight.clone()
    trained(student)
    assert torch.equal(student.first.weight, before)


def test_a_recorded_teacher_teaches_like_the_live_one() -> None:
    live, taught = seeded(Mlp, 16, seed=1), seeded(Mlp, 16, seed=1)
    trained(live)
    answers = record(seeded(Mlp, 16), vectors(80), batch_size=7)
    trained(taught, teacher=answers)
    for a, b in zip(live.parameters(), taught.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    with pytest.raises(CompressError, match="answers to 79 samples, but there are 80"):
        trained(taught, teacher=Recorded({"output": torch.zeros(79, 4)}))


def test_a_teacher_of_one_modality_teaches_a_student_of_another() -> None:
    class Ear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 4)

        def forward(self, audio: Tensor) -> Tensor:
            return self.body(audio)

    mixing = torch.randn(8, 6, generator=torch.Generator().manual_seed(5))
    data = [{"image": s["x"], "sound": s["x"] @ mixing} for s in vectors(200)]
    teacher, student = seeded(Mlp, 16), seeded(Ear)
    outcome = trained(
        student,
        teacher=teacher,
        dataset=data,
        terms=[{"term": "contrastive", "queue": 64, "hard": 4, "adversarial": 4, "epsilon": 0.1}],
        recipe=recipe(steps=300, batch_size=16),
        student_inputs={"audio": "sound"},
        teacher_inputs={"x": "image"},
    )
    assert outcome.fidelity is not None
    assert outcome.fidelity > 0.75
    assert outcome.initial_fidelity is not None
    assert outcome.initial_fidelity < 0.4


def test_feeds_with_a_batch_axis_are_concatenated() -> None:
    data = [{"x": s["x"][None].numpy()} for s in vectors(80)]
    a, b = seeded(Mlp, 16, seed=1), seeded(Mlp, 16, seed=1)
    trained(a)
    trained(b, dataset=data, collate=concatenate)
    assert same(a, b)


def test_training_stops_early_and_returns_the_best_weights() -> None:
    student = seeded(Mlp, 16)
    with torch.no_grad():
        student.second.bias += 1e-3
    outcome = trained(
        student, recipe=recipe(steps=400, patience=3, learning_rate=0.5, ema=None, warmup=0.0)
    )
    assert outcome.stopped_early
    assert outcome.steps < 400
    assert outcome.best_step == 0
    assert outcome.loss == outcome.initial_loss


def test_recomputed_blocks_give_the_same_result() -> None:
    data = [{"ids": x} for b in tokens(6) for x in b["ids"]]
    students = [seeded(Encoder, seed=1) for _ in range(2)]
    for student, names in zip(students, ((), ("blocks.0", "blocks.2")), strict=True):
        trained(
            student, teacher=seeded(Encoder), dataset=data, recipe=recipe(steps=5, recompute=names)
        )
    assert same(*students)
    assert "forward" not in vars(students[1].blocks[0])
    with pytest.raises(CompressError, match="recompute names 'nothing'"):
        trained(
            students[0],
            teacher=seeded(Encoder),
            dataset=data,
            recipe=recipe(recompute=("nothing",)),
        )


def test_a_folder_of_another_run_is_refused_and_a_damaged_one_named(tmp_path: Path) -> None:
    trained(seeded(Mlp, 16, seed=1), folder=tmp_path)
    for more in (
        {"recipe": recipe(learning_rate=0.02)},
        {"terms": [{"term": "similarity"}]},
        {"dataset": vectors(80, seed=5)},
    ):
        with pytest.raises(CompressError, match="belongs to another run"):
            trained(seeded(Mlp, 16, seed=1), folder=tmp_path, **more)
    with pytest.raises(CompressError, match="belongs to another run"):
        trained(seeded(Mlp, 16, seed=2), folder=tmp_path)
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CompressError, match=r"is damaged.*delete the folder to start over"):
        trained(seeded(Mlp, 16, seed=1), folder=tmp_path)


def test_progress_tells_loss_fidelity_and_eta() -> None:
    seen: list[Progress] = []
    trained(seeded(Mlp, 16, seed=1), report=seen.append)
    assert [p.step for p in seen] == list(range(1, 41))
    assert all(p.loss is not None and p.fidelity is not None and p.eta_s >= 0 for p in seen)
    assert seen[-1].eta_s == 0
    assert seen[-1].fidelity != seen[0].fidelity


@pytest.fixture
def lengths() -> list[int]:
    drawn = torch.Generator().manual_seed(0)
    return torch.randint(3, 60, (500,), generator=drawn).tolist()


def test_an_epoch_takes_every_sample_once_and_batches_hold_similar_lengths(
    lengths: list[int],
) -> None:
    order = Order(range(500), 10, seed=0, lengths=lengths)
    batches = [order.batch(step) for step in range(50)]
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]
    assert sum(spread) / len(spread) < 5
    middles = [lengths[b[0]] for b in batches]
    assert middles != sorted(middles)
    assert order.batch(50) != batches[0]


def test_a_quantized_student_learns_back_what_rounding_took() -> None:
    teacher, data = seeded(Encoder), [{"ids": x} for b in tokens(24) for x in b["ids"]]
    student = fake_quantize(teacher, scheme=Scheme(4, None, 4))
    calibrate(student, tokens(4), "percentile")
    outcome = trained(
        student,
        teacher=teacher,
        dataset=data,
        terms=[{"term": "cosine"}, {"term": "similarity"}],
        recipe=recipe(steps=200, learning_rate=1e-3),
    )
    assert outcome.initial_fidelity is not None
    assert outcome.fidelity is not None
    assert 1 - outcome.fidelity < 0.75 * (1 - outcome.initial_fidelity)
    plain, found = freeze(student)
    assert len(found) == 24
    assert all(torch.isfinite(p).all() for p in plain.parameters())
