"""`edgemp schema`: publishes the JSON schemas of pipeline descriptions, manifests and targets."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

DRAFT = "https://json-schema.org/draft/2020-12/schema"


class Document(str, Enum):
    """The documents that have a schema."""

    pipeline = "pipeline"
    manifest = "manifest"
    target = "target"


def register(app: typer.Typer) -> None:
    app.command("schema")(schema)


def schema(
    document: Annotated[
        Document, typer.Argument(help="Which document's schema.")
    ] = Document.pipeline,
    json: Annotated[
        bool, typer.Option("--json", help="Accepted for symmetry: the schema is JSON.")
    ] = False,
) -> None:
    """Print a JSON schema (draft 2020-12) on stdout."""
    from edgemp.bundle import manifest_schema
    from edgemp.cli.output import print_json
    from edgemp.pipeline import Pipeline

    if document is Document.manifest:
        print_json(manifest_schema())
    elif document is Document.target:
        print_json(target_file_schema())
    else:
        print_json({"$schema": DRAFT, **Pipeline.model_json_schema()})


def target_file_schema() -> dict[str, Any]:
    """Schema of a target file: a whole target, or the part that differs from what it `extends`."""
    from edgemp.target import Target

    whole = Target.model_json_schema()
    part = _optional(Target.model_json_schema(ref_template="#/$defs/Part{model}"))
    kinds = {**whole.pop("$defs"), **{f"Part{k}": v for k, v in part.pop("$defs").items()}}
    part["properties"]["extends"] = {
        "type": "string",
        "description": "a known target's name, or a .toml file relative to this one",
    }
    part["required"] = ["extends"]
    return {
        "$schema": DRAFT,
        "title": "Target",
        "description": whole.get("description", ""),
        "if": {"required": ["extends"]},
        "then": part,
        "else": whole,
        "$defs": kinds,
    }


def _optional(value: Any) -> Any:
    """The same schema with nothing required: what a file leaves out, it inherits."""
    if isinstance(value, dict):
        return {
            key: _optional(item)
            for key, item in value.items()
            if not (key == "required" and isinstance(item, list))
        }
    return [_optional(item) for item in value] if isinstance(value, list) else value
