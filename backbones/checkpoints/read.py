"""Reads checkpoint files without running what they may contain."""

import hashlib
import importlib
import json
import os
import pickle
import tempfile
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse

import torch


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file, the cause and the cure."""


# What checkpoints of mmengine and timm hold besides tensors: plain data, nothing that acts when it is built.
_HARMLESS = (
    "argparse.Namespace",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Int64DType",
    "numpy.dtypes.Int32DType",
)


def harmless_classes() -> list:
    """The classes besides tensors that checkpoints of mmengine and timm hold, for `torch.serialization.safe_globals`.

    Only those whose package is installed. They are named by where files say they are: numpy 2 keeps the old
    module names for reading.
    """
    found = [(_method_of_history, "builtins.getattr")]
    for path in _HARMLESS:
        module, _, name = path.rpartition(".")
        try:
            item = getattr(importlib.import_module(module.replace("numpy.core", _numpy_core())), name)
        # A package that is broken raises anything, and is then not what wrote the file.
        except Exception:
            continue
        found.append((item, path))
        found.append((item, path.replace("numpy.core", "numpy._core")))
    return found


def _method_of_history(owner, name: str):
    """What stands in for `getattr` while a checkpoint is read: mmengine's history names its own methods so."""
    if getattr(owner, "__qualname__", "") != "HistoryBuffer" or name.startswith("_"):
        raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is not allowed")
    return getattr(owner, name)


def _numpy_core() -> str:
    import numpy

    return "numpy._core" if int(numpy.__version__.split(".")[0]) >= 2 else "numpy.core"


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Reads a `.safetensors` file, or a file of `torch.save` with tensors and plain data only.

    Args:
        path: A file, an http(s) address, which is downloaded once into torch's hub cache, or a folder of transformers,
            whose weights may be in several files.

    Returns:
        What the file holds: a state dict, or a dict with a state dict in it.

    Raises:
        CheckpointError: The file is missing, truncated, no checkpoint, or holds more than data.
    """
    name = str(path)
    path = _download(name) if urlparse(name).scheme in ("http", "https") else Path(path).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {name} does not exist (looked for {path.absolute()})")
    if path.stat().st_size == 0:
        raise CheckpointError(f"checkpoint {name} is empty: copy or download it again")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {name} holds a {type(content).__name__}, not a dict of weights")
    if not content:
        raise CheckpointError(f"checkpoint {name} holds an empty dict: nothing was saved into it")
    return content


def _read_folder(path: Path) -> dict:
    """The weights of a folder that transformers saved."""
    index, whole = path / "model.safetensors.index.json", path / "model.safetensors"
    if not index.is_file():
        if whole.is_file():
            return read_checkpoint(whole)
        raise CheckpointError(
            f"checkpoint {path} is a folder without a model.safetensors, as transformers saves it: give the file in it"
        )
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, OSError) as error:
        raise CheckpointError(f"{index} does not say which files hold the weights ({error}): copy it again") from error
    content: dict = {}
    for name in names:
        # A file of the folder, whatever the index says.
        content |= read_checkpoint(path / Path(name).name)
    return content


def _read_safetensors(path: Path) -> dict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"{path} needs the package safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"checkpoint {path} is truncated or no safetensors file ({error}): copy or download it again"
        ) from error


def read_torch(file: str | os.PathLike | IO[bytes], map_location: Any = "cpu") -> Any:
    """`torch.load` of tensors and plain data alone, among that what mmengine and timm write.

    Args:
        file: A file of `torch.save`, or one that is open.
        map_location: As of `torch.load`.

    Raises:
        CheckpointError: The file is truncated, no checkpoint, or holds more than data.
    """
    # Leaving the context forgets what it was given: it is not to forget what was known before.
    known = torch.serialization.get_safe_globals()
    try:
        with torch.serialization.safe_globals([item for item in harmless_classes() if item not in known]):
            return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(file):
            # torch's advice comes first; what it met stands after "WeightsUnpickler error:".
            cause = _first_line(str(error).rpartition("WeightsUnpickler error:")[2].strip())
            raise CheckpointError(
                f"checkpoint {file} holds more than weights and plain data, and is not read because that could run "
                f"code ({cause}). If you trust it, load it with torch.load(..., weights_only=False) and save its "
                "state dict alone"
            ) from error
        raise CheckpointError(f"{file} is no checkpoint of torch.save ({_first_line(error)})") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {file} is truncated or damaged ({_first_line(error)}): copy or download it again"
        ) from error


def _first_line(error: Exception | str) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _download(url: str) -> Path:
    """Path of the downloaded file, kept by its whole address: other files may have the same name."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    name = Path(urlparse(url).path).name or "checkpoint.pth"
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {url} cannot be kept in {folder} ({error}): set TORCH_HOME to a writable folder, or fetch it "
            "by hand and give the file"
        ) from error
    try:
        torch.hub.download_url_to_file(url, str(path))
    except (OSError, HTTPException) as error:
        raise CheckpointError(
            f"checkpoint {url} could not be downloaded ({error}): fetch it by hand and give the file"
        ) from error
    return path
