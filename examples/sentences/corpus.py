"""English sentences that installed packages carry in docstrings and READMEs: to train on, and others to test.

Nothing is downloaded. The packages that sentences are held out from are never trained on, and a
sentence that occurs in both is dropped from training. What is found depends on the versions that
are installed; `Corpus.sources` records them.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import random
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TRAINING = ("torch",)
"""Packages whose docstrings are trained on."""

MORE_TRAINING = (*TRAINING, "sympy", "nncf", "openvino", "onnxscript", "tvm", "setuptools", "onnx")
"""For students that must learn the language again, as one of half the depth must."""

HELD_OUT = (
    "numpy",
    "scipy",
    "sklearn",
    "networkx",
    "pydantic",
    "hypothesis",
    "rich",
    "typer",
    "jinja2",
)
"""Packages whose docstrings and READMEs are only ever tested on."""

HELD_OUT_COUNT = 400

FEWEST_WORDS, MOST_WORDS = 5, 60
_MARKUP = re.compile(r":[a-z:]+:`~?([^`<]+)(?:<[^`]*>)?`|[`*]{1,2}([^`*]+)[`*]{1,2}")
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_CODE = re.compile(r">>>|::|---|===|[{}<>|\\=]|https?:|__|\)\(")


@dataclass(frozen=True)
class Corpus:
    """Sentences, and where they come from.

    Attributes:
        training: in the order of files and lines, without repetition.
        held_out: `count` of them, drawn evenly from the packages under a fixed seed.
        sources: package -> version, of all packages read.
    """

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    sources: dict[str, str]


def corpus(
    training: Sequence[str] = TRAINING,
    held_out: Sequence[str] = HELD_OUT,
    count: int = HELD_OUT_COUNT,
) -> Corpus:
    """Harvest both sets; the same packages in the same versions give the same sentences.

    Raises:
        ValueError: if a package would be both trained and tested on.
    """
    both = set(training) & set(held_out)
    if both:
        raise ValueError(f"{sorted(both)}: trained on and held out; a package can only be one")
    tested = _evenly({name: [*docstrings(name), *readme(name)] for name in held_out}, count)
    taken = {_key(text) for text in tested}
    trained = _unique(
        text for name in training for text in docstrings(name) if _key(text) not in taken
    )
    versions = {name: _version(name) for name in (*training, *held_out)}
    return Corpus(tuple(trained), tuple(tested), versions)


def docstrings(package: str) -> list[str]:
    """The sentences of a package's docstrings, in the order of its files' names."""
    found: list[str] = []
    for path in sorted(_folder(package).rglob("*.py")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other people's escape sequences
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                found.extend(sentences(ast.get_docstring(node) or ""))
    return _unique(found)


def readme(package: str) -> list[str]:
    """The sentences of a package's README, as its metadata carries it."""
    distribution = importlib.metadata.distribution(_distribution(package))
    return _unique(sentences(str(distribution.metadata.get_payload())))


def sentences(text: str) -> Iterator[str]:
    """Prose only: paragraphs without code, tables or links, split where a sentence ends."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.splitlines()]
        plain = _MARKUP.sub(lambda m: m.group(1) or m.group(2), " ".join(lines))
        for sentence in _END.split(" ".join(plain.split())):
            words = sentence.split()
            letters = sum(c.isalpha() or c.isspace() for c in sentence)
            if (
                FEWEST_WORDS <= len(words) <= MOST_WORDS
                and sentence[0].isupper()
                and sentence[-1] in ".!?"
                and letters >= 0.85 * len(sentence)
                and not _CODE.search(sentence)
            ):
                yield sentence


def _evenly(by_package: dict[str, list[str]], count: int) -> list[str]:
    """`count` sentences: each package in turn gives one, in an order drawn under seed 0."""
    queues = []
    for texts in by_package.values():
        order = list(texts)
        random.Random(0).shuffle(order)
        queues.append(order)
    drawn: list[str] = []
    keys: set[str] = set()
    while len(drawn) < count and any(queues):
        for queue in queues:
            text = queue.pop() if queue else None
            if text is not None and _key(text) not in keys and len(drawn) < count:
                keys.add(_key(text))
                drawn.append(text)
    return drawn


def _unique(texts: Iterable[str]) -> list[str]:
    return list({_key(text): text for text in texts}.values())


def _key(text: str) -> str:
    """Two sentences that differ in case, digits or punctuation only count as the same."""
    return re.sub(r"[^a-z]+", " ", text.lower()).strip()


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed: run `make deps`", name=package)
    return Path(spec.origin).parent


def _distribution(package: str) -> str:
    return {"sklearn": "scikit-learn", "tvm": "apache-tvm"}.get(package, package)


def _version(package: str) -> str:
    return importlib.metadata.version(_distribution(package))
