"""Zip archives that are written whole or not at all."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from defocus_eval.errors import InputError

# What is compressed already is stored as it is.
_COMPRESSED = {".png"}
# The earliest that a zip can tell: the same content gives the same file.
_TIME = (1980, 1, 1, 0, 0, 0)


class Member(NamedTuple):
    """A file of an archive.

    Attributes:
        name: With its folders, from the archive's root.
        chunks: Its content, in parts that are made when they are written.
    """

    name: str
    chunks: Iterable[bytes]


def write_zip(path: Path, members: Iterable[Member]) -> None:
    """Writes the members, in their order, to ``path``, which must be the temporary file of `files.replacing`."""
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            info = zipfile.ZipInfo(member.name, _TIME)
            stored = Path(member.name).suffix in _COMPRESSED
            info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            # Where a file may become larger than 2 GiB; not everywhere, for old programs do not read it.
            with archive.open(info, "w", force_zip64=member.name.endswith(".json")) as file:
                for chunk in member.chunks:
                    file.write(chunk)


def unpack(path: Path, folder: Path) -> list[str]:
    """Unpacks ``path`` into ``folder``; returns the names of its files.

    Raises:
        InputError: It is no zip, is damaged, or names a file outside of itself.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            for name in names:
                if Path(name).is_absolute() or ".." in Path(name).parts:
                    raise InputError(f"{path} holds {name}, which leads outside of it; make the package anew")
            archive.extractall(folder)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot unpack {path} ({error}); make the package anew") from error
    return names
