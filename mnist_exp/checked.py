"""Constructors that check what they are given against their annotations, with pydantic, strictly.

A range is declared where its parameter is, ``p: Annotated[float, Field(ge=0, le=1)]``, and nowhere else.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, validate_call
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

from mnist_exp.errors import WrongValue

STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)
Target = TypeVar("Target", bound=Callable[..., Any])

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]  # what torch takes


def checked(target: Target) -> Target:
    """Decorate a class or function: a call with an argument that its annotation forbids raises WrongValue.

    No value is converted, but for whole numbers where any number may stand.
    """
    function = target.__init__ if inspect.isclass(target) else target

    @functools.cache  # not before it is needed: a run builds only some of all parts
    def validated() -> Callable[..., Any]:
        return validate_call(config=STRICT)(function)

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return validated()(*arguments, **options)
        except ValidationError as error:
            raise _wrong_value(error, target, function, options) from error

    if inspect.isclass(target):
        setattr(target, "__init__", call)  # noqa: B010  # mypy sees no other way
        return target
    return call  # type: ignore[return-value]


def check_arguments(target: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise WrongValue if one of ``arguments`` is not what the annotations of ``target``, of any library, say."""
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):
        return
    for name, value in arguments.items():
        if name not in hints:
            continue
        # YAML has lists only
        found = tuple(value) if isinstance(value, list) and typing.get_origin(hints[name]) is tuple else value
        try:
            TypeAdapter(hints[name], config=STRICT).validate_python(found)
        except ValidationError as error:
            raise WrongValue(name, repr(value), allowed(hints[name])) from error
        except PydanticSchemaGenerationError:
            continue


def allowed(hint: Any) -> str:
    """Return what an annotation allows in words, such as "a number between 0 and 1 or null"."""
    try:
        return _words(TypeAdapter(hint, config=STRICT).json_schema())
    except PydanticInvalidForJsonSchema:  # a class that no value in a YAML file is of
        return f"a {getattr(hint, '__name__', hint)}"


def few_values(hint: Any) -> list[str]:
    """Return the values that an annotation names one by one, as YAML has them; those of true and false, and null."""
    try:
        schema = TypeAdapter(hint, config=STRICT).json_schema()
    except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError):
        return []
    found: list[str] = []
    for part in schema.get("anyOf", [schema]):
        found += map(str, part.get("enum", [part["const"]] if "const" in part else []))
        found += {"boolean": ["true", "false"], "null": ["null"]}.get(part.get("type", ""), [])
    return found


def _wrong_value(
    error: ValidationError, target: Callable[..., Any], function: Callable[..., Any], options: Mapping[str, Any]
) -> WrongValue:
    first, parameters = error.errors()[0], inspect.signature(function).parameters
    name = str(first["loc"][0])
    if first["type"] == "unexpected_keyword_argument":
        known = ", ".join(list(parameters)[inspect.isclass(target) :])
        return WrongValue(name, repr(first["input"]), f"left out: {target.__name__} takes {known}")
    name = list(parameters)[int(name)] if name.isdigit() else name
    declared = name if name in parameters else next(p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD)
    hint = typing.get_type_hints(function, include_extras=True)[declared]
    if first["type"] == "missing_argument":
        return WrongValue(name, "missing", allowed(hint))
    found = options.get(name, first["input"])
    text = found if isinstance(found, str) and first["type"] == "literal_error" else repr(found)
    return WrongValue(name, text, allowed(hint))


def _words(schema: Mapping[str, Any]) -> str:
    """Put a JSON schema into words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_words(part) for part in schema["anyOf"])) + _note(schema)
    if "enum" in schema or "const" in schema:
        *most, last = schema.get("enum", [schema.get("const")])
        return (f"{', '.join(map(str, most))} or {last}" if most else str(last)) + _note(schema)
    nouns = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "text",
        "null": "null",
        "object": "keys and values",
    }
    if schema.get("type") == "array":
        size = schema.get("minItems") if schema.get("minItems") == schema.get("maxItems") else None
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        count = "" if size is None else f" of {size}"
        return f"a list{count}, each {_words(items)}{_note(schema)}" if items else f"a list{count}{_note(schema)}"
    limits = []
    if "minimum" in schema and "maximum" in schema:
        limits = [f"between {_number(schema['minimum'])} and {_number(schema['maximum'])}"]
    else:
        for key, word in {
            "minimum": "at least",
            "exclusiveMinimum": "above",
            "maximum": "at most",
            "exclusiveMaximum": "below",
        }.items():
            limits += [f"{word} {_number(schema[key])}"] if key in schema else []
    return " ".join([nouns.get(schema.get("type", ""), "another value"), " and ".join(limits)]).strip() + _note(schema)


def _note(schema: Mapping[str, Any]) -> str:
    return f" ({schema['description']})" if "description" in schema else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
