"""What the loss terms promise: nothing to learn from oneself, known values, and words for bad options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgemp.compress.distill.contrastive import Contrastive
from edgemp.compress.distill.losses import REGISTRY, build_terms
from edgemp.compress.distill.terms import Term
from edgemp.errors import CompressError

SAME = ("kl", "features", "cosine", "similarity", "neighbours", "rkd_distance", "rkd_angle")
"""Terms that are zero when student and teacher answer the same, for outputs [B, C]."""


def term(kind: str, **options: Any) -> Term:
    (built,) = build_terms([{"term": kind, **options}])
    return built


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def value(term: Term, s: Tensor, t: Tensor, **batch: Tensor) -> float:
    student, teacher = {"output": s}, {"output": t}
    term.prepare(student, teacher, batch)
    return float(term(student, teacher, batch).detach())


@pytest.mark.parametrize("kind", SAME)
def test_a_student_that_answers_like_its_teacher_has_nothing_to_learn(kind: str) -> None:
    x = rand(6, 5)
    assert value(term(kind), x, x.clone()) == pytest.approx(0.0, abs=1e-6)
    assert value(term(kind), rand(6, 5, seed=1), x) > 1e-3


@pytest.mark.parametrize("kind", [*SAME, "contrastive"])
def test_following_a_terms_gradient_brings_the_student_nearer(kind: str) -> None:
    t = rand(8, 5)
    s = rand(8, 5, seed=1).requires_grad_(True)
    tried = term(kind)
    tried.prepare({"output": s}, {"output": t}, {})
    optimizer = torch.optim.Adam([s], lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = tried({"output": s}, {"output": t}, {})
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert torch.isfinite(s).all()


@settings(max_examples=30, deadline=None)
@given(temperature=st.floats(0.5, 20.0), seed=st.integers(0, 1000))
def test_kl_is_hintons(temperature: float, seed: int) -> None:
    s, t = rand(4, 7, seed=seed), rand(4, 7, seed=seed + 1)
    p, q = (torch.softmax(x.double() / temperature, 1) for x in (t, s))
    expected = float((p * (p / q).log()).sum(1).mean()) * temperature**2
    found = value(term("kl", temperature=temperature), s, t)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["kl", "features", "cosine"])
def test_what_lies_under_the_padding_does_not_count(kind: str) -> None:
    t, mask = rand(3, 4, 5), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    s = t.clone()
    s[mask == 0] *= -3.0
    assert value(term(kind, mask="mask"), s, t, mask=mask) == pytest.approx(0.0, abs=1e-6)
    assert value(term(kind), s, t) > 1e-3


def test_a_projector_bridges_other_widths_and_is_learned() -> None:
    tried = term("features")
    s, t = rand(64, 4), rand(64, 4) @ rand(4, 9, seed=2)
    tried.prepare({"output": s}, {"output": t}, {})
    assert sum(p.numel() for p in tried.parameters()) == 4 * 9 + 9
    optimizer = torch.optim.Adam(tried.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = tried({"output": s}, {"output": t}, {})
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1e-3
    assert not list(term("features", projector="never").parameters())


def test_feature_maps_of_convolutions_are_projected_along_their_channels() -> None:
    tried = term("features", channels=1)
    s, t = rand(2, 3, 6, 6), rand(2, 8, 6, 6)
    assert value(tried, s, t) > 0
    assert sum(p.numel() for p in tried.parameters()) == 3 * 8 + 8


def test_relations_do_not_depend_on_the_width() -> None:
    t = rand(6, 4)
    rotated = t @ torch.linalg.qr(rand(9, 4, seed=3)).Q.T
    for kind in ("similarity", "neighbours", "rkd_distance", "rkd_angle"):
        assert value(term(kind), rotated, t) == pytest.approx(0.0, abs=1e-5)


def test_attention_maps_ignore_scale_and_width() -> None:
    t = rand(2, 5, 4)
    assert value(term("attention_maps"), torch.cat([t, t], -1) * 3, t) == pytest.approx(0, abs=1e-6)
    assert value(term("attention_maps"), t.flip(1), t) > 1e-2


def test_self_attention_compares_who_attends_to_whom_across_widths() -> None:
    tried = term("self_attention", student="q", student_keys="k", heads=2, mask="mask")
    q, k = rand(2, 5, 8), rand(2, 5, 8, seed=1)
    narrow = {"q": q[..., :4], "k": k[..., :4]}
    batch = {"mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}
    tried.prepare(narrow, {"q": q, "k": k}, batch)
    assert float(tried(narrow, {"q": q, "k": k}, batch)) > 1e-2
    assert float(tried({"q": q, "k": k}, {"q": q, "k": k}, batch)) == pytest.approx(0, abs=1e-6)
    hidden = k.clone()
    hidden[1, 3:] = 99.0
    assert float(tried({"q": q, "k": hidden}, {"q": q, "k": k}, batch)) == pytest.approx(
        0, abs=1e-6
    )


def queued(options: dict[str, Any], known: Tensor) -> Contrastive:
    tried = term("contrastive", mse=0.0, symmetric=False, temperature=0.1, **options)
    assert isinstance(tried, Contrastive)
    tried.prepare({"output": known[:2]}, {"output": known[:2]}, {})
    tried.seen = torch.nn.functional.normalize(known, dim=1)
    return tried.eval()


def test_hard_negatives_are_the_queued_teachers_nearest_to_ones_own_but_not_the_same() -> None:
    angles = torch.tensor([0.01, 0.5, 1.5, 3.0])
    known = torch.stack([angles.cos(), angles.sin()], 1)
    own = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    found = queued({"queue": 4, "hard": 1}, known)._mined(own, own)
    # To the first, the one at 0.01 is itself; the next is at 0.5. To the second, 3.0 is itself.
    expected = torch.stack([angles[1].cos(), -angles[2].cos()]) / 0.1
    torch.testing.assert_close(found[0][:, 0], expected)


def test_adversarial_negatives_are_what_the_student_confuses_and_a_step_makes_them_worse() -> None:
    angles = torch.tensor([0.7, 2.0, -2.0])
    known = torch.stack([angles.cos(), angles.sin()], 1)
    partners = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    wrong = torch.stack([angles[1:].cos(), angles[1:].sin()], 1)
    chosen = queued({"queue": 3, "adversarial": 1}, known)._mined(wrong, partners)[0][:, 0]
    torch.testing.assert_close(chosen, torch.full((2,), 10.0))
    anchors = torch.nn.functional.normalize(wrong + 0.5, dim=1)
    plain = queued({"queue": 3, "adversarial": 2}, known)._mined(anchors, partners)[0]
    moved = queued({"queue": 3, "adversarial": 2, "epsilon": 0.2}, known)._mined(anchors, partners)[
        0
    ]
    assert (torch.logsumexp(moved, 1) > torch.logsumexp(plain, 1) + 0.1).all()


def test_a_queue_with_too_few_others_counts_none_twice() -> None:
    own = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    tried = queued({"queue": 2, "hard": 2}, own)
    scores = tried._mined(own, own)[0]
    assert (scores > -1e3).sum(1).tolist() == [1, 1]


def test_the_queue_remembers_teachers_of_training_only() -> None:
    tried = term("contrastive", queue=4)
    s, t = rand(3, 5), rand(3, 5, seed=1)
    tried.prepare({"output": s}, {"output": t}, {})
    tried.eval()({"output": s}, {"output": t}, {})
    assert torch.isnan(tried.seen).all()
    tried.train()({"output": s}, {"output": t}, {})
    torch.testing.assert_close(tried.seen[-3:], torch.nn.functional.normalize(t, dim=1))
    assert torch.isnan(tried.seen[0]).all()


def test_a_modality_converter_and_its_way_back_are_learned() -> None:
    tried = term("contrastive", cycle=1.0)
    s = rand(32, 4)
    t = s @ rand(4, 6, seed=4)
    tried.prepare({"output": s}, {"output": t}, {})
    optimizer = torch.optim.Adam(tried.parameters(), lr=0.03)
    first = None
    for _ in range(200):
        optimizer.zero_grad()
        loss = tried({"output": s}, {"output": t}, {})
        loss.backward()
        optimizer.step()
        first = first or float(loss.detach())
    converted = torch.nn.functional.normalize(tried.there(s), dim=1)
    near = torch.cosine_similarity(converted, t)
    assert float(loss.detach()) < 0.3 * first
    assert float(near.detach().min()) > 0.95
    assert float((tried.back(tried.there(s)) - s).detach().square().mean()) < 0.1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "no loss terms; give at least one of attention_maps"),
        ([{"weight": 1}], "loss term 0: expected a mapping with a 'term'"),
        (
            [{"term": "cosine"}, {"term": "cosin"}],
            "loss term 1: unknown term 'cosin'; known: attention",
        ),
        (
            [{"term": "kl", "temprature": 2}],
            r"\(kl\): unknown option 'temprature'; known: mask, name",
        ),
        ([{"term": "kl", "temperature": 0}], "temperature is 0, expected a positive number"),
        ([{"term": "kl", "weight": "high"}], "weight is 'high', expected a number"),
        ([{"term": "kl", "weight": -1}], "weight is -1, expected 0 or more"),
        ([{"term": "kl", "weight": 0}], "every loss term has weight 0"),
        ([{"term": "kl"}, {"term": "kl"}], "two loss terms are called 'kl'; give each a 'name'"),
        ([{"term": "contrastive", "hard": 4}], "need a queue of at least 4, got queue: 0"),
        ([{"term": "self_attention"}], "student_keys names the student's key projection"),
        ([{"term": "features", "projector": "x"}], "expected auto, always or never"),
    ],
)
def test_bad_configurations_are_refused_by_name(config: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        build_terms(config)


def test_shapes_that_do_not_fit_are_refused_before_training() -> None:
    for kind in ("kl", "cosine"):
        with pytest.raises(CompressError, match=r"\[4, 5\].*\[4, 6\].*needs equal shapes"):
            value(term(kind), rand(4, 5), rand(4, 6))
    with pytest.raises(CompressError, match=r"'layers\.9' of the student, which has"):
        value(term("cosine", student="layers.9", teacher="output"), rand(4, 5), rand(4, 5))
    with pytest.raises(CompressError, match="expected int64"):
        value(term("labels"), rand(4, 5), rand(4, 5), label=torch.zeros(4, 5))
    with pytest.raises(CompressError, match="labels reach from 0 to 5, but the student has 5"):
        value(term("labels"), rand(2, 5), rand(2, 5), label=torch.tensor([0, 5]))
    with pytest.raises(CompressError, match="batches of 2 or more"):
        value(term("similarity"), rand(1, 5), rand(1, 5))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (torch.tensor([0, 5]), "term 'labels': labels reach from 0 to 5, but the student has 5"),
        (torch.tensor([-100, 1]), "labels reach from -100 to 1, but the student has 5"),
        (torch.tensor([0, 1, 2]), r"labels are torch.int64 \[3\], expected int64 \[2\]"),
        (torch.tensor([0.0, 1.0]), r"labels are torch.float32 \[2\], expected int64 \[2\]"),
    ],
)
def test_labels_of_a_later_batch_are_checked_too(label: Tensor, message: str) -> None:
    tried, outputs = term("labels"), {"output": rand(2, 5)}
    tried.prepare(outputs, {}, {"label": torch.tensor([0, 4])})
    with pytest.raises(CompressError, match=message):
        tried(outputs, {}, {"label": label})


def test_labels_of_sequences_may_have_any_length_but_no_unknown_class() -> None:
    tried = term("labels")
    assert not tried.refuses({"label": np.array([7])}), "the classes are not known yet"
    tried.prepare({"output": rand(2, 3, 5)}, {}, {"label": torch.zeros(2, 3, dtype=torch.int64)})
    assert not tried.refuses({"label": np.array([[0, 1, 2, 3, 4, 4]])})
    assert tried.refuses({"label": np.array([[0, 5]])}).startswith("labels reach from 0 to 5")


def test_every_term_says_where_it_comes_from_and_can_be_built() -> None:
    needed = {"self_attention": {"student_keys": "k"}}
    for kind, cls in REGISTRY.items():
        assert term(kind, **needed.get(kind, {})).name == kind
        assert cls.__doc__
