"""Texts and other bytes to the numbers that a model of texts takes."""

import unicodedata
from collections.abc import Sequence

import numpy as np

from agent.engine.runtimes import Array, CannotRunError
from agent.engine.tasks import Item, Read
from agent.engine.tasks.edges import to_tensor, whole
from agent.engine.tensors import TensorError
from wire.manifest import TensorSpec
from wire.task import TextInput
from wire.twin import Reason

MAX_BATCH = 256
MAX_TOKENIZED_BYTES = 64 * 1024
"""Of one text that is cut into tokens."""

QUICK_BYTES = 256 * 1024
QUICK_TOKENIZED_BYTES = 4 * 1024
MAX_WORD_CHARACTERS = 100
"""A longer word is unknown to every vocabulary."""


def open_text(
    given: TextInput, parts: dict[str, TensorSpec], order: list[str], vocabulary: str | None
) -> "TextReader":
    """Return the reader for `given`; `order` is that of the model's inputs, by part.

    Raises:
        CannotRunError: the vocabulary lacks a token that the task names.
    """
    if given.encoding == "bytes":
        return ByteReader(given, parts, order)
    return TokenReader(given, parts, order, vocabulary or "")


class TextReader:
    """What readers of texts share: batches and limits."""

    media: tuple[str, ...] = ("text/plain", "application/octet-stream")

    def __init__(self, given: TextInput, parts: dict[str, TensorSpec], order: list[str]) -> None:
        self.name = given.name
        self._given = given
        self._parts = {part: whole(spec) for part, spec in parts.items()}
        self._order = order
        spec = parts["tensor"]
        self._one = spec.shape[0] == 1
        self._width = spec.shape[-1]

    def is_quick(self, items: Sequence[Item]) -> bool:
        """Whether there are few bytes to read."""
        return sum(map(len, items)) <= QUICK_BYTES

    def read(self, items: Sequence[Item]) -> Read:
        """Return the texts as one batch."""
        most = 1 if self._one else MAX_BATCH
        if not 1 <= len(items) <= most:
            raise TensorError(f"input {self.name}: expected 1 to {most} texts, got {len(items)}")
        rows = []
        for item in items:
            if not isinstance(item, bytes):
                raise TensorError(f"input {self.name}: expected a text, got an object")
            rows.append(self._row(item))
        numbers = np.stack([row for row, _ in rows])
        there = np.zeros(numbers.shape, np.int64)
        for place, (_, length) in enumerate(rows):
            there[place, :length] = 1
        values = {"tensor": numbers, "mask": there, "segments": np.zeros_like(there)}
        return Read([to_tensor(values[part], self._parts[part]) for part in self._order])

    def _row(self, item: bytes) -> tuple[Array, int]:
        """Return a text's numbers, padded, and how many of them stand for something."""
        raise NotImplementedError


class ByteReader(TextReader):
    """The bytes of the head and of the tail themselves."""

    def _row(self, item: bytes) -> tuple[Array, int]:
        given = self._given
        head, tail = given.head, given.tail
        if head + tail == 0:
            head = self._width
        block = given.block or len(item)
        first, last = item[:block], item[max(0, len(item) - block) :]
        length = len(first.strip() if given.strip else first)
        if length < given.shortest:
            raise TensorError(
                f"input {self.name}: expected at least {given.shortest} bytes"
                f"{' beside white space' if given.strip else ''}, got {length}"
            )
        if given.strip:
            first, last = first.lstrip(), last.rstrip()
        row: Array = np.full(head + tail, given.pad, np.int64)
        first, last = first[:head], last[max(0, len(last) - tail) :]
        row[: len(first)] = np.frombuffer(first, np.uint8)
        row[len(row) - len(last) :] = np.frombuffer(last, np.uint8)
        return row, len(row)


class TokenReader(TextReader):
    """Tokens of a vocabulary: whole words, or the longest pieces of a word that it has.

    Source of the pieces: Wu et al. 2016, "Google's neural machine translation system", 4.1.
    """

    def __init__(
        self, given: TextInput, parts: dict[str, TensorSpec], order: list[str], vocabulary: str
    ) -> None:
        super().__init__(given, parts, order)
        tokens = vocabulary.splitlines()
        self._numbers = {token: number for number, token in reversed(list(enumerate(tokens)))}
        self._length = given.length or self._width
        self._first = self._named("first", given.first)
        self._last = self._named("last", given.last)
        self._unknown = self._named("unknown", given.unknown)
        if given.pad >= len(tokens):
            raise CannotRunError(
                Reason.BAD_MANIFEST,
                f"task.input.pad: expected a line of the vocabulary's {len(tokens)}, from 0, got "
                f"{given.pad}",
            )

    def is_quick(self, items: Sequence[Item]) -> bool:
        """Whether there are few words to look up."""
        return sum(map(len, items)) <= QUICK_TOKENIZED_BYTES

    def _named(self, what: str, token: str | None) -> list[int]:
        if token is not None and token not in self._numbers:
            raise CannotRunError(
                Reason.BAD_MANIFEST,
                f"task.input.{what}: expected a token of the vocabulary, got {token!r}",
            )
        return [] if token is None else [self._numbers[token]]

    def _row(self, item: bytes) -> tuple[Array, int]:
        if len(item) > MAX_TOKENIZED_BYTES:
            raise TensorError(
                f"input {self.name}: expected a text of at most {MAX_TOKENIZED_BYTES} bytes, got "
                f"{len(item)}"
            )
        try:
            text = item.decode()
        except UnicodeDecodeError as error:
            raise TensorError(f"input {self.name}: expected UTF-8 text: {error}") from None
        room = self._length - len(self._first) - len(self._last)
        tokens: list[int] = []
        for word in words(text, lower=self._given.lower):
            if len(tokens) >= room:
                break
            tokens += self._pieces(word)
        row: Array = np.full(self._length, self._given.pad, np.int64)
        numbers = (self._first + tokens[: max(0, room)] + self._last)[: self._length]
        row[: len(numbers)] = numbers
        return row, len(numbers)

    def _pieces(self, word: str) -> list[int]:
        if self._given.encoding == "words":
            number = self._numbers.get(word)
            return self._unknown if number is None else [number]
        if len(word) > MAX_WORD_CHARACTERS:
            return self._unknown
        found = []
        start = 0
        while start < len(word):
            mark = "##" if start else ""
            end = len(word)
            while end > start and mark + word[start:end] not in self._numbers:
                end -= 1
            if end == start:
                return self._unknown
            found.append(self._numbers[mark + word[start:end]])
            start = end
        return found


def words(text: str, *, lower: bool) -> list[str]:
    """Return the words of a text; punctuation marks and ideographs are words by themselves."""
    if lower:
        parts = unicodedata.normalize("NFD", text.lower())
        text = "".join(sign for sign in parts if unicodedata.category(sign) != "Mn")
    spaced = []
    for sign in text:
        if _is_alone(sign):
            spaced.append(f" {sign} ")
        elif sign.isspace() or unicodedata.category(sign)[0] != "C":
            spaced.append(sign)
    return "".join(spaced).split()


def _is_alone(sign: str) -> bool:
    if sign.isascii():
        return sign.isprintable() and not sign.isalnum() and sign != " "
    return unicodedata.category(sign)[0] == "P" or any(
        low <= sign <= high for low, high in _IDEOGRAPHS
    )


_IDEOGRAPHS = (
    ("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0002fa1f"),
)  # fmt: skip
