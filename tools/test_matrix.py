"""Tests the project with the oldest and the newest versions that it promises, and prints a table.

Each environment is made once, below work_dirs/matrix, and kept. So is its result as long as neither it nor the project
changes: an interrupted run goes on where it was. What fails does not stop the others.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import setup_env
from setup_env import ROOT

from defocus_eval.files import write_text

FOLDER = ROOT / "work_dirs" / "matrix"
# What needs no framework, and of the rest what is not skipped without.
CORE = ("ops", "layers", "mixers", "adapters", "checkpoints", "integrations", "test_defocus.py", "test_families.py")
CORE += ("test_classifier.py", "test_resolution.py")
# What runs on mmcv: all configs built, and the tools of mmdet and mmseg.
STOCK = ("integrations", "checkpoints", "test_configs.py", "test_stock_tools.py", "test_stock_mmseg_tools.py")
# What runs on transformers and accelerate: backbones, heads, the Trainer and its program.
TRANSFORMERS = ("integrations", "checkpoints", "tools/test_train_transformers.py")
# What mmcv's build takes from the environment.
BUILD = ("setuptools>=77,<81", "wheel", "ninja", "psutil")
ORIGINAL = ("mmengine==0.10.7", "mmdet==3.3.0", "mmsegmentation==1.2.2", "ftfy", "regex")
ONEDL = ("onedl-mmengine", "onedl-mmdetection", "onedl-mmsegmentation", "ftfy", "regex")
# Distributions that the table shows, and as what.
FRAMEWORKS = {"mmengine": "mmengine", "mmcv": "mmcv", "mmdet": "mmdet", "mmsegmentation": "mmseg"}
FRAMEWORKS |= {"onedl-mmengine": "OneDL mmengine", "onedl-mmcv": "mmcv"}
FRAMEWORKS |= {"onedl-mmdetection": "mmdet", "onedl-mmsegmentation": "mmseg"}
FRAMEWORKS |= {"transformers": "transformers", "accelerate": "accelerate"}
# Of the extras `transformers` and `eval`, what the Trainer's program and its tests ask for beside these.
SCORES = ("torchvision", "pillow", "matplotlib", "hotcoco", "pycocotools", "pyyaml", "scipy", "tqdm")


@dataclass(frozen=True)
class Environment:
    """What to test with.

    Attributes:
        python: Its version, such as "3.10".
        tests: Files and folders of ``tests``.
        packages: Requirements, where one without a version means the newest when the environment is made. None are
            named where `setup_env` makes it.
        mmcv: Requirement of mmcv, which is compiled.
        frameworks: What is installed after it.
    """

    python: str
    tests: tuple[str, ...]
    packages: tuple[str, ...] = ()
    mmcv: str | None = None
    frameworks: tuple[str, ...] = ()


ENVIRONMENTS = {
    "oldest": Environment("3.10", CORE, ("torch==2.6.0", "timm==1.0.3", "numpy<2")),
    "older-timm": Environment("3.11", ("integrations",), ("torch==2.6.0", "timm==0.9.16")),
    "newest": Environment("3.12", CORE, ("torch", "timm")),
    # The newest PyTorch that takes C++17, as which mmcv is compiled.
    "newest-onedl": Environment("3.13", STOCK, ("torch<2.14", "torchvision", "timm"), "onedl-mmcv", ONEDL),
    "original": Environment("3.10", STOCK, ("torch==2.6.0", "torchvision", "timm==1.0.3"), "mmcv==2.1.0", ORIGINAL),
    "oldest-transformers": Environment(
        "3.11", TRANSFORMERS, ("torch==2.6.0", "transformers==5.24.0", "accelerate==1.7.0", *SCORES)
    ),
    "older-transformers": Environment("3.11", ("integrations",), ("torch==2.6.0", "transformers==4.57.1", *SCORES)),
    "newest-transformers": Environment("3.13", TRANSFORMERS, ("torch", "transformers", "accelerate", *SCORES)),
    "set-up-3.10": Environment("3.10", STOCK),
    "set-up-3.13": Environment("3.13", STOCK),
}


class CannotMake(Exception):
    """An environment that cannot be made; the message says why."""


def main() -> None:
    """Tests the environments that are named, or all; ends with status 1 if any could not be made or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}; all by default")
    names = parser.parse_args().names or list(ENVIRONMENTS)
    if unknown := [name for name in names if name not in ENVIRONMENTS]:
        parser.error(f"no environment is called {', '.join(unknown)}; there are: {', '.join(ENVIRONMENTS)}")
    results = {}
    for name in names:
        print(f"== {name}", flush=True)
        results[name] = tested(name, ENVIRONMENTS[name])
    print("\n" + table(results))
    if any(result["problem"] or result["failed"] for result in results.values()):
        sys.exit(1)


