"""What the harvested sentences promise: prose, the same every time, and none both trained and tested on."""

from __future__ import annotations

import pytest

from examples.sentences import corpus as sentences


def test_prose_is_kept_and_code_tables_and_fragments_are_not() -> None:
    text = """Return the sum of all the given numbers. See :func:`~torch.sum` for what ``None`` does.

    Parameters
    ----------
    x : array_like
        The numbers that are to be added.

    >>> add(1, 2) and then some more words.

    too short. and this one does not begin with a capital letter.
    """
    assert list(sentences.sentences(text)) == [
        "Return the sum of all the given numbers.",
        "See torch.sum for what None does.",
    ]


def test_training_and_held_out_sentences_never_meet() -> None:
    found = sentences.corpus(training=["rich"], held_out=["typer", "jinja2"])
    assert found == sentences.corpus(training=["rich"], held_out=["typer", "jinja2"])
    assert len(found.held_out) == sentences.HELD_OUT_COUNT
    assert len(found.training) > 300
    key = sentences._key
    assert not {key(t) for t in found.training} & {key(t) for t in found.held_out}
    assert len({key(t) for t in found.training}) == len(found.training)
    assert set(found.sources) == {"rich", "typer", "jinja2"}
    with pytest.raises(ValueError, match="a package can only be one"):
        sentences.corpus(training=["rich"], held_out=["rich"])
