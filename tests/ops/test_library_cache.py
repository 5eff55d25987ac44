"""Where the compiled library is kept, and for how long."""

import os
import time

import pytest

from backbones.ops import library_cache
from tests.ops.small_library import answer, libraries, needs_compiler


@needs_compiler
@pytest.mark.parametrize("named", [".", "~/x", "below/it"])
def test_names_of_the_folder(home, monkeypatch, named):
    monkeypatch.chdir(home / "tmp")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DEFOCUS_CACHE_DIR", named)
    assert answer() == 42
    expected = {".": home / "tmp", "~/x": home / "x", "below/it": home / "tmp" / "below" / "it"}[named]
    assert len(libraries(expected)) == 1


@needs_compiler
def test_without_a_name_it_is_the_users_cache(home, monkeypatch):
    monkeypatch.delenv("DEFOCUS_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(home))
    assert library_cache.folders()[0] == home / ".cache" / "defocus"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    assert library_cache.folders()[0] == home / "xdg" / "defocus"


@needs_compiler
def test_the_cache_keeps_those_used_last(home, monkeypatch):
    cache = home / "cache"
    cache.mkdir()
    monkeypatch.setattr(library_cache, "KEPT", 3)
    now = time.time()
    for days in range(1, 6):
        old = cache / f"defocus-old-{days}.so"
        old.write_bytes(b"x")
        # Used in the one order, written in the other.
        os.utime(old, (now - days * 86_400, now - (9 - days) * 86_400))
    for name, days in (("build-killed", 2), ("build-working", 0.5)):
        (cache / name).mkdir()
        (cache / name / "answer.o").touch()
        os.utime(cache / name, (now - days * 86_400,) * 2)
    assert answer() == 42
    left = {path.name for path in cache.iterdir()}
    assert {"defocus-old-1.so", "defocus-old-2.so", "build-working", ".lock"} < left and len(left) == 5
    # Being found is being used, also where reading a file leaves no trace, as on a disk mounted with noatime.
    (library,) = (path for path in libraries(cache) if "tuned" in path.name)
    digest = library_cache._digest

    def read_without_trace(path):
        before = path.stat()
        content = digest(path)
        os.utime(path, (before.st_atime, before.st_mtime))
        return content

    monkeypatch.setattr(library_cache, "_digest", read_without_trace)
    os.utime(library, (now - 9 * 86_400, now))
    assert answer() == 42
    assert time.time() - library.stat().st_atime < 3600
