"""Keeps compiled libraries for all processes of a user: whole ones only, and not too many.

A library's name ends in the digest of its content, so that one rename puts it there whole, and what was truncated or
damaged since is seen before it is loaded: a process that maps such a file may end without a message.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "DEFOCUS_CACHE_DIR"
# A library has a few megabytes. Machines of several kinds that share a home have one each.
KEPT = 16
# A build that was killed leaves its folder; one that still works is not that old.
ABANDONED_SECONDS = 86_400

logger = logging.getLogger("backbones")


class UnusableFolder(Exception):
    """A folder that nothing can be written into; the message says why."""


def folders() -> list[Path]:
    """Where libraries are looked for and kept: the user's cache, and if that cannot be written a temporary folder."""
    found = []
    # Python raises RuntimeError for a user without a home, as in a container.
    with contextlib.suppress(RuntimeError):
        named = os.environ.get(VARIABLE)
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "defocus"
        # The loader looks a name without a folder up elsewhere.
        found.append((Path(named) if named else home).expanduser().absolute())
    if hasattr(os, "getuid"):
        found.append(Path(tempfile.gettempdir()).absolute() / f"defocus-{os.getuid()}")
    return found


def find(folder: Path, stem: str) -> Path | None:
    """The library of a name that was used last, or None. Damaged ones are removed, with a warning."""
    if not _is_ours(folder):
        return None
    for path in _by_use(folder, f"{stem}-*.so"):
        with contextlib.suppress(FileNotFoundError):
            if path.stem.rpartition("-")[2] == _digest(path):
                # The time of access says when it was used; that of writing stays.
                with contextlib.suppress(OSError):
                    os.utime(path, (time.time(), path.stat().st_mtime))
                return path
            logger.warning("%s is damaged and is not loaded", path)
            with contextlib.suppress(OSError):
                path.unlink()
    return None


@contextlib.contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """A folder to build in, inside of a cache, while no other process builds there.

    Raises:
        UnusableFolder: The cache cannot be made or written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_ours(folder):
                raise UnusableFolder(f"{folder} is another user's, or others can write it")
            stack.enter_context(_lock(folder / ".lock"))
            build = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="build-"))
        except OSError as error:
            raise UnusableFolder(f"{folder} cannot be written: {error.strerror or error}") from error
        yield Path(build)


def keep(built: Path, folder: Path, stem: str) -> Path:
    """Moves a library into a cache and removes those that were not used for longest, which stay loaded where they are.

    Args:
        built: The library, on the same disk.
        folder: The cache.
        stem: What its name begins with.

    Returns:
        Where it is now.
    """
    target = folder / f"{stem}-{_digest(built)}.so"
    os.replace(built, target)
    for old in _by_use(folder, "*.so")[KEPT:]:
        with contextlib.suppress(OSError):
            old.unlink()
    for abandoned in _by_use(folder, "build-*"):
        if time.time() - abandoned.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(abandoned, ignore_errors=True)
    return target


def _is_ours(folder: Path) -> bool:
    """Whether no other user can have put a library there. The user's own cache is trusted as it is."""
    if folder.parent != Path(tempfile.gettempdir()).absolute() or not hasattr(os, "getuid"):
        return True
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _by_use(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder, those used last first. Other processes may add and remove some meanwhile."""
    used = []
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            used.append((-path.stat().st_atime, path))
    return [path for _, path in sorted(used)]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Lets one process build while others wait. Ends with its process, so that no dead one holds it."""
    with path.open("w") as file:
        # Some systems and network disks have no locks (ENOLCK). There several processes may build at once, each in its
        # own folder, and the last rename leaves what the others left.
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("waiting for another process that builds in %s", path.parent)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
