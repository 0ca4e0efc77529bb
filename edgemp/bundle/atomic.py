"""Writing a file so that its name stands for the old content or for the complete new one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from edgemp.errors import BundleError

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some space or write elsewhere",
    errno.EFBIG: "the file is larger than the file system or this process may write",
    errno.EACCES: "the folder is not writable",
    errno.EPERM: "the folder is not writable",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "the folder does not exist",
    errno.ENOTDIR: "its parent is not a folder",
    errno.EISDIR: "there is a folder of that name",
}


def replace_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Write `chunks` next to `path`, flush them to disk, then rename over `path`.

    After any failure (and after Ctrl-C, which is raised again) the temporary file is gone and an
    existing `path` is untouched.

    Raises:
        BundleError: if the file cannot be written; the message says why and what to do.
    """
    # The random part keeps two writers of one path from sharing a temporary file.
    temporary = path.parent / f".{path.name[:100]}.{secrets.token_hex(8)}.tmp"
    try:
        # 0o666 minus the umask, as for any new file; tempfile would make it private to this user.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, 0o666)
        try:
            for chunk in chunks:
                _write_all(descriptor, chunk)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
            raise BundleError(f"{path}: cannot be written: {advice}") from error
        raise
    _sync_folder(path.parent)


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    # The rename has happened; where a folder cannot be synced (Windows) there is no more to do.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
