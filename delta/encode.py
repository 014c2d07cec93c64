"""From a base and a new file to a delta."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import zstandard

from delta.container import Delta, base_rest, cut, deflate_rest, gaps, pack
from delta.fit import Fit, fit
from delta.formats import Tensor, UnreadableModelError
from delta.model import Counts, Stream
from delta.onnx_file import read_onnx
from delta.rans import Encoder
from delta.spans import Predictor, Scales, Span, as_rows, code_span
from delta.tflite_file import read_tflite

_FEWEST_LANES, _MOST_LANES = 16, 1024
_BYTES_PER_LANE = 256
_SMALLEST_BYTES = 32
"""Smaller tensors are not worth an entry in the table of spans."""


def encode(base: bytes, new: bytes) -> bytes | None:
    """Return a delta from which `decode` makes `new` of `base`, or None where zstd is as small.

    Models are taken apart into tensors, each of which is predicted from the one of that name in
    the base. What is no model is compressed as a whole, with the base as dictionary.
    """
    delta = _delta(base, new)
    plain = zstandard.ZstdCompressor(level=19).compress(new)
    return delta if len(delta) < len(plain) else None


def _delta(base: bytes, new: bytes) -> bytes:
    fits = _fits(base, new)
    coder = Encoder()
    stream = Stream(coder, Counts())
    for found in fits:
        values = as_rows(new, found.span.new, found.span)
        code_span(stream, found.span, base, new, (found.description, values))
    spans = tuple(found.span for found in fits)
    rest = cut(new, gaps([span.place for span in spans], len(new)))
    lanes = _lanes(coder.cost_bytes())
    words, raw = coder.finish(lanes)
    return pack(
        Delta(len(new), spans, lanes, words, raw, deflate_rest(rest, base_rest(base, spans)))
    )


def _lanes(coded_bytes: float) -> int:
    """Return how many lanes are worth their states: more of them decode faster."""
    lanes = _FEWEST_LANES
    while lanes < _MOST_LANES and lanes * _BYTES_PER_LANE < coded_bytes:
        lanes *= 2
    return lanes


def tensors_of(content: bytes) -> list[Tensor]:
    """Return the tensors of a model file, none for what is no model."""
    for read in (read_tflite, read_onnx):
        try:
            return read(content)
        except UnreadableModelError:
            continue
    return []


def pairs_of(base: bytes, new: bytes) -> Iterator[tuple[Tensor | None, Tensor]]:
    """Yield, in the order of the new file, what each tensor was and is, where that differs."""
    old, now = tensors_of(base), tensors_of(new)
    partners = _partners(old, now)
    end = 0
    # Two tensors may share their bytes, or lie across each other in a strange file.
    for tensor in sorted(now, key=lambda tensor: tensor.place.offset):
        if tensor.place.offset < end or tensor.place.length < _SMALLEST_BYTES:
            continue
        end = tensor.place.offset + tensor.place.length
        partner = partners.get(tensor.name)
        if partner is None or cut(base, [partner.place]) != cut(new, [tensor.place]):
            yield partner, tensor


def _fits(base: bytes, new: bytes) -> list[Fit]:
    """Return the spans worth coding, those first that others are predicted from."""
    old_named, new_named = _by_name(tensors_of(base)), _by_name(tensors_of(new))
    fits = [
        fit(_candidates(tensor, partner, old_named, new_named), base, new)
        for partner, tensor in pairs_of(base, new)
    ]
    return sorted((found for found in fits if _pays(found, new)), key=_need)


def _need(found: Fit) -> int:
    """Return 0 for what others are predicted from, 2 for what is predicted from others."""
    if found.span.predictor is Predictor.PRODUCT:
        return 1
    return 2 if found.span.scales is not None else 0


def _by_name(tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in tensors}


def _partners(old: list[Tensor], now: list[Tensor]) -> dict[str, Tensor]:
    """Return, by name, what each new tensor was; by form and order where names have changed."""
    named = _by_name(old)
    partners = {}
    unnamed = [tensor for tensor in old if tensor.name not in _by_name(now)]
    for tensor in now:
        same = named.get(tensor.name)
        if same is None:
            same = next((other for other in unnamed if _alike(other, tensor)), None)
            if same is not None:
                unnamed.remove(same)
        if same is not None and _alike(same, tensor):
            partners[tensor.name] = same
    return partners


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.element, one.shape) == (other.element, other.shape)


def _candidates(
    tensor: Tensor,
    partner: Tensor | None,
    old_named: dict[str, Tensor],
    new_named: dict[str, Tensor],
) -> list[Span]:
    """Return the ways to predict a tensor."""
    scales = _scales(tensor, partner, old_named, new_named)
    outer, rows, inner = _layout(tensor, 1 if scales is None else scales.count)
    plain = Span(
        element=tensor.element,
        predictor=Predictor.NOTHING,
        new=tensor.place.offset,
        base=0 if partner is None else partner.place.offset,
        outer=outer,
        rows=rows,
        inner=inner,
    )
    found = [plain]
    if partner is not None:
        found.append(replace(plain, predictor=Predictor.SAME))
    if scales is not None and scales.count in (1, rows, outer * inner):
        found.append(replace(plain, predictor=Predictor.RESCALED, scales=scales))
    if tensor.factors is not None and rows == 1:
        many, one = (new_named.get(name) for name in tensor.factors)
        if many and one and (many.shape, math.prod(one.shape)) == (tensor.shape, 1):
            factors = (many.place.offset, one.place.offset)
            found.append(replace(plain, predictor=Predictor.PRODUCT, factors=factors))
    return found


def _scales(
    tensor: Tensor,
    partner: Tensor | None,
    old_named: dict[str, Tensor],
    new_named: dict[str, Tensor],
) -> Scales | None:
    if partner is None or partner.scale is None or tensor.scale is None:
        return None
    old, now = old_named.get(partner.scale), new_named.get(tensor.scale)
    if old is None or now is None or not _alike(old, now) or now.element != "f4":
        return None
    return Scales(
        now.place.offset,
        old.place.offset,
        now.place.length // 4,
        tensor.zero_point,
        partner.zero_point,
    )


def _layout(tensor: Tensor, scales: int) -> tuple[int, int, int]:
    """Return outer, rows and inner: one row a channel; a list of numbers is one row."""
    shape, axis = tensor.shape, tensor.axis
    if len(shape) < 2:
        return 1, 1, math.prod(shape)
    if scales > 1 and shape[axis] != scales:
        axis = 0
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _pays(found: Fit, new: bytes) -> bool:
    """Return whether a span is smaller coded than left to zstd."""
    coded = found.bits / 8
    if coded < found.span.length / 2:
        return True
    content = cut(new, [found.span.place])
    return coded < len(zstandard.ZstdCompressor(level=19).compress(content))
