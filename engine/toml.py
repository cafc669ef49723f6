"""Nested dataclasses to TOML and back: a table for each group, a key for each field that is not None."""

from __future__ import annotations

import difflib
import json
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from engine.values import ConfigError

T = TypeVar("T")


def to_toml(config: Any) -> str:
    """Return a dataclass of dataclasses as TOML. ``from_toml`` gives back an equal one.

    A field that is None is left out, so None has to be its default.
    """
    tables = []
    for group in fields(config):
        values = getattr(config, group.name)
        lines = [f"[{group.name}]"]
        for field in fields(values):
            value = getattr(values, field.name)
            if value is not None:
                lines.append(f"{field.name} = {_write(value)}")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def _write(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        # JSON's escapes are TOML's, except that TOML wants the delete character escaped as well.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return "[" + ", ".join(map(_write, value)) + "]"


def from_toml(text: str, defaults: T, source: str) -> T:
    """Return ``defaults`` with the values that ``text`` gives.

    Args:
        text: TOML as ``to_toml`` writes it; any table and any key may be missing.
        defaults: a dataclass of dataclasses.
        source: name of the file, for errors.

    Raises:
        ConfigError: the text is not TOML, a key is unknown or a value is of the wrong type.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from None
    known = {
        group.name: get_type_hints(type(getattr(defaults, group.name)))
        for group in fields(defaults)  # type: ignore[arg-type]
    }
    changed = {}
    for table, values in tables.items():
        if table not in known or not isinstance(values, dict):
            raise ConfigError(f"{source}: {_unknown(table, known)}")
        converted = {}
        for key, value in values.items():
            if key not in known[table]:
                raise ConfigError(f"{source}: {_unknown(f'{table}.{key}', known)}")
            converted[key] = _convert(value, known[table][key], f"{source}: {table}.{key}")
        changed[table] = replace(getattr(defaults, table), **converted)
    return replace(defaults, **changed)  # type: ignore[type-var]


def read_toml(path: Path, defaults: T) -> T:
    """Return ``defaults`` with the values that the file gives; see ``from_toml``.

    Raises:
        ConfigError: as ``from_toml``, or the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"--config {path} cannot be read: {reason}") from None
    return from_toml(text, defaults, str(path))


def _unknown(name: str, known: dict[str, dict[str, Any]]) -> str:
    """Return the complaint about an unknown table or ``table.key``, with the valid key that is closest to it."""
    table, _, key = name.rpartition(".")
    if not table and key in known:
        return f"{key} is a table; write [{key}] and its keys below"
    wanted = key.replace("-", "_")
    if not table and (tables := difflib.get_close_matches(wanted, known, 1)):
        return f"unknown table [{key}]; the closest valid one is [{tables[0]}]"
    keys = {f"{group}.{valid}": valid for group, valid_keys in known.items() for valid in valid_keys}

    def likeness(full: str) -> tuple[float, bool]:
        return difflib.SequenceMatcher(None, wanted, keys[full]).ratio(), full.startswith(f"{table}.")

    return f"unknown key {name}; the closest valid one is {max(keys, key=likeness)}"


def _convert(value: Any, annotation: Any, where: str) -> Any:
    """Return a TOML value as the annotation wants it.

    Raises:
        ConfigError: it does not fit; the message begins with ``where``.
    """
    converted = _fit(value, annotation)
    if converted is None:
        raise ConfigError(f"{where} = {_show(value)} does not fit: expected {_describe(annotation)}")
    return converted


def _fit(value: Any, annotation: Any) -> Any:
    """Return the converted value, or None where it does not fit. TOML itself has no null."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        fitting = (_fit(value, argument) for argument in arguments if argument is not NoneType)
        return next((fit for fit in fitting if fit is not None), None)
    if origin is Literal:
        return value if value in arguments else None
    if origin is tuple:
        if not isinstance(value, list):
            return None
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        elements = tuple(_fit(element, kind) for element, kind in zip(value, kinds, strict=False))
        return elements if len(value) == len(kinds) and None not in elements else None
    if annotation is Path:
        return Path(value) if isinstance(value, str) else None
    if annotation is float:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return value if type(value) is annotation else None


def _show(value: Any) -> str:
    return _write(value) if isinstance(value, bool | int | float | str | list) else str(value)


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path as a text"}


def _describe(annotation: Any) -> str:
    """Return in words what fits the annotation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_describe(argument) for argument in arguments if argument is not NoneType)
    if origin is Literal:
        return " or ".join(json.dumps(argument) for argument in arguments)
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"a list{count}, each {_describe(arguments[0])}"
    return _NAMES[annotation]
