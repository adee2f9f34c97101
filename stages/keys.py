"""Every key of params.yaml with its type, default and meaning, as Markdown: `make keys` writes docs/params.md.

python -m stages.keys
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel

from stages.cli import guard
from stages.params import Compare, Dataset, Features, Params, Run, is_model, kind_module, kinds


def key_table() -> str:
    """Return every key of params.yaml with type, default and meaning as Markdown; docs/params.md holds it."""
    sections: list[tuple[str, type[BaseModel]]] = [("The levels", Params)]
    sections += [(f"`downloads`, source: {k}", kind_module("sources", k).Params) for k in kinds("sources")]
    sections += [("`datasets`", Dataset), ("`features`", Features), ("`runs`", Run)]
    sections += [(f"`transfer`, kind: {k}", kind_module("transfers", k).Params) for k in kinds("transfers")]
    sections += [("`compare`", Compare)]
    lines = ["# What does each key of params.yaml mean?", "", "Made by `make keys`.", ""]
    for title, model in sections:
        lines += [f"## {title}", "", *_introduction(model), "| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{k}` | {t} | {d} | {m} |" for k, t, d, m in _rows(model, "")]
        lines.append("")
    return "\n".join(lines)


def _introduction(model: type[BaseModel]) -> list[str]:
    of_a_kind = model.__name__ == "Params" and model is not Params
    text = sys.modules[model.__module__].__doc__ if of_a_kind else model.__doc__
    return [(text or "").strip().splitlines()[0], ""]


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        if is_model(field.annotation) and model is not Params:  # whose levels have tables of their own
            yield from _rows(typing.cast("type[BaseModel]", field.annotation), f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else f"`{_shown(field.default)}`"
            meaning = field.description or ""
            yield f"{prefix}{name}", _type_name(field.annotation), default, meaning


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _type_name(annotation: Any) -> str:
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "keys"}
    if annotation in names:
        return names[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{_shown(a)}`" for a in arguments)
    if origin is list:
        return f"list of: {_type_name(arguments[0])}"
    if origin is dict:
        return f"name: {_type_name(arguments[1])}"
    if arguments:
        return " or ".join(_type_name(a) for a in arguments)
    return "keys" if is_model(annotation) else getattr(annotation, "__name__", str(annotation))


if __name__ == "__main__":
    guard(lambda: print(key_table(), end=""))
