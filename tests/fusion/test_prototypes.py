"""The prototype head: the device's numpy agrees with torch, and an episode teaches to enrol."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgemp.errors import FusionError
from edgemp.fusion import GatedFusion, PrototypeHead, episode_loss
from edgemp.runtime.prototypes import Prototypes


def test_the_network_and_the_device_choose_the_same_class_with_the_same_cosine() -> None:
    rng = np.random.default_rng(0)
    store = Prototypes()
    for name in "abcd":
        store.enrol(name, rng.normal(size=(3, 16)) + 2 * rng.normal(size=16))
    head = PrototypeHead(temperature=0.5)
    embeddings = rng.normal(size=(20, 16)).astype(np.float32)
    rows = torch.from_numpy(np.stack(list(store.vectors.values())))
    logits = head(torch.from_numpy(embeddings), rows).detach().numpy()
    for row, embedding in zip(logits, embeddings, strict=True):
        found = store(embedding=embedding)
        assert found["label"] == "abcd"[row.argmax()]
        assert found["similarity"] == pytest.approx(row.max() * 0.5, abs=1e-5)


def test_a_row_of_zeros_is_no_class_and_no_nan() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    logits = PrototypeHead()(torch.tensor([[2.0, 0.0]]), rows)
    torch.testing.assert_close(logits, torch.tensor([[0.0, 10.0]]))


def test_an_episode_costs_little_where_classes_are_apart() -> None:
    labels = torch.arange(3).repeat(6)
    apart, head = 5 * torch.eye(3)[labels], PrototypeHead()
    assert episode_loss(apart, labels, head, support=3) < 1e-3
    alike = episode_loss(torch.ones(18, 3), labels, head, support=3)
    assert alike.item() == pytest.approx(1.0986, abs=1e-3)


def test_an_episode_needs_two_classes_with_queries() -> None:
    with pytest.raises(FusionError, match="needs 2 classes with more than 3 samples"):
        episode_loss(torch.ones(6, 2), torch.tensor([0, 0, 0, 0, 1, 1]), PrototypeHead(), 3)


def test_prototypes_of_another_width_are_refused() -> None:
    with pytest.raises(FusionError, match=r"\[1, 4\] and \[2, 5\]"):
        PrototypeHead()(torch.ones(1, 4), torch.ones(2, 5))


def test_the_embedding_has_a_part_per_modality_and_nothing_of_absent_ones() -> None:
    torch.manual_seed(0)
    fusion = GatedFusion({"a": 4, "b": 6}, 3, 8).eval()
    rows = [torch.randn(1, 4).expand(3, -1), torch.full((3, 6), float("nan"))]
    rows[1][:2] = torch.randn(1, 6)
    presence = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    with torch.inference_mode():
        both, one, none = fusion(rows, presence)["embedding"]
    assert both.shape == (16,)
    torch.testing.assert_close(one[:8], both[:8] / both[:8].norm())
    assert (one[8:] == 0).all()
    assert (none == 0).all()  # its only modality is broken
    assert float(both.norm()) == pytest.approx(1.0)
