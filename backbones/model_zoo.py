"""Where the configs are: in a checkout beside the package, in an installed package inside it."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# Framework to its folder in a checkout; setup.py carries each into the package as .mim/configs/FRAMEWORK.
CONFIG_FOLDERS = {"mmdet": "mmdet_configs", "mmseg": "mmseg_configs", "detectron2": "detectron2_projects"}


def config_file(name: str) -> str:
    """The path of a config, for the stock tools or for a config of one's own that inherits it.

        _base_ = __import__('backbones').config_file('mmdet/dino/dino-4scale_defocus-mamba-base_8xb2-12e_coco.py')

    Args:
        name: "mmdet/", "mmseg/" or "detectron2/" and the path below that framework's configs, as `config_files` lists.

    Raises:
        FileNotFoundError: There is no such config; the message names those that are meant most likely.
    """
    framework, _, path = name.partition("/")
    if framework in CONFIG_FOLDERS and path and (found := _folder(framework) / path).is_file():
        return str(found)
    known = config_files()
    near = [other for other in known if Path(other).stem == Path(name).stem]
    like = ", ".join(near) or f"one of {len(known)}, as {known[0]}" if known else "and none was installed"
    raise FileNotFoundError(f"there is no config {name!r}; backbones.config_files() lists them: {like}")


def config_files() -> list[str]:
    """Names of all configs that the stock tools take, sorted."""
    found = []
    for framework in CONFIG_FOLDERS:
        folder = _folder(framework)
        names = (path.relative_to(folder) for suffix in ("py", "yaml") for path in folder.rglob(f"*.{suffix}"))
        # What Detectron2's configs share is in folders called common.
        found += [f"{framework}/{name.as_posix()}" for name in names if "common" not in name.parts]
    return sorted(found)


def _folder(framework: str) -> Path:
    beside = _PACKAGE.parent / CONFIG_FOLDERS[framework]
    return beside if beside.is_dir() else _PACKAGE / ".mim" / "configs" / framework
