"""The AR subtitle example's host steps, networks and metrics do what they promise."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.ar_subtitle import functions, metrics, models, truth
from examples.ar_subtitle.functions import (
    ReadText,
    Tokenize,
    Translate,
    decode_boxes,
    parse_phrasebook,
)
from examples.ar_subtitle.scene import scene

PHRASES = parse_phrasebook(models.phrasebook())
ALPHABET = "abcdefgh"
FRAME = np.full((720, 960, 3), 90, np.uint8)


def test_the_phrasebook_has_unique_short_phrases_with_chinese_translations() -> None:
    english = [e.casefold() for e, _ in PHRASES]
    chinese = [c for _, c in PHRASES]
    assert len(PHRASES) >= 200
    assert len(set(english)) == len(set(chinese)) == len(PHRASES)
    for e, c in PHRASES:
        assert e == e.strip()
        assert len(e) <= 28
        assert e.isascii()
        assert any("\u4e00" <= character <= "\u9fff" for character in c)


def test_a_phrasebook_line_without_a_tab_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_phrasebook(b"Exit\t\xe5\x87\xba\xe5\x8f\xa3\nEntrance")


def blob(x: float, y: float, width: float, height: float, angle: float) -> np.ndarray:
    """A probability map, float32 [1, 1, 480, 640], that is 0.95 inside one rectangle."""
    heat = np.zeros((480, 640), np.float32)
    corners = cv2.boxPoints(((x, y), (width, height), angle))
    cv2.fillPoly(heat, [np.rint(corners).astype(np.int32)], 0.95)
    return heat[None, None]


@settings(max_examples=40, deadline=None)
@given(
    st.floats(120, 520), st.floats(80, 400), st.floats(60, 160), st.floats(10, 30), st.floats(-8, 8)
)
def test_a_rectangle_is_found_where_it_is_and_grown_by_the_unclip_ratio(
    x: float, y: float, width: float, height: float, angle: float
) -> None:
    found = decode_boxes(probability=blob(x, y, width, height, angle), frame=FRAME)
    (box,) = found["boxes"]
    scale = 960 / 640
    np.testing.assert_allclose(box.mean(axis=0), (x * scale, y * scale), atol=2.5)
    # Rasterising and the 2x2 dilation make the blob up to 3 px larger, never smaller by one.
    for slack, at_least in ((-1, True), (3, False)):
        wide, high = width + slack, height + slack
        grown = wide * high * 1.6 / (wide + high)
        sides = math.dist(box[0], box[1]) / scale, math.dist(box[0], box[3]) / scale
        for side, bound in zip(sides, (wide + grown, high + grown), strict=True):
            assert side >= bound if at_least else side <= bound
    assert box[0, 0] < box[1, 0]
    assert box[3, 0] < box[2, 0]
    assert box[0, 1] < box[3, 1]
    assert box[1, 1] < box[2, 1]


def test_a_map_without_text_gives_empty_arrays_of_the_right_shape() -> None:
    found = decode_boxes(probability=np.zeros((1, 1, 480, 640), np.float32), frame=FRAME)
    assert found["boxes"].shape == (0, 4, 2)
    assert found["boxes"].dtype == np.float32
    assert found["crops"].shape == (0, 48, 320, 3)
    assert found["crops"].dtype == np.uint8


def test_a_faint_blob_is_no_text() -> None:
    heat = blob(300, 200, 100, 20, 0)
    assert len(decode_boxes(probability=heat * 0.6, frame=FRAME)["boxes"]) == 0
    assert len(decode_boxes(probability=heat * 0.6, frame=FRAME, min_score=0.5)["boxes"]) == 1


def test_boxes_come_in_reading_order_and_the_best_ones_survive_a_flood() -> None:
    spots = [(400, 300), (150, 100), (450, 101), (150, 300)]
    heat = np.max([blob(x, y, 90, 16, 0) for x, y in spots], axis=0)
    centres = decode_boxes(probability=heat, frame=FRAME)["boxes"].mean(axis=1) / 1.5
    expected = [(150, 100), (450, 101), (150, 300), (400, 300)]
    np.testing.assert_allclose(centres, expected, atol=2)
    heat[..., 250:, 320:] *= 0.8
    kept = decode_boxes(probability=heat, frame=FRAME, max_boxes=3)["boxes"].mean(axis=1) / 1.5
    np.testing.assert_allclose(kept, expected[:3], atol=2)


def test_a_crop_is_upright_at_its_own_aspect_and_grey_to_the_right() -> None:
    # Left half of the text red, right half blue, turned by 10 degrees.
    frame = np.zeros_like(FRAME)
    turn = cv2.getRotationMatrix2D((450, 300), 10, 1)
    flat = frame.copy()
    flat[200:400, 200:450] = (0, 0, 255)
    flat[200:400, 450:700] = (255, 0, 0)
    frame = cv2.warpAffine(flat, turn, (960, 720))
    found = decode_boxes(probability=blob(300, 200, 100, 20, -10), frame=frame)
    box, crop = found["boxes"][0], found["crops"][0]
    width = math.ceil(48 * math.dist(box[0], box[1]) / math.dist(box[0], box[3]))
    assert 100 < width < 200
    assert (crop[:, width + 2 :] == functions.PAD).all()
    assert (crop[:, : width // 2 - 4] == (0, 0, 255)).all()
    assert (crop[:, width // 2 + 4 : width - 2] == (255, 0, 0)).all()


def test_text_longer_than_the_window_is_squeezed_not_cut() -> None:
    frame = FRAME.copy()
    frame[:, 800:] = (0, 0, 255)
    found = decode_boxes(probability=blob(320, 200, 580, 16, 0), frame=frame)
    crop = found["crops"][0]
    assert (crop[:, :200] == 90).all()
    assert (crop[:, 310:] == (0, 0, 255)).all()


def path(text: str, spaced: bool) -> np.ndarray:
    """Probabilities float32 [T, 10] of a CTC path that spells `text`, each step at 0.75."""
    classes = " " + ALPHABET
    steps: list[int] = []
    for previous, character in zip(" " + text, text, strict=False):
        number = len(ALPHABET) + 1 if character == " " else classes.index(character)
        steps += [0] * (spaced or (previous == character)) + [number] * (1 + spaced)
    probabilities = np.full((max(len(steps), 1), len(ALPHABET) + 2), 0.02, np.float32)
    probabilities[np.arange(len(steps)), steps] = 0.75
    if not steps:
        probabilities[0, 0] = 0.75
    return probabilities


@given(st.text(ALPHABET + " ", max_size=20), st.booleans())
def test_a_ctc_path_reads_as_the_text_it_spells(text: str, spaced: bool) -> None:
    read = ReadText(characters="\n".join(ALPHABET).encode())
    # A leading space has no "previous" of its own to be separated from.
    text = text.strip()
    result = read(probabilities=path(text, spaced)[None])
    assert result["texts"] == [text]
    assert result["confidences"].dtype == np.float32
    assert result["confidences"][0] == pytest.approx(0.75 if text else 0.0)


def test_no_lines_read_as_no_texts() -> None:
    read = ReadText(characters="\n".join(ALPHABET).encode())
    result = read(probabilities=np.zeros((0, 40, 10), np.float32))
    assert result["texts"] == []
    assert result["confidences"].shape == (0,)


def test_a_dictionary_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="different models"):
        ReadText(characters=b"a\nb")(probabilities=np.zeros((1, 4, 10), np.float32))


def test_the_dictionary_fits_the_recogniser() -> None:
    assert len(models.characters().decode().split("\n")) + 2 == 18710


def test_tokens_are_padded_to_one_length() -> None:
    tokenize = Tokenize(tokenizer=models.tokenizer())
    tokens = tokenize(texts=["Exit", "Where is the toilet " * 20])
    assert tokens["input_ids"].shape == tokens["attention_mask"].shape == (2, 32)
    assert tokens["input_ids"].dtype == tokens["attention_mask"].dtype == np.int64
    assert tokens["attention_mask"].sum(axis=1).tolist() == [3, 32]
    assert tokens["input_ids"][0, :3].tolist() == [101, 6164, 102]
    assert tokenize(texts=[])["input_ids"].shape == (0, 32)


def embed(texts: list[str]) -> np.ndarray:
    """float32 [N, 384] from the original sentence encoder."""
    import torch

    tokens = Tokenize(tokenizer=models.tokenizer())(texts=texts)
    with torch.inference_mode():
        ids, mask = (torch.from_numpy(tokens[name]) for name in ("input_ids", "attention_mask"))
        return models.minilm()(ids, mask).numpy()


def translator(min_similarity: float = 0.6) -> Translate:
    return Translate(
        phrasebook=models.phrasebook(),
        embeddings=models.phrase_embeddings(),
        min_similarity=min_similarity,
    )


def test_every_phrase_translates_to_its_own_chinese() -> None:
    rows = np.load(io.BytesIO(models.phrase_embeddings()))
    texts = [english for english, _ in PHRASES]
    boxes = np.zeros((len(texts), 4, 2), np.float32)
    shown = translator()(sentence_embeddings=rows, texts=texts, boxes=boxes)["subtitles"]
    assert [(s.english, s.chinese) for s in shown] == PHRASES
    assert min(s.similarity for s in shown) > 0.999


def test_a_misread_sign_still_translates_and_a_stranger_does_not() -> None:
    texts = ["Mecting room", "quantum chromodynamics", ""]
    boxes = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    shown = translator()(sentence_embeddings=embed(texts), texts=texts, boxes=boxes)["subtitles"]
    assert [(s.source, s.chinese) for s in shown] == [("Mecting room", "会议室")]
    assert shown[0].box == ((0.0, 1.0), (2.0, 3.0), (4.0, 5.0), (6.0, 7.0))


def test_a_broken_embedding_or_no_text_shows_nothing() -> None:
    broken = np.full((1, 384), np.nan, np.float32)
    one_box = np.zeros((1, 4, 2), np.float32)
    assert translator()(sentence_embeddings=broken, texts=["Exit"], boxes=one_box) == {
        "subtitles": []
    }
    assert translator()(sentence_embeddings=broken[:0], texts=[], boxes=one_box[:0]) == {
        "subtitles": []
    }


def test_embeddings_of_another_phrasebook_are_refused() -> None:
    with pytest.raises(ValueError, match="compute them again"):
        Translate(phrasebook="Exit\t出口".encode(), embeddings=models.phrase_embeddings())


def test_similar_sentences_are_closer_than_different_ones() -> None:
    toilet, bathroom, soup = embed(["Where is the toilet?", "Where can I find a bathroom?", "Soup"])
    assert np.linalg.norm(toilet) == pytest.approx(1, abs=1e-5)
    assert toilet @ bathroom > 0.6
    assert toilet @ soup < 0.4


def test_padding_does_not_change_a_sentence() -> None:
    import torch

    encoder = models.minilm()
    short = Tokenize(tokenizer=models.tokenizer(), length=8)(texts=["Mind the gap"])
    long = Tokenize(tokenizer=models.tokenizer(), length=32)(texts=["Mind the gap"])
    with torch.inference_mode():
        rows = [
            encoder(torch.from_numpy(t["input_ids"]), torch.from_numpy(t["attention_mask"])).numpy()
            for t in (short, long)
        ]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


def test_the_sentence_encoder_exports_with_attention_whole() -> None:
    import onnxruntime
    import torch

    tokens = Tokenize(tokenizer=models.tokenizer())(texts=["Keep right"])
    program = torch.onnx.export(
        models.minilm(),
        tuple(torch.from_numpy(array) for array in tokens.values()),
        dynamo=True,
        opset_version=23,
        input_names=list(tokens),
        output_names=["sentence_embeddings"],
        verbose=False,
    )
    nodes = [node.op_type for node in program.model_proto.graph.node]
    assert nodes.count("Attention") == 6
    assert not {"IsNaN", "Where"} & set(nodes)
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_allclose(session.run(None, tokens)[0], embed(["Keep right"]), atol=1e-5)


def test_the_original_networks_read_nearly_every_caption() -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    detector, recogniser = (
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for path in (models.detector(), models.recogniser())
    )
    read = ReadText(characters=models.characters())
    filmed = scene()
    middles = {(c.start + c.end) // 2 for c in filmed.captions}
    records = []
    for index, _, frame in filmed.frames(sorted(middles)[:10]):
        small = cv2.resize(frame, (640, 480)).astype(np.float32) / 127.5 - 1
        heat = detector.run(None, {"x": small.transpose(2, 0, 1)[None]})[0]
        found = decode_boxes(probability=heat, frame=frame)
        lines = found["crops"].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        texts = read(probabilities=recogniser.run(None, {"x": lines})[0])["texts"]
        records.append(truth.Record(index, texts, found["boxes"]))
    assert truth.character_accuracy(filmed, records) > 0.98


def test_the_device_side_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, examples.ar_subtitle.functions\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def one(array: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [{"output": array}]


def test_a_detector_that_sees_the_same_scores_one_and_half_the_text_scores_half() -> None:
    whole, half = blob(300, 200, 100, 20, 0), blob(300, 200, 100, 20, 0)
    half[..., 300:] = 0
    empty = np.zeros_like(whole)
    assert metrics.mask_iou(one(whole), one(whole), []) == 1.0
    assert metrics.mask_iou(one(empty), one(empty), []) == 1.0
    assert metrics.mask_iou(one(whole), one(half), []) == pytest.approx(0.5, abs=0.02)
    assert metrics.mask_iou(one(whole), one(empty), []) == 0.0
    assert metrics.mask_iou(one(whole) + one(empty), one(empty) * 2, []) == 0.5


def test_one_wrong_character_in_eight_costs_an_eighth() -> None:
    right, wrong = path("abcdefgh", True)[None], path("abcdefgg", True)[None]
    assert metrics.same_text(one(right), one(right), []) == 1.0
    assert metrics.same_text(one(right), one(wrong), []) == pytest.approx(7 / 8)
    assert metrics.same_text(one(right), one(path("", True)[None]), []) == 0.0


def test_a_sentence_that_lands_on_another_phrase_does_not_agree() -> None:
    rows = np.load(io.BytesIO(models.phrase_embeddings()))[:4]
    swapped = rows[[0, 1, 3, 2]]
    nan = np.where(np.arange(4)[:, None] == 0, np.nan, rows)
    assert metrics.same_phrase(one(rows), one(rows), []) == 1.0
    assert metrics.same_phrase(one(rows), one(swapped), []) == 0.5
    assert metrics.same_phrase(one(rows), one(nan), []) == 0.75


def test_a_metric_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        metrics.mask_iou([], [], [])
