"""Which names a member may have: relative, portable ASCII paths that cannot leave a folder."""

from __future__ import annotations

import re

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
RESERVED = frozenset({MANIFEST, SIGNATURE})
MAX_NAME = 200

_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.+\-]*[A-Za-z0-9_+\-])?")


def name_problem(name: str) -> str:
    """Why `name` is refused as a member (or artifact file) name, or "" if it is safe.

    Whatever is allowed can be written below any folder on any file system without escaping it.
    """
    if len(name) > MAX_NAME:
        return (
            f"member {name[:40]!r}...: name of {len(name)} characters, at most {MAX_NAME} allowed"
        )
    parts = name.split("/")
    problems = {
        "its name is empty": not name,
        "NUL character in its name": "\0" in name,
        "backslash in its name": "\\" in name,
        "its name starts with a drive letter": name[1:2] == ":",
        "its name is absolute": name.startswith("/"),
        "its name leads out of the bundle (..)": ".." in parts,
        "it is a folder, not a file": name.endswith("/"),
        "its name may only have letters, digits and '_.+-' between single slashes": not all(
            _PART.fullmatch(part) for part in parts
        ),
    }
    for problem, holds in problems.items():
        if holds:
            return f"member {name!r}: {problem}"
    return ""
