"""In pydantic's place where documents were checked before: it builds them, and takes 8 MB less.

Names are pydantic's, and so are the values that come out: `wire.schema` chooses between the two.
What JSON has at a place must be of the type that is declared there. Limits are taken on trust, and
so is whatever a validator would look at. Nothing is written here, nor copied to be safe.
"""

from collections.abc import Callable, Iterator, Mapping
from types import NoneType, UnionType
from typing import (
    Any,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

F = TypeVar("F", bound=Callable[..., Any])
Place = tuple[str | int, ...]

ConfigDict = dict


class Field:
    """Limits, which nobody looks at here."""

    def __init__(self, **limits: object) -> None:
        pass


class AfterValidator:
    """A check that was made elsewhere."""

    def __init__(self, check: Callable[..., object]) -> None:
        pass


def model_validator(*, mode: Literal["after"]) -> Callable[[F], F]:
    """Leave a check that was made elsewhere uncalled."""
    return lambda check: check


class ValidationError(ValueError):
    """A value is not of the type that is declared at its place."""

    def __init__(self, place: Place, message: str, value: object) -> None:
        super().__init__(message)
        self.place = place
        self._detail = {"loc": place, "msg": message, "input": value}

    def errors(self, *, include_url: bool = False) -> list[dict[str, Any]]:
        """Return what is wrong, where, and what came: of all there may be, the first."""
        return [self._detail]

    def error_count(self) -> int:
        """Return how many of them there are."""
        return 1


class BaseModel:
    """A value by the annotations of its class; what is not given is the class's own default."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            getattr(self, name) == getattr(other, name) for name in _fields(type(self))
        )

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in _fields(type(self))))

    @classmethod
    def model_validate(cls, value: object) -> Self:
        """Build one from parsed JSON; fields that are not known are left out.

        Raises:
            ValidationError: a field is missing or of another type.
        """
        return _model(cls, value, ())

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """Return one with other values in some fields."""
        return type(self)(**{**self.__dict__, **update})


M = TypeVar("M", bound=BaseModel)
_known: dict[type[BaseModel], dict[str, Any]] = {}


def _fields(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the types of a class's fields by name, without the limits on them."""
    if kind not in _known:
        hints = get_type_hints(kind).items()
        _known[kind] = {name: hint for name, hint in hints if get_origin(hint) is not ClassVar}
    return _known[kind]


def _model(kind: type[M], value: object, place: Place) -> M:
    _expect(isinstance(value, dict), "an object", value, place)
    assert isinstance(value, dict)
    fields = _fields(kind)
    for name in fields:
        _expect(name in value or hasattr(kind, name), "a value", None, (*place, name))
    return kind(
        **{
            name: _read(hint, value[name], (*place, name))
            for name, hint in fields.items()
            if name in value
        }
    )


def _read(hint: Any, value: Any, place: Place) -> Any:
    """Return a JSON value as the type that `hint` declares."""
    of = get_args(hint)
    match get_origin(hint) or hint:
        case kind if kind in (Union, UnionType):
            return _first_that_fits(of, value, place)
        case kind if kind is Literal:
            _expect(value in of, " or ".join(map(repr, of)), value, place)
            return value
        case kind if kind is tuple:
            return tuple(_items(of, value, place))
        case kind if kind is dict:
            _expect(isinstance(value, dict), "an object", value, place)
            return {
                _read(of[0], key, place): _read(of[1], item, (*place, key))
                for key, item in value.items()
            }
        case kind if kind is float:
            _expect(type(value) in (int, float), "a number", value, place)
            return float(value)
        case kind if kind in (int, str, bool, NoneType):
            _expect(type(value) is kind, kind.__name__, value, place)
            return value
        case kind:
            return _model(kind, value, place)


def _items(of: tuple[Any, ...], value: Any, place: Place) -> Iterator[Any]:
    _expect(isinstance(value, list), "a list", value, place)
    each = of[:1] * len(value) if of[-1] is Ellipsis else of
    _expect(len(each) == len(value), f"{len(each)} items", value, place)
    for number, (hint, item) in enumerate(zip(each, value, strict=True)):
        yield _read(hint, item, (*place, number))


def _first_that_fits(of: tuple[Any, ...], value: Any, place: Place) -> Any:
    misfits = []
    for hint in of:
        try:
            return _read(hint, value, place)
        except ValidationError as misfit:
            misfits.append(misfit)
    # Of a union the one that was meant is the one that was read furthest.
    raise max(misfits, key=lambda misfit: len(misfit.place))


def _expect(fits: bool, expected: str, value: object, place: Place) -> None:
    if not fits:
        raise ValidationError(place, f"expected {expected}", value)
