"""The promises of compression on a network that was really trained: MiniLM, on sentences from packages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgemp.compress.fake_quant import calibrate, fake_quantize, freeze
from edgemp.compress.shrink.depth import drop_layers
from edgemp.compress.shrink.repair import repair
from edgemp.compress.shrink.vocabulary import tokens_of_languages, tokens_seen, trim
from edgemp.compress.shrink.width import prune
from edgemp.compress.smooth import smooth
from examples.ar_subtitle.functions import Tokenize
from examples.ar_subtitle.models import minilm, tokenizer
from examples.sentences import corpus as sentences
from tests.compress.modules import nearness

Batches = list[dict[str, Tensor]]


def batches(texts: list[str], size: int) -> Batches:
    found = Tokenize(tokenizer=tokenizer(), length=32)(texts=texts)
    parts = {name: torch.from_numpy(x).split(size) for name, x in found.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return minilm()


@pytest.fixture(scope="module")
def training() -> Batches:
    return batches(sentences.docstrings("rich")[:96], 32)


@pytest.fixture(scope="module")
def unseen() -> Batches:
    return batches(sentences.docstrings("typer")[:64], 32)


def test_levelled_channels_win_back_most_of_what_8_bits_lose(
    teacher: nn.Module, training: Batches, unseen: Batches
) -> None:
    plain, leveled = fake_quantize(teacher), fake_quantize(teacher)
    report = smooth(leveled, training)
    assert sum(entry.kept for entry in report) >= 18
    for student in (plain, leveled):
        calibrate(student, training, "minmax")
    lost = [1 - nearness(student, teacher, unseen) for student in (plain, leveled)]
    assert lost[0] < 0.02
    assert lost[1] < 0.4 * lost[0]
    frozen, record = freeze(leveled)
    assert len(record) == 36
    assert 1 - nearness(frozen, teacher, unseen) < lost[1]


def test_heads_written_into_the_forward_are_cut(
    teacher: nn.Module, training: Batches, unseen: Batches
) -> None:
    student, report = prune(teacher, training[:1], heads=0.75, channels=0.75, repaired=False)
    assert {p.group.consumer for p in report.pruned} == {"output", "shrink"}
    assert student.layers[0].query.out_features == 9 * 32
    assert nearness(student, teacher, unseen) > 0.7


def test_half_the_layers_are_chosen_by_the_outputs_and_repaired(
    teacher: nn.Module, training: Batches, unseen: Batches
) -> None:
    student, report = drop_layers(teacher, training[:1], 3, mask="attention_mask", repaired=False)
    assert len(student.layers) == 3
    assert max(report.influence, key=report.influence.__getitem__) == "layers.5"
    assert "layers.5" in report.kept
    before = nearness(student, teacher, unseen)
    pairs = [(f"layers.{i}", theirs) for i, theirs in enumerate(_ends(report.kept))]
    repaired = repair(student, teacher, training, pairs, mask="attention_mask")
    assert all(r.after <= r.before for r in repaired)
    assert nearness(student, teacher, unseen) > before + 0.02


def _ends(kept: tuple[str, ...]) -> list[str]:
    """The last layer of the original that each kept one stands for."""
    starts = [int(name.rpartition(".")[2]) for name in kept]
    return [f"layers.{end - 1}" for end in (*starts[1:], 6)]


def test_a_trimmed_vocabulary_answers_the_same_for_the_tokens_it_kept(
    teacher: nn.Module, unseen: Batches
) -> None:
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_buffer(tokenizer()).get_vocab()
    english = tokens_of_languages(vocabulary, ["en"])
    assert 0.9 * len(vocabulary) < len(english) < len(vocabulary)
    seen = tokens_seen([batch["input_ids"].numpy() for batch in unseen])
    assert seen < english
    student, table = trim(teacher, seen, vocabulary["[UNK]"])
    assert student.words.weight.shape == (len(table.kept), 384)
    assert nearness(student, teacher, unseen) == pytest.approx(1.0, abs=1e-6)
