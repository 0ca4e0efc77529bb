"""MiniLM, quantized and halved: what each step of compression gives back, on sentences it never saw.

    python benchmarks/distill_minilm.py [ptq] [blocks] [joint] [half] [--minutes-blocks 5] [--json FILE]

Trained on sentences from torch's docstrings, judged on 400 from other packages (benchmarks/known/
sentences.py), 64 tokens. "top1" is the share of the 400 sentences whose nearest neighbour among the
other 399 is the one that the original finds. Quantization is simulated in float (W8A8 of all Linear
layers, weights per channel, inputs per tensor); latency is not measured here.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rows import Row, print_table, write_rows
from edgemp.compress.bias_correction import correct_biases
from edgemp.compress.distill.blockwise import Settings, reconstruct
from edgemp.compress.distill.recipe import Progress, Recipe
from edgemp.compress.distill.train import distill
from edgemp.compress.fake_quant import calibrate, fake_quantize
from edgemp.compress.shrink.depth import drop_layers
from edgemp.compress.smooth import smooth
from examples.ar_subtitle.functions import Tokenize
from examples.ar_subtitle.models import minilm, tokenizer
from examples.sentences.corpus import MORE_TRAINING, TRAINING, corpus

LENGTH = 64
STEPS = ("ptq", "blocks", "joint", "half")
MASK = "attention_mask"
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Sentences:
    """Tokenized sentences: a dataset of {input_ids, attention_mask}, int64 [64] each, and the row."""

    ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], MASK: self.mask[index], "row": torch.tensor(index)}

    @property
    def lengths(self) -> list[int]:
        return self.mask.sum(1).tolist()

    def batches(self, count: int, size: int, seed: int) -> list[Batch]:
        """`count` sentences drawn under the seed, sorted by length and cut where their padding begins."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        order = order[self.mask[order].sum(1).argsort(stable=True)]
        joined = [join([self[int(i)] for i in part]) for part in order.split(size)]
        return [{name: batch[name] for name in ("input_ids", MASK)} for batch in joined]


def join(samples: Sequence[Mapping[str, Any]]) -> Batch:
    """A batch without the columns in which every sentence is padded."""
    batch = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    longest = int(batch[MASK].sum(1).max())
    return {n: x[:, :longest].contiguous() if x.dim() == 2 else x for n, x in batch.items()}


class Answers(nn.Module):  # type: ignore[misc]
    """The original's answers to all training sentences, computed once: what a teacher costs per step."""

    def __init__(self, teacher: nn.Module, sentences: Sentences) -> None:
        super().__init__()
        states: list[Tensor] = []
        handle = teacher.layers[-1].register_forward_hook(lambda *call: states.append(call[2]))
        self.embeddings = torch.empty(len(sentences), 384)
        # Half precision, because a float is kept for every token; the student never sees more.
        self.tokens = torch.zeros(len(sentences), LENGTH, 384, dtype=torch.float16)
        order = torch.tensor(sentences.lengths).argsort(stable=True)
        with torch.no_grad():
            for part in order.split(64):
                batch = join([sentences[int(i)] for i in part])
                self.embeddings[part] = teacher(batch["input_ids"], batch[MASK])
                state = states.pop()
                self.tokens[part, : state.shape[1]] = state.half()
        handle.remove()

    def forward(self, row: Tensor, attention_mask: Tensor) -> Batch:
        """Embeddings [B, 384], and the last layer's tokens [B, L, 384]."""
        length = attention_mask.shape[1]
        return {"output": self.embeddings[row], "tokens": self.tokens[row, :length].float()}


def tokenized(texts: Sequence[str]) -> Sentences:
    found = Tokenize(tokenizer=tokenizer(), length=LENGTH)(texts=list(texts))
    return Sentences(torch.from_numpy(found["input_ids"]), torch.from_numpy(found[MASK]))


def encoded(encoder: nn.Module, sentences: Sentences) -> Tensor:
    """float32 [N, 384]."""
    encoder.eval()
    with torch.no_grad():
        pairs = zip(sentences.ids.split(50), sentences.mask.split(50), strict=True)
        return torch.cat([encoder(ids, mask) for ids, mask in pairs])


def figures(original: Tensor, found: Tensor) -> dict[str, float]:
    """Mean and smallest cosine, and how often the nearest neighbour is the same."""
    cosines = (original * found).sum(1)

    def nearest(x: Tensor) -> Tensor:
        near = x @ x.T
        return near.fill_diagonal_(-2.0).argmax(1)

    same = (nearest(original) == nearest(found)).float()
    return {"mean": float(cosines.mean()), "min": float(cosines.min()), "top1": float(same.mean())}


def quantized(teacher: nn.Module, sentences: Sentences, leveled: bool) -> nn.Module:
    """W8A8 of all Linear layers, calibrated on 256 sentences; `leveled`: channels and biases too."""
    student, batches = fake_quantize(teacher), sentences.batches(256, 32, seed=0)
    if leveled:
        smooth(student, batches)
    calibrate(student, batches, "minmax")
    if leveled:
        correct_biases(student, batches)
    return student


def reconstructed(teacher: nn.Module, sentences: Sentences, minutes: float) -> nn.Module:
    """Block by block on 2,048 sentences."""
    student = quantized(teacher, sentences, leveled=True)
    settings = Settings(minutes=minutes, mask=MASK)
    reconstruct(student, teacher, sentences.batches(2048, 32, seed=1), settings, progress=say)
    return student


