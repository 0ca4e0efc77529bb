"""Few-shot classes on the device: enrol from a few embeddings, recognise, save and load.

Needs numpy only, and nothing is recompiled: the network gives an embedding, the classes live here.

    functions:
      recognise:
        function: edgemp.runtime.prototypes:Prototypes
        inputs: {embedding: fusion.embedding}
        outputs: [label, similarity, known]
        assets: {prototypes: examples.trimodal.models:prototypes}

    with edgemp.load("app.edgemp") as app:
        classes = app.function("recognise")
        classes.enrol("ten", embeddings)     # float32 [5..15, D], from the result of a few steps
        classes.save("prototypes.npz")

A class is the mean of its unit-length embeddings (Snell et al., arXiv 1703.05175), without the few
that lie far from the others.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemp.bundle.atomic import replace_file
from edgemp.errors import EnrolError, InputError
from edgemp.tensor import Array

Vector = NDArray[np.float32]

FORMAT = 1
"""Version of the file: `format`, `labels` (unicode), `vectors` (float32 [C, D])."""

UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    MemoryError,  # a damaged header may announce any size
    RuntimeError,  # zipfile's for "encrypted" and for unknown compressions
    SyntaxError,  # numpy's for a damaged header
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise on a damaged file."""

OUTLIER_MADS = 4.0
"""A sample further from the class's centre than that many median absolute deviations is left out."""

LONGEST_LABEL = 200


