"""Frameworks that are absent, old or broken: packages that stand in for them, in processes of their own."""

import importlib
import itertools
import multiprocessing
import re
import subprocess
import sys
import traceback

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import backbones.integrations
from backbones.integrations.frameworks import ADAPTERS, OLDEST, FrameworkError, needed, timm_names
from backbones.ops.decay_attention import DECAY_ATTENTION
from backbones.ops.deformable_attention import DEFORMABLE_ATTENTION
from backbones.ops.retention import RETENTION
from backbones.ops.selective_scan import DEFOCUS_SCAN
from tests.conftest import ROOT

REGISTRY = """
class Registry:
    known = {}
    def register_module(self, name, module, force=False):
        self.known[name] = module
MODELS = Registry()
"""
TIMM_MODELS = """
known = {}
def register_model(create):
    known[create.__name__] = create
"""
OLD = {
    "timm": {"__init__": "__version__ = '0.9.16'\n", "models": TIMM_MODELS},
    "mmengine": {"__init__": "__version__ = '0.9.1'\n", "registry": REGISTRY},
}
BROKEN = {
    "timm": {"__init__": "__version__ = '1.0.31'\n", "models": TIMM_MODELS, "data": "raise OSError('no such library')"},
    "mmengine": {"__init__": "__version__ = '0.10.7'\n", "dist": "int.gone", "registry": REGISTRY, "hooks": "int.gone"},
}


def write(folder, packages):
    for package, modules in packages.items():
        (folder / package).mkdir(parents=True)
        for name, text in modules.items():
            (folder / package / f"{name}.py").write_text(text)
    return str(folder)


def with_packages(folder, packages, function):
    """Runs a function where packages are found first that nobody has imported, and fails where it does."""

    def child():
        for name in list(sys.modules):
            ours = re.fullmatch(
                r"backbones\.integrations\.(timm|openmmlab|detectron2|annotation_check|coco_json|transformers|app\.page)",
                name,
            )
            if ours or name.partition(".")[0] in packages:
                del sys.modules[name]
        sys.path.insert(0, write(folder, packages))
        try:
            function()
        except BaseException:
            send.send(traceback.format_exc())
        send.send("")

    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    message = receive.recv() if receive.poll(60) else "no answer"
    process.join()
    assert not message, message


def test_import_with_old_and_broken_frameworks(tmp_path):
    """What users do: nothing is said, and the backbones are there."""
    packages = {"timm": OLD["timm"], "mmengine": BROKEN["mmengine"], "detectron2": {"__init__": "raise RuntimeError"}}
    path = write(tmp_path, packages | {"triton": {"__init__": "raise ImportError"}})
    code = f"import sys; sys.path.insert(0, {path!r}); import backbones; print(backbones.DefocusViT.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("DefocusViT\n", 0), result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize(
    "packages, timm, mmengine",
    [
        (OLD, "timm 0.9.16 is installed; .* need timm 1.0.3 or newer", "mmengine 0.9.1 is installed; .* 0.10.0 or"),
        (
            BROKEN,
            r"timm .* cannot be used as it is installed \(OSError: no such library\); .* need timm 1.0.3 or newer",
            r"mmengine .* cannot be used as it is installed \(AttributeError: .*gone.*\); .* need mmengine 0.10.0",
        ),
    ],
    ids=["old", "broken"],
)
def test_who_asks_an_unusable_framework_for_a_model_is_told(tmp_path, packages, timm, mmengine):
    def ask():
        backbones.integrations.register_installed()
        from mmengine.registry import MODELS
        from timm.models import known

        assert set(known) == {name for name, _, _ in timm_names()} and "defocus_mamba_base" in known
        assert set(MODELS.known) == {"DefocusMamba", "DefocusViT", "DefocusRetNet", *ADAPTERS}
        for create in known.values():
            with pytest.raises(FrameworkError, match=timm):
                create(pretrained=True)
        for build in MODELS.known.values():
            with pytest.raises(FrameworkError, match=mmengine):
                build(arch="base")

    with_packages(tmp_path, packages, ask)


def test_a_framework_that_can_register_nothing_is_left_alone(tmp_path):
    packages = {name: {"__init__": "raise RuntimeError('broken')"} for name in ("timm", "mmengine")}
    with_packages(tmp_path, packages, backbones.integrations.register_installed)


