"""What the machine has: versions, devices, compilers, where compiled kernels are kept."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import backbones
from backbones.benchmark.clock import processor
from backbones.doctor.records import Finding, in_words
from backbones.ops import cpu_extension, library_cache

# What is imported, by the name that people know it by.
PACKAGES = {
    "Triton": "triton",
    "timm": "timm",
    "mmengine": "mmengine",
    "mmcv": "mmcv",
    "mmcv's operators": "mmcv.ops",
    "mmdet": "mmdet",
    "mmseg": "mmseg",
    "Detectron2": "detectron2",
    "detrex": "detrex",
    "mamba-ssm": "mamba_ssm",
    "mamba-ssm's CUDA scan": "selective_scan_cuda",
    "causal-conv1d": "causal_conv1d",
}
# Settings of others that change what runs, or how fast.
VARIABLES = ("CXX", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "TRITON_INTERPRET")


def devices() -> list[str]:
    """Device types that are there and that the doctor tries."""
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def describe_machine(say: Callable[[str], None]) -> tuple[dict[str, str], list[Finding]]:
    """What there is, by its name, and what of it is broken. Imports the optional packages; none can stop it."""
    facts = {
        "this package": backbones.__version__,
        "Python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "PyTorch": f"{torch.__version__}{_cuda_build()}",
    }
    findings = []
    for title, module in PACKAGES.items():
        say(f"importing {title}")
        facts[title], broken = describe_package(module)
        if broken:
            findings.append(Finding("note", f"{title} is installed and broken: {facts[title]}", "reinstall it"))
    facts["processor"] = f"{processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    facts |= _gpus()
    say("the C++ compiler, which builds the CPU kernels once: about 20 seconds")
    facts["C++ compiler"], finding = _compiler()
    findings += finding
    facts["nvcc"] = shutil.which("nvcc") or "none: nothing here needs it"
    facts["kernels kept in"] = ", else ".join(map(_short, library_cache.folders())) or "no folder"
    facts["Triton's kernels kept in"] = _short(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    names = sorted(name for name in os.environ if name.startswith("DEFOCUS_") or name in VARIABLES)
    facts["settings"] = ", ".join(f"{name}={_short(os.environ[name])}" for name in names) or "none"
    return facts, findings


def describe_package(module: str) -> tuple[str, bool]:
    """Version of an optional package, or why there is none, and whether that is a fault."""
    package = module.partition(".")[0]
    try:
        if importlib.util.find_spec(package) is None:
            return "not installed", False
        # The page goes to standard output, and some packages greet there.
        with contextlib.redirect_stdout(sys.stderr):
            imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Parts of a package that were not built are absent, as the package is.
        return (f"{_version(package)} without {module}", False) if error.name == module else (in_words(error), True)
    except (Exception, SystemExit) as error:
        return f"{_version(package)}, {in_words(error)}", True
    return str(getattr(imported, "__version__", None) or _version(package)), False


def _version(package: str) -> str:
    names = importlib.metadata.packages_distributions().get(package, ())
    return ", ".join(importlib.metadata.version(name) for name in names) or "installed"


def _cuda_build() -> str:
    if torch.version.hip:
        return f", built for ROCm {torch.version.hip}"
    return f", built for CUDA {torch.version.cuda}" if torch.version.cuda else ", built without CUDA"


def _gpus() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {"GPU": "none that PyTorch can use"}
    tf32 = "on" if torch.backends.cuda.matmul.allow_tf32 else "off"
    facts = {"fp32 products in TF32": f"{tf32} (PyTorch's setting; the definition is float64)"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        facts[f"cuda:{index}"] = (
            f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
            f"{properties.multi_processor_count} multiprocessors, {properties.total_memory / 2**30:.0f} GiB"
        )
    return facts


def _compiler() -> tuple[str, list[Finding]]:
    """The compiler in words; that it is there and its kernels are not is a fault."""
    try:
        present = cpu_extension.compiler()
    except cpu_extension.NoCompiler as error:
        message = "the CPU runs on plain PyTorch, which is slower: there is no C++ compiler"
        return f"none: {error}", [Finding("note", message, "install g++")]
    except Exception as error:
        return in_words(error), [Finding("wrong", f"the C++ compiler does not work: {in_words(error)}", "set CXX")]
    result = subprocess.run([*present.command, "--version"], capture_output=True, text=True, errors="replace")
    words = f"{' '.join(present.command)}: {(result.stdout or result.stderr).strip().splitlines()[0]}"
    if reason := cpu_extension.refusal("cpu"):
        cure = "name another compiler in CXX, and send this page to us"
        return words, [Finding("wrong", f"a C++ compiler is there and the CPU kernels cannot be used: {reason}", cure)]
    return words, []


def _short(path: object) -> str:
    """A path without the name of the user's home."""
    home = str(Path.home())
    return str(path).replace(home, "~") if len(home) > 1 else str(path)
