"""`edgemp sign`: adds an Ed25519 signature to a bundle, or makes a key pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("sign")(sign)


def sign(
    bundle: Annotated[Path | None, typer.Argument(help="The .edgemp file.")] = None,
    key: Annotated[Path | None, typer.Option(help="Private key (Ed25519, PEM).")] = None,
    generate: Annotated[
        Path | None, typer.Option(help="Write a new pair, NAME.pem and NAME.pub.pem.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Sign a bundle with --key, and check it later with `edgemp verify --key NAME.pub.pem`.

    --generate makes a key pair first; with a bundle and no --key, the new key signs it.
    """
    from edgemp.bundle import read_bundle, signature
    from edgemp.cli.output import console, print_json
    from edgemp.errors import SignatureError

    if bundle is not None:
        read_bundle(bundle)  # no keys for a bundle that cannot be signed
    document: dict[str, str] = {}
    if generate is not None:
        private = generate.with_name(f"{generate.name}.pem")
        public = generate.with_name(f"{generate.name}.pub.pem")
        signature.generate_keys(private, public)
        document |= {"private_key": str(private), "public_key": str(public)}
        key = key or private
    if bundle is not None:
        if key is None:
            raise SignatureError(
                "give the private key with --key, or make one with --generate NAME"
            )
        signature.sign(bundle, key)
        document["signed"] = str(bundle)
    if not document:
        raise SignatureError("give a bundle to sign, or --generate NAME")
    if json:
        print_json(document)
    else:
        for what, path in document.items():
            console().print(f"{what.replace('_', ' ')}: {path}", markup=False)