class Prototypes:
    """Named classes in an embedding space; a host function and, loaded, a store to enrol into."""

    def __init__(self, *, prototypes: bytes = b"", min_similarity: float = -1.0) -> None:
        """
        Args:
            prototypes: what `dump` returned; empty for no classes yet.
            min_similarity: cosine below which the nearest class is not `known`.

        Raises:
            EnrolError: `prototypes` is damaged, or the bound is outside -1..1.
        """
        if not -1.0 <= min_similarity <= 1.0:
            raise EnrolError(f"min_similarity must lie in -1..1, got {min_similarity!r}")
        self._min_similarity = float(min_similarity)
        self._labels: tuple[str, ...] = ()
        self._vectors: Vector = np.zeros((0, 0), np.float32)
        if prototypes:
            self.restore(prototypes)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of enrolment."""
        return self._labels

    @property
    def vectors(self) -> Mapping[str, Vector]:
        """Each class's prototype, float32 [D], unit length, read-only."""
        view = self._vectors.view()
        view.flags.writeable = False
        return MappingProxyType(dict(zip(self._labels, view, strict=True)))

    def __call__(self, *, embedding: Array) -> dict[str, Any]:
        """The nearest class of one embedding.

        Args:
            embedding: float [1, D] or [D], of any length other than 0.

        Returns:
            `label` (str, "" without any class or for an embedding that is not finite), `similarity`
            (cosine, float) and `known` (bool).

        Raises:
            InputError: another width than the prototypes'.
        """
        vector = np.asarray(embedding, np.float32).reshape(-1)
        if not self._labels:
            return {"label": "", "similarity": -1.0, "known": False}
        if vector.size != self._vectors.shape[1]:
            raise InputError(
                f"the embedding has {vector.size} numbers, the prototypes have "
                f"{self._vectors.shape[1]}: they belong to different networks"
            )
        norm = float(np.linalg.norm(vector))
        if not (np.isfinite(norm) and norm > 0):
            return {"label": "", "similarity": -1.0, "known": False}
        similarity = self._vectors @ (vector / norm)
        best = int(similarity.argmax())
        score = float(similarity[best])
        return {
            "label": self._labels[best],
            "similarity": score,
            "known": score >= self._min_similarity,
        }

    def enrol(self, label: str, embeddings: Array, *, replace: bool = False) -> int:
        """Add a class from its samples' embeddings, and return how many of them were used.

        Args:
            label: 1 to 200 characters.
            embeddings: float [N, D], N >= 1 (5 to 15 are usual), of any length other than 0.
            replace: whether a class of that name may be overwritten.

        Raises:
            EnrolError: the name is taken or no name, or the embeddings are not usable; nothing has
                changed then.
        """
        if not isinstance(label, str) or not 0 < len(label) <= LONGEST_LABEL:
            raise EnrolError(f"a label has 1 to {LONGEST_LABEL} characters, got {label!r:.80}")
        if label in self._labels and not replace:
            raise EnrolError(f"{label!r} is enrolled already; pass replace=True to overwrite it")
        vector, used = _centre(label, embeddings)
        if self._labels and vector.size != self._vectors.shape[1]:
            raise EnrolError(
                f"{label!r}: embeddings have {vector.size} numbers, the classes enrolled before "
                f"{self._vectors.shape[1]}: they belong to different networks"
            )
        kept = [i for i, known in enumerate(self._labels) if known != label]
        rows = [self._vectors[i] for i in kept]
        self._vectors = np.stack([*rows, vector])
        self._labels = (*(self._labels[i] for i in kept), label)
        return used

    def forget(self, label: str) -> None:
        """Remove a class.

        Raises:
            EnrolError: there is none of that name.
        """
        if label not in self._labels:
            raise EnrolError(
                f"{label!r} is not enrolled; classes are: {', '.join(self._labels) or 'none'}"
            )
        kept = [i for i, known in enumerate(self._labels) if known != label]
        self._labels = tuple(self._labels[i] for i in kept)
        self._vectors = self._vectors[kept]

    def dump(self) -> bytes:
        """All classes as the bytes of an .npz file without pickle."""
        file = io.BytesIO()
        np.savez(
            file,
            format=np.int64(FORMAT),
            labels=np.array(self._labels, dtype=np.str_),
            vectors=self._vectors,
        )
        return file.getvalue()

    def restore(self, content: bytes) -> None:
        """Replace all classes by those of `dump`.

        Raises:
            EnrolError: saying what is wrong with the content; nothing has changed then.
        """
        self._labels, self._vectors = _parsed(content)

    def save(self, path: str | Path) -> None:
        """Write `dump` to a file; an interrupted write leaves the old file.

        Raises:
            EnrolError: the file cannot be written.
        """
        try:
            replace_file(Path(path), [self.dump()])
        except Exception as error:
            raise EnrolError(f"prototypes: {error}") from error

    def load(self, path: str | Path) -> None:
        """Replace all classes by those of a file that `save` wrote.

        Raises:
            EnrolError: the file cannot be read or is damaged; nothing has changed then.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise EnrolError(f"{path}: cannot be read: {error.strerror or error}") from error
        try:
            self.restore(content)
        except EnrolError as error:
            raise EnrolError(f"{path}: {error}") from None


def _centre(label: str, embeddings: Array) -> tuple[Vector, int]:
    """The unit-length mean of a class's samples, without outliers, and how many it is made of."""
    try:
        rows = np.asarray(embeddings, np.float32)
    except (TypeError, ValueError) as error:
        raise EnrolError(f"{label!r}: embeddings are no array of numbers: {error}") from None
    if rows.ndim == 3 and rows.shape[1] == 1:
        rows = rows[:, 0]  # results of single steps, stacked
    if rows.ndim != 2 or 0 in rows.shape:
        raise EnrolError(
            f"{label!r}: embeddings must be [N, D] with at least one row, got {list(rows.shape)}"
        )
    norms = np.linalg.norm(rows, axis=1)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        raise EnrolError(f"{label!r}: sample {int(bad[0])} is zero, NaN or infinite; leave it out")
    unit = rows / norms[:, None]
    if len(unit) >= 4:  # of three, two cannot outvote one
        # The medoid, not the mean, so that one wild sample cannot hide behind its own pull.
        distance = 1.0 - (unit @ unit.T)[np.argmax((unit @ unit.T).sum(axis=1))]
        typical = float(np.median(distance))
        spread = float(np.median(np.abs(distance - typical)))
        unit = unit[distance <= typical + OUTLIER_MADS * max(spread, 0.01)]
    mean = unit.mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < 1e-3:
        raise EnrolError(
            f"{label!r}: the samples cancel each other out; they do not show one class"
        )
    return (mean / length).astype(np.float32), len(unit)


def _parsed(content: bytes) -> tuple[tuple[str, ...], Vector]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as data:
            version = int(data["format"])
            labels = tuple(str(label) for label in data["labels"])
            vectors = data["vectors"]
    except UNREADABLE as error:
        raise EnrolError(f"not a prototypes file: {error}; enrol again") from None
    if version != FORMAT:
        raise EnrolError(f"prototypes file of format {version}, this edgemp reads {FORMAT}")
    if (
        vectors.ndim != 2
        or vectors.dtype != np.float32
        or len(vectors) != len(labels)
        or len(set(labels)) != len(labels)
        or not np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3)
    ):
        raise EnrolError("prototypes file with vectors that do not fit its labels; enrol again")
    return labels, vectors
