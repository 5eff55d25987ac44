"""COCO files as data sets, without a list of names to keep."""

import json
import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager


def register_coco_json(json_file: str | os.PathLike, image_root: str | os.PathLike, name: str | None = None) -> str:
    """Makes a COCO instances file known to Detectron2; in lazy configs it stands where a data set's name does.

        dataloader.train.dataset.names = L(register_coco_json)(json_file=..., image_root=...)

    Args:
        json_file: Annotations in COCO's format.
        image_root: Folder that the images' ``file_name`` starts from.
        name: What to call the data set; None calls it by its file.

    Returns:
        The name.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: ``name`` is that of another data set.
    """
    for path, kind in ((json_file, "annotations"), (image_root, "images")):
        if not PathManager.exists(str(path)):
            raise FileNotFoundError(f"{kind} {path} do not exist (looked from {Path.cwd()})")
    name = str(json_file) if name is None else name
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name)
        if (known.get("json_file"), known.get("image_root")) != (str(json_file), str(image_root)):
            raise ValueError(f"{name!r} is the name of another data set, {known.get('json_file')}: choose another name")
        return name
    register_coco_instances(name, {}, str(json_file), str(image_root))
    return name


def count_categories(json_file: str | os.PathLike) -> int:
    """The number of classes in a COCO file, for ``num_classes`` of heads in lazy configs."""
    with PathManager.open(str(json_file)) as file:
        return len(json.load(file)["categories"])