@pytest.mark.parametrize(
    "package, module, text, message",
    [
        ("detectron2", "detectron2", "__version__ = '0.5'", "detectron2 0.5 is installed; .* need detectron2 0.6 or"),
        (
            "detectron2",
            "detectron2",
            "raise OSError('undefined symbol')",
            r"cannot be used .*OSError: undefined symbol",
        ),
        ("timm", "timm", "__version__ = '0.9.16'", "timm 0.9.16 is installed"),
        ("mmengine", "openmmlab", "__version__ = '0.9.1'", "mmengine 0.9.1 is installed"),
        (
            "transformers",
            "transformers",
            "__version__ = '4.57.1'",
            "transformers 4.57.1 is .* need transformers 5.24.0 or",
        ),
        ("transformers", "transformers", "import tokenizers_of_another_age", "transformers .* cannot be used"),
        ("gradio", "app.page", "__version__ = '3.18.0'", "gradio 3.18.0 is installed; .* need gradio 6.0.0 or newer"),
    ],
)
def test_an_integration_that_is_imported_by_name_says_why_it_cannot_be(tmp_path, package, module, text, message):
    if module == "app.page":
        pytest.importorskip("matplotlib", reason="what the page draws with is not installed")

    def ask():
        with pytest.raises(FrameworkError, match=message):
            __import__(f"backbones.integrations.{module}")

    with_packages(tmp_path, {package: {"__init__": text}}, ask)


@pytest.mark.parametrize("package, oldest", [("timm", "1.0.3"), ("transformers", "5.24.0")])
def test_an_installed_framework_that_is_too_old_is_named(package, oldest):
    """With the framework itself, not what stands in for it: in the environments of `make test-matrix` that have it."""
    found = pytest.importorskip(package, reason=f"{package} is not installed").__version__
    if Version(found) >= Version(oldest):
        pytest.skip(f"{package} {found} is not too old")
    words = re.escape(f"{package} {found} is installed; De-focus models need {package} {oldest} or newer")
    with pytest.raises(FrameworkError, match=words):
        importlib.import_module(f"backbones.integrations.{package}")


def test_the_extras_ask_for_no_less_than_the_integrations():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    imported = {"onedl-mmengine": "mmengine", "onedl-mmdetection": "mmdet", "onedl-mmsegmentation": "mmseg"}
    seen = set()
    for asked in map(Requirement, itertools.chain.from_iterable(extras.values())):
        package = imported.get(asked.name, asked.name)
        if package in OLDEST:
            (bound,) = asked.specifier
            assert bound.operator == ">=" and Version(bound.version) >= Version(OLDEST[package]), asked
            seen.add(package)
    assert seen == set(OLDEST) - {"detectron2"}  # on no registry


def test_mistakes_of_our_own_are_not_laid_to_a_framework(monkeypatch):
    monkeypatch.setitem(OLDEST, "torch", "2.6")
    with pytest.raises(ImportError) as caught, needed("torch"):
        from backbones.ops import no_such_operation  # noqa: F401
    assert not isinstance(caught.value, FrameworkError)
    monkeypatch.setitem(OLDEST, "no_such_framework", "1.2")
    message = "^no_such_framework is not installed; De-focus models need no_such_framework 1.2 or newer$"
    with pytest.raises(FrameworkError, match=message), needed("no_such_framework"):
        pass
    monkeypatch.setitem(OLDEST, "torch", "99.1")
    message = r"torch 2\..* is installed; De-focus models need torch 99.1 or newer"
    with pytest.raises(FrameworkError, match=message), needed("torch"):
        pass


@pytest.mark.parametrize(
    "operation, backend, package, modules",
    [
        (RETENTION, "triton", "triton", {"__init__": "import transformers_of_another_age"}),
        (DEFORMABLE_ATTENTION, "mmcv", "mmcv", {"__init__": "", "ops": "raise OSError('undefined symbol')"}),
        (DEFOCUS_SCAN, "mamba_ssm", "mamba_ssm", {"__init__": "raise RuntimeError('no CUDA driver')"}),
        (DEFOCUS_SCAN, "triton", "triton", {"__init__": "int.gone"}),
        (DECAY_ATTENTION, "triton", "triton", {"__init__": "int.gone"}),
    ],
)
def test_a_backend_whose_package_is_broken_is_passed_over(tmp_path, operation, backend, package, modules):
    def ask():
        # What an earlier test chose, it chose where the packages were whole.
        operation._selected.clear()
        assert f"the package {package} cannot be imported (" in operation.backends[backend].refusal("cuda")
        with pytest.raises(
            RuntimeError, match=f"'{backend}' cannot run on cuda: the package {package} cannot be imported"
        ):
            operation.select("cuda", backend)
        assert operation.select("cuda").name != backend

    with_packages(tmp_path, {package: modules}, ask)


def test_a_broken_mmengine_does_not_keep_checkpoints_from_being_read(tmp_path):
    import torch

    from backbones.checkpoints import read_checkpoint

    torch.save({"model": {"x": torch.ones(1)}}, tmp_path / "x.pth")

    def read():
        assert read_checkpoint(tmp_path / "x.pth")["model"]["x"] == 1

    with_packages(tmp_path / "packages", {"mmengine": {"__init__": "raise RuntimeError('broken')"}}, read)
