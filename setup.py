"""Carries the configs, which stand beside the package in a checkout, into it. All else is in pyproject.toml."""

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class BuildWithConfigs(build_py):
    """As setuptools', and the folders of `backbones.model_zoo.CONFIG_FOLDERS` as backbones/.mim/configs/FRAMEWORK."""

    def run(self) -> None:
        """Builds, and copies the configs."""
        super().run()
        # An editable install finds them where they are.
        if self.editable_mode:
            return
        for framework, folder in runpy.run_path(str(HERE / "backbones" / "model_zoo.py"))["CONFIG_FOLDERS"].items():
            target = Path(self.build_lib) / "backbones" / ".mim" / "configs" / framework
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(HERE / folder, target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithConfigs})
