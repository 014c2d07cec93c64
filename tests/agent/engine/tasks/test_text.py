"""Texts and bytes become the numbers that a release declares."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.engine.runtimes import CannotRunError
from agent.engine.tasks.text import open_text, words
from agent.engine.tensors import TensorError
from tests import found
from wire.manifest import TensorSpec
from wire.task import TextInput

VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\nun\n##aff\n##able\nrun\n##ning\n!\ncafe\n中\n文\nword\n"


def spec(name: str, width: int, datatype: Any = "INT32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=(-1, width))


def reader(given: TextInput, width: int, vocabulary: str | None = None, **more: Any) -> Any:
    parts = {"tensor": spec("x", width, **more)}
    if given.mask:
        parts["mask"] = spec("mask", width)
    if given.segments:
        parts["segments"] = spec("segments", width)
    return open_text(given, parts, list(parts), vocabulary)


def wordpieces(**more: Any) -> TextInput:
    return TextInput(encoding="wordpiece", vocabulary="v.txt", **more)


def test_bytes_are_themselves_with_padding_behind_the_head_and_before_the_tail() -> None:
    given = TextInput(head=4, tail=3, pad=256)

    short = reader(given, 7).read([b"ab"]).inputs[0]
    long = reader(given, 7).read([b"abcdefghij"]).inputs[0]

    assert short.dtype == np.int32
    assert short.tolist() == [[97, 98, 256, 256, 256, 97, 98]]
    assert long.tolist() == [[97, 98, 99, 100, 104, 105, 106]]


def test_only_a_head_or_only_a_tail_is_enough() -> None:
    assert reader(TextInput(tail=2), 2).read([b"abc"]).inputs[0].tolist() == [[98, 99]]
    assert reader(TextInput(), 4).read([b"abc"]).inputs[0].tolist() == [[97, 98, 99, 0]]


def test_white_space_is_stripped_within_the_block_alone() -> None:
    given = TextInput(head=2, tail=2, block=4, strip=True)

    numbers = reader(given, 4).read([b"   abcdef   "]).inputs[0]

    assert numbers.tolist() == [[97, 0, 0, 102]]


def test_bytes_are_taken_as_the_makers_of_magika_take_them() -> None:
    from magika.magika import Magika
    from magika.types import Seekable

    config = json.loads((found.magika() / "config.min.json").read_text())
    given = TextInput(head=1024, tail=1024, block=4096, strip=True, pad=256)
    files = [Path(__file__), found.magika() / "model.onnx", found.magika() / "config.min.json"]

    for file in files:
        ours = reader(given, 2048).read([file.read_bytes()]).inputs[0][0].tolist()
        with file.open("rb") as stream:
            theirs = Magika._extract_features_from_seekable(
                Seekable(stream),
                *(config[name] for name in ("beg_size", "mid_size", "end_size", "padding_token",
                                            "block_size", "use_inputs_at_offsets")),
            )  # fmt: skip
        assert ours == theirs.beg + theirs.end


def test_too_short_a_text_is_refused() -> None:
    given = TextInput(head=8, strip=True, shortest=3)

    with pytest.raises(TensorError, match="at least 3 bytes beside white space, got 2"):
        reader(given, 8).read([b"  ab  "])


def test_words_become_the_longest_pieces_that_the_vocabulary_has() -> None:
    given = wordpieces(first="[CLS]", last="[SEP]", unknown="[UNK]", lower=True, mask="mask",
                       segments="segments")  # fmt: skip

    read = reader(given, 10, VOCABULARY).read([b"Unaffable, running!"])

    tokens, mask, segments = (array.tolist() for array in read.inputs)
    assert tokens == [[2, 4, 5, 6, 1, 7, 8, 9, 3, 0]]
    assert mask == [[1] * 9 + [0]]
    assert segments == [[0] * 10]


def test_a_long_text_is_cut_and_keeps_its_last_token() -> None:
    given = wordpieces(first="[CLS]", last="[SEP]", unknown="[UNK]")

    tokens = reader(given, 5, VOCABULARY).read([b"run " * 100]).inputs[0]

    assert tokens.tolist() == [[2, 7, 7, 7, 3]]


def test_whole_words_may_be_the_tokens_and_others_left_out() -> None:
    given = TextInput(encoding="words", vocabulary="v.txt")

    tokens = reader(given, 4, VOCABULARY).read([b"a word to run"]).inputs[0]

    assert tokens.tolist() == [[13, 7, 0, 0]]


@pytest.mark.parametrize(
    ("text", "lower", "expected"),
    [
        ("It's 5 o'clock.", False, ["It", "'", "s", "5", "o", "'", "clock", "."]),
        ("CAFÉ déjà", True, ["cafe", "deja"]),
        ("Ünder_score", False, ["Ünder", "_", "score"]),
        ("中文 text", False, ["中", "文", "text"]),
        ("a\u200b\x00b\tc\n", False, ["ab", "c"]),
        ("नमस्ते दुनिया", False, ["नमस्ते", "दुनिया"]),
        ("«quoted»—dash", False, ["«", "quoted", "»", "—", "dash"]),
        ("", False, []),
    ],
)
def test_texts_fall_into_words(text: str, lower: bool, expected: list[str]) -> None:
    assert words(text, lower=lower) == expected


def test_what_is_no_text_or_too_long_is_refused() -> None:
    tokens = reader(wordpieces(unknown="[UNK]"), 8, VOCABULARY)

    with pytest.raises(TensorError, match="UTF-8"):
        tokens.read([b"\xff\xfe"])
    with pytest.raises(TensorError, match="at most 65536 bytes"):
        tokens.read([b"x" * 65_537])
    with pytest.raises(TensorError, match="expected 1 to 256 texts"):
        tokens.read([b"x"] * 257)
    with pytest.raises(TensorError, match="got an object"):
        tokens.read([{"a": 1}])


def test_a_vocabulary_without_the_tokens_of_the_task_cannot_serve() -> None:
    with pytest.raises(CannotRunError, match=r"task.input.first: .* got '\[START\]'"):
        reader(wordpieces(first="[START]"), 8, VOCABULARY)
    with pytest.raises(CannotRunError, match=r"task.input.pad: .* got 99"):
        reader(wordpieces(pad=99), 8, VOCABULARY)


def test_an_endless_word_is_no_endless_search() -> None:
    tokens = reader(wordpieces(unknown="[UNK]"), 8, VOCABULARY)

    assert tokens.read([b"r" * 60_000]).inputs[0].tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]]
