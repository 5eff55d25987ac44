"""Whether a program that a document names would take the words that stand behind it, without doing what it is for.

Each is read by its own parser. What a command needs and is not installed skips the test that asks.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import pydoc
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.detectron2_checkouts import detrex_root
from tests.documents import ASSIGNMENT, ROOT
from tests.testing import load_tool

Words = Sequence[str]
# Files of ours in a word, whatever stands before and behind.
OURS = re.compile(
    r"(?:mmdet_configs|mmseg_configs|detectron2_projects|transformers_recipes|results|requirements|tests|docs)/[\w./-]+\.\w+"
)
# Stands for whatever the reader has.
PLACEHOLDERS = {
    "CONFIG": "mmdet_configs/dino/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py",
    "CONFIG.py": "mmdet_configs/dino/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py",
    "RECIPE.yaml": "transformers_recipes/deimv2_defocus_mamba_tiny_shapes.yaml",
}
# Of the system, of others' clusters, of Python's packaging.
OTHERS = {"cd", "exit", "fi", "git", "if", "ruff", "scontrol"}


class Accepted(Exception):
    """Raised where a program has read its arguments."""


def read_arguments(main: Callable, words: Words) -> argparse.Namespace:
    """What a program's own parser makes of its words; fails with its message where it refuses them."""
    read = argparse.ArgumentParser.parse_args

    def stop(parser, args=None, namespace=None):
        raise Accepted(read(parser, args, namespace))

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", ["program", *words])
        try:
            main()
        except Accepted as end:
            return end.args[0]
        except SystemExit:
            pass
    pytest.fail(f"{' '.join(words)}\n{said.getvalue()}")


def look_at(words: Words) -> None:
    """Fails where a command would fail by its words, the files of ours in them, or settings of a config."""
    words = [PLACEHOLDERS.get(word, word) for word in words]
    while ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    for word in words:
        for path in OURS.findall(word):
            found = ROOT / path
            assert found.exists() or (found.stem == "NAME" and found.parent.is_dir()), f"there is no {path}"
    name, *rest = words
    name = re.sub(r"^\.venv[\w-]*/bin/", "", name)
    if name in PROGRAMS:
        PROGRAMS[name](rest)
    elif name.startswith(".ci/"):
        assert (ROOT / name).is_file(), f"there is no {name}"
    elif name.endswith((".py", ".sh")):
        _script(name, rest)
    else:
        assert name in OTHERS, f"nobody here knows the program {name}"


def _make(words: Words) -> None:
    text = (ROOT / "Makefile").read_text()
    for word in words:
        if set_here := ASSIGNMENT.fullmatch(word):
            assert re.search(rf"\b{set_here[1]}\b", text), f"the Makefile knows no {set_here[1]}"
    # What stands for something is no value that make reads.
    done = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _pip(words: Words) -> None:
    """Extras are those of the package, and a version that is named is one that is pinned."""
    text = (ROOT / "pyproject.toml").read_text()
    pinned = {line for file in (ROOT / "requirements").glob("*.txt") for line in file.read_text().split()}
    for word in words:
        extras = re.search(r"\[([\w,]+)\]", word)
        for extra in extras[1].split(",") if extras else ():
            assert re.search(rf"^{extra} = \[", text, re.MULTILINE), f"there is no extra {extra}"
        assert "==" not in word or word in pinned or word.startswith("transformers=="), f"{word} is pinned nowhere"


def _python(words: Words) -> None:
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
    elif words[0] == "-m":
        _module(words[1], words[2:])
    else:
        _script(words[0], words[1:])


def _module(name: str, words: Words) -> None:
    if name == "backbones":
        _defocus(words)
    elif name == "pytest":
        _pytest(words)
    else:
        assert name.partition(".")[0] in ("backbones", "studies", "tests"), f"nobody here knows {name}"
        package = importlib.util.find_spec(name).submodule_search_locations
        read_arguments(importlib.import_module(f"{name}.__main__" if package else name).main, words)


def _pytest(words: Words) -> None:
    files = [ROOT / word.partition("::")[0] for word in words if word.startswith("tests")]
    assert all(file.exists() for file in files), words
    if "-k" in words:
        kept = words[words.index("-k") + 1]
        assert any(kept in file.read_text() for file in files), f"no test is called {kept}"


def _defocus(words: Words) -> None:
    if words and words[0] not in ("--help", "NAME"):
        _tool(words[0].replace("-", "_"), words[1:])


def _tool(name: str, words: Words) -> None:
    if name == "train_detectron2":
        _flags_first(words)
    try:
        program = load_tool(name)
    except ImportError as error:
        # One of ours that is gone is a fault.
        assert (error.name or "").partition(".")[0] not in ("backbones", "defocus_commands", "defocus_eval"), error
        pytest.skip(f"{name}: {error}")
    if name == "train_transformers":
        importlib.import_module("backbones.integrations.transformers_training.arguments").parse(words, "")
        return
    options = read_arguments(program.main, words)
    if name == "train_detectron2":
        _lazy_config(options)


