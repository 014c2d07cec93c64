"""What the words are made of: pydantic, or its stand-in where `wire.TRUSTING` is set."""

import os
from typing import TYPE_CHECKING

import wire

if TYPE_CHECKING or not wire.TRUSTING:
    # We use none, and to look for them in whatever else is installed takes 1 MB.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")
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
