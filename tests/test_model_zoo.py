"""Configs by name, in a checkout and in an installed wheel."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backbones import config_file, config_files

ROOT = Path(__file__).resolve().parents[1]


def test_every_config_has_a_name():
    names = config_files()
    for folder, framework in (("mmdet_configs", "mmdet"), ("mmseg_configs", "mmseg")):
        paths = sorted(path.relative_to(folder).as_posix() for path in Path(folder).glob("*/*.py"))
        assert [name for name in names if name.startswith(framework)] == [f"{framework}/{path}" for path in paths]
        assert len(paths) > 10
    assert "detectron2/rcnn/configs/COCO/mask_rcnn_defocus_mamba_base_100ep.py" in names
    assert "detectron2/rcnn/configs/custom/faster_rcnn_defocus_mamba_tiny.yaml" in names
    assert not [name for name in names if "/common/" in name]
    assert all(Path(config_file(name)).is_file() for name in names)


@pytest.mark.parametrize(
    "name", ["dino.py", "mmdet/", "mmdet", "yolo/dino.py", "mmdet/dino", "mmdet/../pyproject.toml/x"]
)
def test_an_unknown_name(name):
    with pytest.raises(FileNotFoundError, match=r"no config .*config_files\(\) lists them"):
        config_file(name)


def test_a_name_without_its_folder_is_guessed():
    stem = "dino-4scale_defocus-mamba-base_8xb2-36e_coco"
    with pytest.raises(FileNotFoundError, match=f"mmdet/dino/{stem}.py"):
        config_file(f"{stem}.py")


@pytest.mark.slow
def test_a_wheel_carries_all(tmp_path):
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    packages = ["backbones", "defocus_commands", "defocus_eval"]
    sources = [*packages, *("mmdet_configs", "mmseg_configs", "detectron2_projects")]
    copy = tmp_path / "source"
    copy.mkdir()
    # setuptools writes beside what it builds.
    for name in (*sources, "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).symlink_to(ROOT / name)
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(copy)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("defocus_backbones-*.whl")
    installed = tmp_path / "installed"
    install = [*pip, "install", "--no-deps", "--no-compile", "--target", installed, wheel]
    subprocess.run(install, check=True, capture_output=True)
    tracked = subprocess.run(["git", "ls-files", *packages], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:
        assert [name for name in tracked.stdout.split() if not (installed / name).is_file()] == []
    # A config of one's own, elsewhere, that inherits one of the wheel's; nothing of the checkout is on the path.
    mine = tmp_path / "mine.py"
    mine.write_text(
        "_base_ = __import__('backbones').config_file('mmdet/dino/dino-5scale_defocus-mamba-base_8xb2-12e_coco.py')\n"
    )
    program = (
        "import json, sys, backbones\n"
        "from defocus_commands.__main__ import main\n"
        "try:\n"
        "    from mmengine.config import Config\n"
        "    levels = Config.fromfile('mine.py').model.num_feature_levels\n"
        "except ImportError:\n"
        "    levels = None\n"
        "print(json.dumps([backbones.__file__, backbones.config_files(), levels]))\n"
        "if sys.argv[1:]:\n"
        "    sys.exit(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    words = ["flops", "defocus_mamba_small", "--size", "224"] if importlib.util.find_spec("timm") else []
    options = dict(cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    run = subprocess.run([sys.executable, "-c", program, *words], **options)
    found = next(line for line in run.stdout.splitlines() if line.startswith("["))
    file, names, levels = json.loads(found)
    assert Path(file).is_relative_to(installed) and names == config_files() and levels in (5, None)

    assert not words or "FLOPs               9.97 G" in run.stdout
    run = subprocess.run([installed / "bin/defocus", "evaluate", "--help"], **options)
    assert run.stdout.startswith("usage: defocus evaluate [-h]")
