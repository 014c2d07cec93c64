"""What the words are made of: pydantic, or its stand-in where `wire.TRUSTING` is set."""

from typing import TYPE_CHECKING

import wire

if TYPE_CHECKING or not wire.TRUSTING:
    from pydantic import (
        AfterValidator,
        BaseModel,
        ConfigDict,
        Field,
        ValidationError,
        model_validator,
    )
else:
    from wire.trusting import (
        AfterValidator,
        BaseModel,
        ConfigDict,
        Field,
        ValidationError,
        model_validator,
    )

__all__ = [
    "AfterValidator",
    "BaseModel",
    "ConfigDict",
    "Field",
    "ValidationError",
    "model_validator",
]