def _script(path: str, words: Words) -> None:
    """A script of ours, or of a framework's checkout or package."""
    name = Path(path).name
    if name in STOCK:
        STOCK[name](words)
    else:
        assert (ROOT / path).is_file(), f"there is no {path}"
        if name.endswith(".py"):
            _tool(Path(path).stem, words)


def _stock(name: str, words: Words) -> None:
    """A script of mmdet or mmseg, which their packages hold; the config says whose."""
    framework = "mmseg" if any(word.startswith("mmseg") for word in words) else "mmdet"
    package = pytest.importorskip(framework, reason=f"{framework} is not installed")
    path = Path(package.__path__[0]) / ".mim/tools" / name
    options = read_arguments(_load(path).parse_args, words)
    _options(framework, options.config, options.cfg_options or {})


def _launched(kind: str) -> Callable[[Words], None]:
    """`dist_*.sh` and `slurm_train.sh` hand all but a number, or the names of partition and job, on."""

    def look(words: Words) -> None:
        words = list(words)
        if kind == "slurm":
            _, _, config, folder, *rest = words
            return _stock("train.py", [config, "--work-dir", folder, "--launcher", "slurm", *rest])
        count = words.pop(1 if kind == "train" else 2)
        assert count.isdigit(), f"{count} is no number of GPUs"
        return _stock(f"{kind}.py", [*words, "--launcher", "pytorch"])

    return look


@functools.cache
def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"stock_{path.parts[-4]}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _options(framework: str, path: str, options: dict) -> None:
    """Settings of the command line are of something that the config has, and that takes them."""
    from mmengine.config import Config

    config = Config.fromfile(ROOT / path)
    for key in options:
        *parents, last = key.split(".")
        within = config
        for name in parents:
            # Every module takes it; what stands in it is for whoever reads it.
            if name == "init_cfg":
                break
            assert name in within, f"{path} has no {name} of {key}"
            within = within[name]
        else:
            kind = options.get(".".join([*parents, "type"]))
            takes = kind and last in _names(pydoc.locate(kind))
            assert last in within or key.startswith("model.") or takes, f"nothing in {path} takes {key}"
    of_model = tuple((key, value) for key, value in options.items() if key.startswith("model."))
    if of_model:
        build(framework, ROOT / path, of_model)


@functools.cache
def build(framework: str, path: Path, options: tuple[tuple[str, object], ...] = ()) -> None:
    """Builds the model of a config: a key that does nothing is an error of the part that is built with it."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    config = Config.fromfile(path)
    config.merge_from_dict(dict(options))
    init_default_scope(framework)
    with torch.device("meta"):
        importlib.import_module(f"{framework}.registry").MODELS.build(config.model)


def _names(kind: type) -> set[str]:
    return {name for base in kind.__mro__ for name in inspect.signature(base.__init__).parameters}


def _flags_first(words: Words) -> None:
    """Detectron2's parser takes all that follows the first setting for settings."""
    kinds = ["flag" if word.startswith("--") else "setting" for word in words if re.match(r"--|\w+(\.\w+)+=", word)]
    assert kinds == sorted(kinds), f"flags come before settings: {words}"


def _detectron2(words: Words) -> None:
    """Its scripts share a parser."""
    _flags_first(words)
    engine = pytest.importorskip("detectron2.engine", reason="detectron2 is not installed (build it from its source)")
    _lazy_config(read_arguments(lambda: engine.default_argument_parser().parse_args(), words))


def _lazy_config(options: argparse.Namespace) -> None:
    """The settings behind the flags are keys of the config."""
    from detectron2.config import LazyConfig
    from omegaconf import OmegaConf

    path = options.config_file.removeprefix("/path/to/")
    if "/dino/" in path:
        detrex_root()
    if path.endswith(".py"):
        config = LazyConfig.load(str(ROOT / path))
        for option in options.opts:
            key = option.partition("=")[0]
            absent = object()
            assert OmegaConf.select(config, key, default=absent) is not absent, f"{path} has no {key}"


def _torchrun(words: Words) -> None:
    options = read_arguments(
        lambda: importlib.import_module("torch.distributed.run").get_args_parser().parse_args(), words
    )
    look_at([options.training_script, *options.training_script_args])


def _accelerate(words: Words) -> None:
    launch = pytest.importorskip("accelerate.commands.launch", reason="accelerate is not installed")
    assert words[0] == "launch"
    options = read_arguments(lambda: launch.launch_command_parser().parse_args(), words[1:])
    look_at([options.training_script, *options.training_script_args])


PROGRAMS: dict[str, Callable[[Words], None]] = {
    "accelerate": _accelerate,
    "bash": lambda words: _script(words[0], words[1:]),
    "defocus": _defocus,
    "make": _make,
    "pip": _pip,
    "pytest": _pytest,
    "python": _python,
    "srun": lambda words: look_at(words),
    "torchrun": _torchrun,
}
STOCK: dict[str, Callable[[Words], None]] = {
    "train.py": lambda words: _stock("train.py", words),
    "test.py": lambda words: _stock("test.py", words),
    "dist_train.sh": _launched("train"),
    "dist_test.sh": _launched("test"),
    "slurm_train.sh": _launched("slurm"),
    "lazyconfig_train_net.py": _detectron2,
    "train_net.py": _detectron2,
}
