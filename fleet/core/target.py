"""Expressions that say which devices are meant: `site=berlin and arch=aarch64 and not frozen`.

    target := "all" | any
    any    := both ("or" both)*
    both   := one ("and" one)*
    one    := "not" one | "(" any ")" | term
    term   := KEY "=" VALUE | KEY "!=" VALUE | KEY ["not"] "in" "(" VALUE ("," VALUE)* ")" | KEY

A KEY alone asks for a label whose value is not `false`. Keys are those of facts: the labels of a
device, and `arch` and `device`. A VALUE with blanks or signs of the language stands in quotes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from fleet.core.views import Refusal

EXAMPLE = "for example: --to 'site=berlin and not frozen', or --to device=cam-1"
MAX_LENGTH = 20_000
MAX_DEPTH = 20
"""Of parentheses and `not`s within each other."""

_TOKEN = re.compile(r"""(?P<sign>!=|[=(),])|"(?P<quoted>[^"]*)"|(?P<word>[^\s=!(),"]+)""")
_WORDS = frozenset({"and", "or", "not", "in"})

Facts = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class OneOf:
    """The key has one of these values."""

    key: str
    values: tuple[str, ...]

    def holds(self, facts: Facts) -> bool:
        """Return whether it is so of a device."""
        return facts.get(self.key) in self.values


@dataclass(frozen=True, slots=True)
class Has:
    """The device has the label, and its value is not `false`."""

    key: str

    def holds(self, facts: Facts) -> bool:
        """Return whether it is so of a device."""
        return facts.get(self.key, "false") != "false"


@dataclass(frozen=True, slots=True)
class Not:
    """The other is not so."""

    other: "Expression"

    def holds(self, facts: Facts) -> bool:
        """Return whether it is so of a device."""
        return not self.other.holds(facts)


@dataclass(frozen=True, slots=True)
class Every:
    """All of these are so; none of them: all devices."""

    parts: tuple["Expression", ...]

    def holds(self, facts: Facts) -> bool:
        """Return whether it is so of a device."""
        return all(part.holds(facts) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Some:
    """One of these is so."""

    parts: tuple["Expression", ...]

    def holds(self, facts: Facts) -> bool:
        """Return whether it is so of a device."""
        return any(part.holds(facts) for part in self.parts)


Expression = OneOf | Has | Not | Every | Some


@dataclass(frozen=True, slots=True)
class Target:
    """Which devices are meant."""

    expression: Expression
    text: str = "all"

    def matches(self, facts: Facts) -> bool:
        """Return whether a device with these facts (labels, `arch`, `device`) is meant."""
        return self.expression.holds(facts)

    @property
    def terms(self) -> tuple[tuple[str, str], ...] | None:
        """The `key=value` terms, all of which have to be; None: it is not so simple."""
        whole = self.expression
        parts = whole.parts if isinstance(whole, Every) else (whole,)
        terms = [
            (part.key, part.values[0])
            for part in parts
            if isinstance(part, OneOf) and len(part.values) == 1
        ]
        return tuple(terms) if len(terms) == len(parts) else None

    @property
    def wanted(self) -> Iterator[OneOf | Has]:
        """What is asked for, leaving out what is ruled out."""
        return _wanted(self.expression)


def _wanted(expression: Expression) -> Iterator[OneOf | Has]:
    if isinstance(expression, OneOf | Has):
        yield expression
    elif isinstance(expression, Every | Some):
        for part in expression.parts:
            yield from _wanted(part)


@lru_cache(maxsize=256)
def parse_target(text: str) -> Target:
    """Read `all`, or an expression over labels, `arch` and `device`.

    Raises:
        Refusal: 422, written otherwise; it says where.
    """
    if len(text) > MAX_LENGTH:
        raise Refusal(422, f"--to: expected at most {MAX_LENGTH} characters, got {len(text)}")
    if text.strip() == "all":
        return Target(Every(()))
    reader = _Reader(text)
    return Target(reader.whole(), text.strip())


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    at: int
    """From 1; after the last character for the end."""
    kind: str
    """sign, quoted, word, or end."""


class _Reader:
    """Reads an expression from left to right, one token ahead."""

    def __init__(self, text: str) -> None:
        self._tokens = self._split(text)
        self._place = 0

    def whole(self) -> Expression:
        found = self._any(0)
        if self._next.kind != "end":
            raise self._not("`and`, `or` or the end")
        return found

    @staticmethod
    def _split(text: str) -> list[_Token]:
        tokens, place = [], 0
        while place < len(text):
            if text[place].isspace():
                place += 1
                continue
            match = _TOKEN.match(text, place)
            if match is None:
                raise _wrong("a label, a value or a sign", text[place], place + 1)
            kind = match.lastgroup or "word"
            tokens.append(_Token(match[kind], place + 1, kind))
            place = match.end()
        return [*tokens, _Token("the end", len(text) + 1, "end")]

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _not(self, expected: str) -> Refusal:
        return _wrong(expected, self._next.text, self._next.at)

    def _takes(self, text: str) -> bool:
        """Go past a sign or a word of the language if it is the next."""
        if self._next.text == text and self._next.kind in ("sign", "word"):
            self._place += 1
            return True
        return False

    def _any(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise self._not(f"at most {MAX_DEPTH} levels")
        parts = [self._both(depth)]
        while self._takes("or"):
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else Some(tuple(parts))

    def _both(self, depth: int) -> Expression:
        parts = [self._one(depth)]
        while self._takes("and"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def _one(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise self._not(f"at most {MAX_DEPTH} levels")
        if self._takes("not"):
            return Not(self._one(depth + 1))
        if self._takes("("):
            found = self._any(depth + 1)
            if not self._takes(")"):
                raise self._not("`)`")
            return found
        return self._term()

    def _term(self) -> Expression:
        key = self._name("`all`, a label such as site=berlin, `not` or `(`")
        if self._takes("="):
            return OneOf(key, (self._name("a value"),))
        if self._takes("!="):
            return Not(OneOf(key, (self._name("a value"),)))
        if self._takes("in"):
            return OneOf(key, self._values())
        if self._takes("not"):
            if not self._takes("in"):
                raise self._not("`in`")
            return Not(OneOf(key, self._values()))
        return Has(key)

    def _values(self) -> tuple[str, ...]:
        if not self._takes("("):
            raise self._not("`(`")
        values = [self._name("a value")]
        while self._takes(","):
            values.append(self._name("a value"))
        if not self._takes(")"):
            raise self._not("`,` or `)`")
        return tuple(values)

    def _name(self, expected: str) -> str:
        token = self._next
        if token.kind not in ("word", "quoted") or (token.kind == "word" and token.text in _WORDS):
            raise self._not(expected)
        self._place += 1
        return token.text


def _wrong(expected: str, got: str, at: int) -> Refusal:
    return Refusal(422, f"--to: character {at}: expected {expected}, got {got[:60]!r}", EXAMPLE)
