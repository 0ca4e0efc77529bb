"""`edgemp schema`: publishes the JSON schemas of pipeline descriptions, manifests and targets."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


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
    from edgemp.target import Target

    if document is Document.manifest:
        print_json(manifest_schema())
        return
    model = Pipeline if document is Document.pipeline else Target
    print_json(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    )
