"""An opened bundle: every member checked and in memory, so the file is never read a second time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from edgemp.backends.base import Placement
from edgemp.bundle.goldens import Sample, decode_array, decode_values
from edgemp.bundle.manifest import Manifest, ModuleRecord
from edgemp.errors import MemberError
from edgemp.pipeline import Pipeline

Signed = Literal["unsigned", "unverified", "verified"]

PLACEMENT = TypeAdapter(Placement)


@dataclass(frozen=True, eq=False)
class Bundle:
    """What `read_bundle` returns.

    `members` holds the verified content of every declared member. `signed` is "verified" if the
    signature was checked against a public key, "unverified" if there is one but no key was given.
    """

    path: Path
    manifest: Manifest
    pipeline: Pipeline
    members: Mapping[str, bytes] = field(repr=False)
    signed: Signed

    def read(self, member: str) -> bytes:
        """The content of a member.

        Raises:
            MemberError: there is no such member.
        """
        try:
            return self.members[member]
        except KeyError:
            raise MemberError(f"{self.path}: there is no member {member!r}") from None

    def module(self, name: str) -> ModuleRecord:
        """The record of a module.

        Raises:
            MemberError: there is no such module.
        """
        try:
            return self.manifest.modules[name]
        except KeyError:
            known = ", ".join(self.manifest.modules)
            raise MemberError(
                f"{self.path}: there is no module {name!r}; modules: {known}"
            ) from None

    def assets(self, function: str) -> dict[str, bytes]:
        """The assets of a function, by asset name; empty if it has none."""
        return {
            key.partition("/")[2]: self.read(member)
            for key, member in self.manifest.assets.items()
            if key.partition("/")[0] == function
        }

    def golden(self, module: str) -> list[Sample]:
        """The golden samples of a module: inputs, and the original network's outputs.

        Raises:
            MemberError: there is no such module, or a member is not the array it should be.
        """
        self.module(module)
        return [
            (self._arrays(record.inputs), self._arrays(record.outputs))
            for record in self.manifest.goldens[module]
        ]

    def steps(self) -> list[dict[str, Any]]:
        """A few steps of pipeline inputs: signal name -> array or plain value.

        Raises:
            MemberError: a member is not what it should be.
        """
        return [
            {**self._arrays(record.arrays), **self._values(record.values)}
            for record in self.manifest.steps
        ]

    def placement(self, module: str) -> Placement:
        """Where the bundle says that every node of a module runs.

        Raises:
            MemberError: there is no such module, or its placement is malformed.
        """
        return self.placement_in(self.module(module).placement)

    def placement_in(self, member: str) -> Placement:
        """The placement in a member.

        Raises:
            MemberError: it is malformed.
        """
        try:
            return PLACEMENT.validate_json(self.read(member))
        except ValidationError as error:
            raise MemberError(
                f"{self._at(member)}: not a placement: {error.error_count()} fields are wrong"
            ) from None

    def _arrays(self, names: Mapping[str, str]) -> dict[str, Any]:
        return {
            name: decode_array(self.read(member), self._at(member))
            for name, member in names.items()
        }

    def _values(self, member: str | None) -> dict[str, Any]:
        return {} if member is None else decode_values(self.read(member), self._at(member))

    def _at(self, member: str) -> str:
        return f"{self.path}: member {member!r}"
