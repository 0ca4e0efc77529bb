"""The trimodal example: honest splits, faults that are faults, and an application that copes."""

from __future__ import annotations

import difflib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import edgemp
from edgemp.errors import EnrolError, NetworkError
from examples.trimodal import compact, corrupt, models, samples, speech, texts, train
from examples.trimodal.data import MODALITIES, Pool, pool, trios
from examples.trimodal.functions import PAD, TEXT_LENGTH, VOCABULARY, answer, characters
from examples.trimodal.networks import ENCODERS
from examples.trimodal.scans import FORM_STARTS, FORMS, load, scans
from examples.trimodal.splits import CLASSES, SPLITS

PIPELINE = Path(__file__).parents[2] / "examples" / "trimodal" / "pipeline.yaml"
needs_speech = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="espeak-ng is not installed: make deps-speech"
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tests run in a process per core: threads that wait for a core of their own take far longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_forms_begin_where_the_copied_sequence_begins_anew() -> None:
    _, digits = load()
    text = "".join(map(str, digits))
    assert FORM_STARTS[0] == 0
    assert FORM_STARTS[-1] == len(text)
    first = text[: FORM_STARTS[1]]
    for start, end in itertools.pairwise(FORM_STARTS):
        assert difflib.SequenceMatcher(None, first, text[start:end], autojunk=False).ratio() > 0.95


def test_no_form_voice_or_phrase_is_in_two_splits() -> None:
    forms = [form for split in SPLITS for form in FORMS[split]]
    assert sorted(forms) == list(range(len(FORM_STARTS) - 1))
    assert forms == sorted(forms)  # runs of neighbours: a writer with two forms is seldom split
    assert sum(len(scans(split)[1]) for split in SPLITS) == FORM_STARTS[-1]
    voices = speech.speakers()
    said = [voice for split in SPLITS for voice in voices[split]]
    assert sorted(said) == sorted(speech.VOICES)
    for split in SPLITS:
        families = {voice.rstrip("0123456789") for voice in voices[split] if len(voice) > 2}
        for other in set(SPLITS) - {split}:
            assert not families & {v.rstrip("0123456789") for v in voices[other] if len(v) > 2}
    phrases = [phrase for split in SPLITS for phrase in texts.CARRIERS[split]]
    assert len(phrases) == len(set(phrases))


@needs_speech
def test_a_voice_says_the_same_samples_every_time_and_a_voice_that_is_none_is_refused() -> None:
    call = ("-v", "en-us+m3", "-s", "150", "-p", "50", "--stdout", "seven")
    wave = speech._say(call)
    assert wave.shape == (speech.LENGTH,)
    assert np.array_equal(wave, speech._say(call))
    assert 0.85 < np.abs(wave).max() / 32767 < 0.95
    assert 0.2 < np.flatnonzero(wave)[-1] / speech.RATE_HZ < 1.0
    with pytest.raises(speech.SpeechMissingError, match=r"espeak-ng 1\.51"):
        speech._say(("-v", "no-such-language", "seven"))


def test_without_espeak_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(speech.SpeechMissingError, match="make deps-speech"):
        speech._say(("seven",))


def test_at_full_severity_nothing_of_the_digit_is_left() -> None:
    rng = np.random.default_rng(0)
    image = scans("test")[0][5]
    wave = np.sin(np.arange(8000) / 7).astype(np.float32)
    for image_fault in corrupt.IMAGE_FAULTS:
        rows = np.stack([image_fault(image, 1.0, rng) for _ in range(60)]).reshape(60, -1)
        alike = [np.corrcoef(row, image.reshape(-1))[0, 1] for row in rows if row.std() > 1e-3]
        assert abs(np.mean(alike or [0.0])) < 0.1
    for audio_fault in corrupt.AUDIO_FAULTS:
        found = audio_fault(wave, 1.0, rng)
        assert found.dtype == np.float32
        assert abs(float(found @ wave)) < 0.1 * float(wave @ wave)
    for text_fault in corrupt.TEXT_FAULTS:
        assert "seven" not in text_fault("seven", 1.0, rng)


def test_at_no_severity_a_fault_changes_little() -> None:
    rng = np.random.default_rng(0)
    image, wave = scans("test")[0][5], np.sin(np.arange(8000) / 7).astype(np.float32)
    for image_fault in corrupt.IMAGE_FAULTS:
        assert np.abs(image_fault(image, 0.0, rng) - image).max() < 0.2
    for audio_fault in corrupt.AUDIO_FAULTS:
        assert np.corrcoef(audio_fault(wave, 0.0, rng), wave)[0, 1] > 0.999
    for text_fault in corrupt.TEXT_FAULTS:
        assert text_fault("seven", 0.0, rng) == "seven"