def tested(name: str, environment: Environment) -> dict:
    """The result of an environment, kept from before where nothing has changed since."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    wanted = fingerprint(environment)
    kept = folder / "result.json"
    if kept.is_file() and (result := json.loads(kept.read_text()))["fingerprint"] == wanted:
        print(f"  done before: {kept}")
        return result
    result = dict(fingerprint=wanted, python=environment.python, torch="–", timm="–", frameworks="–")
    result |= dict(passed=0, failed=0, skipped=0, minutes=0, problem="")
    try:
        python = make(environment, folder)
        result |= versions(python) | run_tests(python, environment.tests, folder)
    except CannotMake as error:
        result["problem"] = str(error)
        print(f"  {error}")
    # What could not be made is tried again.
    if not result["problem"]:
        write_text(kept, json.dumps(result, indent=1))
    return result


def make(environment: Environment, folder: Path) -> Path:
    """The Python of an environment, which is made where it is not there or not complete.

    Raises:
        CannotMake: There is no such Python, or a package cannot be installed.
    """
    venv, stamp = folder / "venv", folder / "complete.json"
    python = venv / "bin" / "python"
    system = find_python(environment.python)
    if not environment.packages:
        # It has a stamp of its own.
        with (folder / "make.log").open("w") as log:
            run([system, ROOT / "tools" / "setup_env.py", venv], log)
        return python
    wanted = json.dumps(asdict(environment))
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    stamp.unlink(missing_ok=True)
    shutil.rmtree(venv, ignore_errors=True)
    # uv shares the files of equal packages between environments, which are gigabytes of CUDA libraries each.
    install = [sys.executable, "-m", "uv", "pip", "install", "--python", python]
    with (folder / "make.log").open("w") as log:
        run([sys.executable, "-m", "uv", "venv", "--python", system, venv], log)
        run([*install, *environment.packages, *BUILD, "pytest", "safetensors"], log)
        if environment.mmcv:
            install_mmcv(python, [*install, "-v", "--no-cache", "--no-build-isolation", environment.mmcv], log)
            run([*install, "--no-build-isolation", *environment.frameworks], log)
    write_text(stamp, wanted)
    return python


def run(command: list, log: TextIO) -> None:
    """Runs a command, with its output to a log.

    Raises:
        CannotMake: It failed.
    """
    command = [str(part) for part in command]
    print(f"  {shlex.join(command)}", flush=True)
    if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
        last = Path(log.name).read_text(errors="replace").splitlines()[-1:]
        raise CannotMake(f"{shlex.join(command)} failed, see {log.name}: {''.join(last)}")


def install_mmcv(python: Path, command: list, log: TextIO) -> None:
    """Compiles mmcv as the set-up does, for the CPU.

    Raises:
        CannotMake: It does not compile.
    """
    try:
        setup_env.install_mmcv(python, command, dict(os.environ, MMCV_WITH_OPS="1", FORCE_CUDA="0"), log)
    except SystemExit as error:
        raise CannotMake(f"mmcv does not compile, see {log.name}: {error}") from error


def find_python(version: str) -> str:
    """A Python of a version, on the path or of pyenv.

    Raises:
        CannotMake: There is none.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    named = shutil.which(f"python{version}")
    for python in [*([named] if named else []), *sorted(pyenv.glob(f"{version}.*/bin/python{version}"))]:
        # pyenv's shim on the path may stand for a version that is not chosen.
        if subprocess.run([python, "-c", "import venv"], capture_output=True).returncode == 0:
            return str(python)
    raise CannotMake(f"there is no Python {version}, neither on the path nor below {pyenv}")


def versions(python: Path) -> dict[str, str]:
    """What is installed, as the table shows it."""
    code = (
        "import importlib.metadata as m, json, platform; "
        "found = {d.name.lower(): d.version for d in m.distributions()}; "
        "print(json.dumps(found | {'python': platform.python_version()}))"
    )
    found = json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout)
    frameworks = ", ".join(f"{shown} {found[name]}" for name, shown in FRAMEWORKS.items() if name in found)
    chosen = {key: found.get(key, "–") for key in ("python", "torch", "timm")}
    return chosen | dict(frameworks=frameworks or "–")


def run_tests(python: Path, tests: tuple[str, ...], folder: Path) -> dict[str, float]:
    """How many tests passed, failed and were skipped, and how many minutes they took. What they print goes on.

    Raises:
        CannotMake: They did not even start.
    """
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", *(f"tests/{name}" for name in tests), f"--junitxml={report}"]
    command += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    environment = dict(os.environ, DEFOCUS_CACHE_DIR=str(FOLDER / "cache"), PYTHONPATH=str(ROOT))
    start = time.monotonic()
    subprocess.run([str(part) for part in command], cwd=ROOT, env=environment)
    minutes = round((time.monotonic() - start) / 60, 1)
    if not report.is_file():
        raise CannotMake("pytest left no report, see above")
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    tests, failures, errors, skipped = (
        sum(int(suite.get(key)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return dict(passed=tests - failed - skipped, failed=failed, skipped=skipped, minutes=minutes)


def fingerprint(environment: Environment) -> str:
    """Changes with an environment and with any file of the project that git knows or would take, documents apart."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    digest = hashlib.sha256(json.dumps(asdict(environment)).encode())
    for name in sorted(names):
        if (ROOT / name).is_file() and not name.endswith((".md", ".jpg", ".png")):
            digest.update(f"{name}\n".encode() + (ROOT / name).read_bytes())
    return digest.hexdigest()


def table(results: dict[str, dict]) -> str:
    """The results as a table in Markdown."""
    columns = ("python", "torch", "timm", "frameworks", "passed", "failed", "skipped", "minutes")
    lines = ["| environment | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for name, result in results.items():
        cells = [str(result[column]) for column in columns]
        if result["problem"]:
            cells[3] = result["problem"].splitlines()[0]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