def trained(
    student: nn.Module,
    answers: Answers,
    sentences: Sentences,
    recipe: Recipe,
    folder: Path | None,
) -> nn.Module:
    """End to end, against the original's recorded answers; the token tables stay as they are."""
    for table in (student.words, student.positions):
        table.weight.requires_grad_(False)
    last = f"layers.{len(student.layers) - 1}"
    terms = [
        {"term": "cosine"},
        {"term": "features", "student": last, "teacher": "tokens", "mask": MASK},
        {"term": "similarity"},
        {"term": "neighbours", "weight": 0.1, "temperature": 0.05},
    ]
    outcome = distill(
        student,
        answers,
        sentences,
        terms,
        recipe,
        folder=folder,
        lengths=sentences.lengths,
        collate=join,
        report=say_sometimes(),
    )
    print(outcome, file=sys.stderr)
    return student


def joint(
    student: nn.Module, answers: Answers, sentences: Sentences, minutes: float, folder: Path | None
) -> nn.Module:
    """Quantization-aware training and distillation of a student that is already quantized."""
    recipe = Recipe(
        minutes=minutes,
        batch_size=32,
        learning_rate=3e-5,
        weight_decay=0.0,
        ema=0.995,
        patience=None,
    )
    return trained(copy.deepcopy(student), answers, sentences, recipe, folder)


def halved(
    teacher: nn.Module, answers: Answers, sentences: Sentences, minutes: float, folder: Path | None
) -> nn.Module:
    """Three of six layers, chosen by what the outputs lose, repaired, then distilled in float."""
    student, report = drop_layers(teacher, sentences.batches(192, 32, seed=5), 3, mask=MASK)
    print(report, file=sys.stderr)
    recipe = Recipe(
        minutes=minutes,
        batch_size=64,
        learning_rate=5e-4,
        ema=0.995,
        patience=None,
        precision="bf16",
    )
    return trained(student, answers, sentences, recipe, folder)


def rows(
    case: str, found: Mapping[str, float], seconds: float, goals: Mapping[str, float]
) -> list[Row]:
    made = [
        Row(
            case,
            f"{name}, held out",
            value,
            f">= {goals[name]}" if name in goals else None,
            value >= goals[name] if name in goals else None,
        )
        for name, value in found.items()
    ]
    return [*made, Row(case, "minutes", seconds / 60.0)]


def say(what: object) -> None:
    print(what, file=sys.stderr, flush=True)


def say_sometimes(seconds: float = 30.0) -> Any:
    last = [0.0]

    def report(progress: Progress) -> None:
        if progress.note or time.monotonic() - last[0] > seconds:
            last[0] = time.monotonic()
            say(progress)

    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("steps", nargs="*", default=list(STEPS), help=", ".join(STEPS))
    parser.add_argument("--minutes-blocks", type=float, default=5.0)
    parser.add_argument("--minutes-joint", type=float, default=10.0)
    parser.add_argument("--minutes-half", type=float, default=15.0)
    parser.add_argument("--more-sentences", action="store_true", help="train on more packages")
    parser.add_argument("--quick", action="store_true", help="a minute for each step")
    parser.add_argument("--folder", type=Path, help="for checkpoints and recorded answers")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.minutes_blocks = arguments.minutes_joint = arguments.minutes_half = 1.0
    text = corpus(MORE_TRAINING if arguments.more_sentences else TRAINING)
    say(f"{len(text.training)} training sentences, {len(text.held_out)} held out, {text.sources}")
    sentences, held_out = tokenized(text.training), tokenized(text.held_out)
    teacher = minilm()
    original = encoded(teacher, held_out)
    made: list[Row] = []

    def judged(case: str, student: nn.Module, since: float, **goals: float) -> None:
        seconds = time.monotonic() - since
        made.extend(rows(case, figures(original, encoded(student, held_out)), seconds, goals))
        say(made[-4:])
        if arguments.folder:
            torch.save(student.state_dict(), arguments.folder / f"{case}.pt")

    def folder(name: str) -> Path | None:
        return arguments.folder / name if arguments.folder else None

    if "ptq" in arguments.steps:
        for leveled, case in ((False, "ptq"), (True, "ptq-leveled")):
            began = time.monotonic()
            judged(case, quantized(teacher, sentences, leveled), began)
    if {"blocks", "joint"} & set(arguments.steps):
        began = time.monotonic()
        student = reconstructed(teacher, sentences, arguments.minutes_blocks)
        judged("blocks", student, began, mean=0.99935, top1=0.971)
    if {"joint", "half"} & set(arguments.steps):
        began = time.monotonic()
        answers = Answers(teacher, sentences)
        say(f"the original's answers: {time.monotonic() - began:.0f} s")
    if "joint" in arguments.steps:
        began = time.monotonic()
        student = joint(student, answers, sentences, arguments.minutes_joint, folder("joint-run"))
        judged("joint", student, began, mean=0.99935, top1=0.971)
    if "half" in arguments.steps:
        began = time.monotonic()
        student = halved(teacher, answers, sentences, arguments.minutes_half, folder("half-run"))
        judged("half", student, began, top1=0.85)
    print_table(made, "MiniLM, compressed")
    if arguments.json:
        write_rows(arguments.json, made)


if __name__ == "__main__":
    main()