@given(st.text(max_size=40))
def test_any_text_becomes_numbers_the_encoder_knows(text: str) -> None:
    ids = characters(text=text)["ids"]
    assert ids.shape == (1, TEXT_LENGTH)
    assert ids.dtype == np.int64
    assert ((ids >= 0) & (ids < VOCABULARY)).all()
    assert (ids[0, len(text.lower()) :] == PAD).all()


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 1), st.integers(0, 99))
def test_trios_are_of_one_digit_and_fail_at_their_rate(rate: float, seed: int) -> None:
    digits = np.arange(200) % CLASSES
    pools = {m: Pool(np.zeros(200), digits) for m in MODALITIES}
    rates = {"image": rate, "audio": 0.0, "text": 1.0}
    rng = np.random.default_rng(seed)
    rows, wanted, failed = trios(pools, pools, size=600, rates=rates, rng=rng, digits=[1, 4, 7])
    assert set(wanted) == {1, 4, 7}
    for m, name in enumerate(MODALITIES):
        assert (digits[rows[name] % 200] == wanted).all()
        assert ((rows[name] >= 200) == failed[:, m]).all()
        assert failed[:, m].mean() == pytest.approx(rates[name], abs=0.1)


def test_an_answer_adds_up() -> None:
    logits = np.array([[0.0] * 7 + [900.0, 0.0, 0.0]], np.float32)
    found = answer(logits=logits, weights=np.array([[0.0, 1.0, 0.0]], np.float32))
    assert found["digit"] == 7
    assert found["probabilities"].sum() == pytest.approx(1.0)
    found = answer(logits=logits, weights=np.zeros((1, 3), np.float32))
    assert found["digit"] is None
    assert found["probabilities"].tolist() == pytest.approx([0.1] * 10)


def test_training_twice_with_one_seed_gives_the_same_weights() -> None:
    drawn = pool("text", "train", size=256, faulty=False, seed=3)
    effort = train.Effort(256, {"text": 1}, 1)
    first, again = (train.train_encoder("text", drawn, effort, 5)[0] for _ in range(2))
    other = train.train_encoder("text", drawn, effort, 6)[0]
    weights = [torch.cat([p.flatten() for p in e.parameters()]) for e in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_narrow_encoder_is_smaller_and_learns_to_answer_as_its_teacher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = pool("text", "train", size=512, faulty=False, seed=3)
    unseen = torch.from_numpy(pool("text", "validation", size=200, faulty=False, seed=3).inputs)
    torch.manual_seed(0)
    teacher = ENCODERS["text"]().eval()
    monkeypatch.setattr(models, "encoder", lambda modality: teacher)
    narrow = compact.student("text", drawn.inputs, 100, 0)
    sizes = [sum(p.numel() for p in module.parameters()) for module in (teacher, narrow)]
    assert sizes[1] < 0.35 * sizes[0]
    with torch.inference_mode():
        expected, found = teacher(unseen), narrow(unseen)
    assert float((found - expected).square().mean() / expected.var()) < 0.2


@pytest.mark.parametrize("share", [0.25, 0.5, 0.7, 1.0])
def test_networks_of_any_width_fit_into_the_pipeline(share: float) -> None:
    image, audio = torch.rand(2, 1, 8, 8), torch.rand(2, speech.LENGTH)
    ids = torch.zeros(2, TEXT_LENGTH, dtype=torch.int64)
    rows = [
        ENCODERS[m](share).eval()(x) for m, x in zip(MODALITIES, (image, audio, ids), strict=True)
    ]
    found = models.Fusion(share).eval()(*rows, torch.ones(2, 3), torch.zeros(2, 3))
    assert found["logits"].shape == (2, CLASSES)
    assert all(torch.isfinite(values).all() for values in found.values())


def test_without_weights_the_networks_say_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(models, "WEIGHTS", tmp_path / "none.npz")
    models._weights.cache_clear()
    with pytest.raises(NetworkError, match="make trimodal"):
        models.vision()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, stage_cache: Path) -> Path:
    """The example, trained for some seconds and compiled for one engine."""
    folder = tmp_path_factory.mktemp("trimodal")
    effort = train.Effort(1200, {"image": 12, "audio": 7, "text": 12}, 300)
    patch = pytest.MonkeyPatch()
    with patch.context() as during:
        during.setattr(models, "WEIGHTS", folder / "weights.npz")
        during.setenv("TRIMODAL_WEIGHTS", str(folder / "weights.npz"))
        train.save(train.train(0, effort), models.WEIGHTS)
        models._weights.cache_clear()
        edgemp.compile(
            PIPELINE,
            folder / "trimodal.edgemp",
            cache=stage_cache,
            backends=["onnxruntime"],
            precisions=["fp32"],
        )
    models._weights.cache_clear()
    return folder / "trimodal.edgemp"


