"""What clients send: null means not said, and an unknown field is refused with the one that may be meant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

ANY = object()
"""Every value of a field that is passed over."""
LONGEST_NAME = 100
"""Characters of a name for which a near one is looked for."""


class Sent(BaseModel):
    """Base of every request and of its parts."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    PASSED_OVER: ClassVar[Mapping[str, object]] = {}
    """Fields that clients of other services send, with the value that asks for nothing else than what is done anyway,
    or ANY."""
    ALSO_CALLED: ClassVar[Mapping[str, str]] = {}
    """Names that other services have for fields."""
    MEANT: ClassVar[Mapping[str, str]] = {}
    """Names for which the field that is meant is told, but that are not taken."""

    @model_validator(mode="before")
    @classmethod
    def said(cls, given: Any) -> Any:  # noqa: ANN401
        """Keep what says something, under our names."""
        if not isinstance(given, dict):
            return given
        said: dict[Any, Any] = {}
        for name, value in given.items():
            # Of a field that must be said, null is refused as the value that it is.
            if value is None and name not in _required(cls):
                continue
            if name in cls.PASSED_OVER:
                cls._check_passed_over(name, value)
                continue
            field = cls.ALSO_CALLED.get(name, name)
            known = said.setdefault(field, value)
            # NaN is not equal to itself.
            if known is not value and known != value:
                cls._refuse(name, f"another value than {field}, which is the same", value)
        # By pydantic itself the refusal would come without a hint.
        names = _names(cls)
        unknown = next((name for name in said if name not in names), None)
        if unknown is not None and cls.model_config.get("extra") == "forbid":
            near = cls.MEANT.get(unknown) or next(
                iter(get_close_matches(str(unknown)[:LONGEST_NAME], sorted(names), n=1)), None
            )
            cls._refuse(unknown, "unknown field" + (f"; did you mean {near}?" if near else ""), said[unknown])
        return said

    @classmethod
    def _check_passed_over(cls, name: str, value: object) -> None:
        taken = cls.PASSED_OVER[name]
        if taken is not ANY and value != taken:
            cls._refuse(name, f"only {json.dumps(taken)} is taken, which is what is done anyway; leave it out", value)

    @classmethod
    def _refuse(cls, name: object, reason: str, value: object) -> None:
        # A lone surrogate, which JSON can hold, could not be written into the answer.
        is_text = str(name).encode(errors="ignore").decode() == str(name)
        # Raised inside a validator, pydantic takes its lines in with the path before them, so the field is named.
        line = InitErrorDetails(
            type=PydanticCustomError("extra_forbidden", "{reason}", {"reason": reason}),
            loc=(str(name),) if is_text else (),
            input=value,
        )
        raise ValidationError.from_exception_data(cls.__name__, [line])


@cache
def _required(model: type[Sent]) -> frozenset[str]:
    """Names of the fields of a model that must be sent."""
    return frozenset(field.alias or name for name, field in model.model_fields.items() if field.is_required())


@cache
def _names(model: type[Sent]) -> frozenset[str]:
    """Names under which the fields of a model are sent."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())