@pytest.fixture
def app(bundle: Path) -> Iterator[Any]:
    with edgemp.load(bundle) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Any]]:
    """Sixty whole steps of writers, voices and phrases that training never saw."""
    pools = {m: pool(m, "test", size=200, faulty=False, seed=4) for m in MODALITIES}
    rates = dict.fromkeys(MODALITIES, 0.0)
    rows, digits, _ = trios(pools, pools, size=60, rates=rates, rng=np.random.default_rng(4))
    return [
        {
            **{m: samples.signal(m, pools[m], pools[m], int(rows[m][i])) for m in MODALITIES},
            "digit": int(digit),
        }
        for i, digit in enumerate(digits)
    ]


def right(app: Any, steps: list[dict[str, Any]], names: tuple[str, ...]) -> float:
    """Share of steps answered rightly from the signals `names`, five seconds apart."""
    app.reset()
    found = []
    for i, step in enumerate(steps):
        result = app.step({name: step[name] for name in names}, t=5.0 * i)
        assert result["presence"].value[0].tolist() == [float(m in names) for m in MODALITIES]
        assert (result["weights"].value[0][[m not in names for m in MODALITIES]] == 0).all()
        found.append(result["digit"].value == step["digit"])
    return float(np.mean(found))


@needs_speech
def test_the_application_answers_from_any_modalities_that_are_there(
    app: Any, steps: list[dict[str, Any]]
) -> None:
    assert right(app, steps, MODALITIES) >= 0.95
    for missing in MODALITIES:
        assert right(app, steps, tuple(m for m in MODALITIES if m != missing)) >= 0.85
    for only in MODALITIES:
        assert right(app, steps, (only,)) >= 0.6
    result = app.step(t=1e6)
    assert result["digit"].value is None
    assert not result["presence"].value.any()


@needs_speech
def test_a_modality_that_falls_silent_fades_out(app: Any, steps: list[dict[str, Any]]) -> None:
    step = {m: steps[0][m] for m in MODALITIES}
    app.step(step, t=0.0)
    weights, ages = [], []
    for t in (0.2, 0.5, 0.8):
        result = app.step(image=step["image"], text=step["text"], t=t)
        weights.append(float(result["weights"].value[0, 1]))
        ages.append(result["digit"].age_ms)
    assert weights == sorted(weights, reverse=True)
    assert weights[0] > weights[-1]
    assert ages == pytest.approx([200.0, 500.0, 800.0])
    assert app.step(image=step["image"], text=step["text"], t=1.5)["weights"].value[0, 1] == 0


@needs_speech
def test_attribution_is_the_answer_without_the_modality(
    app: Any, steps: list[dict[str, Any]]
) -> None:
    step = {m: steps[1][m] for m in MODALITIES}
    found = app.attribute(step)
    for m in MODALITIES:
        rest = {name: value for name, value in step.items() if name != m}
        app.reset()
        expected = app.step(rest, t=0.0)["probabilities"].value
        without = found[m]["probabilities"].without.value
        np.testing.assert_allclose(without, expected, atol=1e-6)
        assert found[m]["probabilities"].distance > 0


@needs_speech
def test_a_class_is_enrolled_on_the_loaded_application_and_recognised(
    app: Any, steps: list[dict[str, Any]], tmp_path: Path
) -> None:
    """One of the ten is forgotten and comes back under a new name, from five samples."""
    store = app.function("recognise")
    assert store.labels == tuple(str(digit) for digit in range(CLASSES))
    store.forget("4")
    fours = [step for step in steps if step["digit"] == 4]
    new = [{m: step[m] for m in MODALITIES} for step in fours]
    seen = [app.step(step, t=5.0 * i) for i, step in enumerate(new)]
    assert all(result["label"].value != "four!" for result in seen)
    store.enrol("four!", np.concatenate([result["embedding"].value for result in seen[:5]]))
    app.reset()
    again = [app.step(step, t=5.0 * i)["label"].value for i, step in enumerate(new)]
    assert np.mean([label == "four!" for label in again]) >= 0.8
    store.save(tmp_path / "classes.npz")
    store.forget("four!")
    store.load(tmp_path / "classes.npz")
    assert "four!" in store.labels
    with pytest.raises(EnrolError, match="belong to different networks"):
        store.enrol("five", np.ones((5, 3)))
