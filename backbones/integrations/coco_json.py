"""A runner for any data in COCO's format: a config that names it needs the folder of the data and nothing else."""

import json
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

# What a split's files are called, below the data's folder; "*" may stand for what a set or a year adds.
_SPLITS = {"train": ("train",), "val": ("val", "valid", "test")}
_ANNOTATIONS = ("annotations/{}.json", "annotations/instances_{}*.json", "{}.json", "{}/_annotations.coco.json")
_IMAGES = ("{}", "images/{}", "{}*", "images/{}*", "images", "")


@RUNNERS.register_module()
class CocoJsonRunner(Runner):
    """mmengine's runner that fills in what follows from ``data_root``.

    With ``runner_type = 'CocoJsonRunner'`` in a config mmdet's own tools need ``--cfg-options data_root=FOLDER`` and
    nothing else. Read from the data are the annotation files and image folders of training and validation, the
    classes, and with them ``num_classes`` of every head that has one. Other names than the usual are given by
    ``data_files=dict(train_json=…, train_images=…, val_json=…, val_images=…)``, from ``data_root`` on.

    ``start_from`` names a checkpoint to start from, such as the demo's. It is left out where it does not exist; a
    ``load_from`` of the user's, or a run to resume, comes first.
    """

    @classmethod
    def from_cfg(cls, cfg: Config) -> "CocoJsonRunner":
        """Builds the runner from a copy of ``cfg`` that is filled in.

        Raises:
            FileNotFoundError: There is no such folder, or it holds no annotations or images; the message says what was
                looked for.
            ValueError: The classes of training and validation differ, or are not told apart by their names.
        """
        cfg = cfg.copy()
        fill_in_coco_json(cfg)
        _choose_start(cfg)
        return super().from_cfg(cfg)


def fill_in_coco_json(cfg: Config) -> None:
    """Changes ``cfg`` to train and score on the data in its ``data_root``; see `CocoJsonRunner` for the errors."""
    root = Path(cfg.data_root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"data_root={cfg.data_root!r} is no folder (looked from {Path.cwd()}): give yours with --cfg-options "
            "data_root=FOLDER"
        )
    named = cfg.get("data_files") or {}
    files = {split: _find(root, split, named) for split in _SPLITS}
    categories = {split: _categories(annotations) for split, (annotations, _) in files.items()}
    if categories["train"] != categories["val"]:
        raise ValueError(
            f"{files['train'][0]} and {files['val'][0]} list other categories, or in another order: "
            f"{categories['train']} and {categories['val']} (id and name of each). Labels are numbered in this order, "
            "so both must be equal"
        )
    classes = tuple(name for _, name in categories["train"])
    for loaders, split in (("train_dataloader", "train"), ("val_dataloader", "val"), ("test_dataloader", "val")):
        annotations, images = files[split]
        cfg[loaders].dataset.update(
            data_root="", ann_file=str(annotations), data_prefix=dict(img=str(images)), metainfo=dict(classes=classes)
        )
    for evaluator in ("val_evaluator", "test_evaluator"):
        cfg[evaluator].ann_file = str(files["val"][0])
    _set_num_classes(cfg.model, len(classes))
    print_log(
        f"{root}: {len(classes)} classes ({', '.join(classes[:8])}{', …' if len(classes) > 8 else ''}); training on "
        f"{files['train'][0]} with the images in {files['train'][1]}, scoring on {files['val'][0]}",
        logger="current",
    )


def _find(root: Path, split: str, named: dict) -> tuple[Path, Path]:
    """The annotation file and the folder of images of a split."""
    if f"{split}_json" in named:
        found = [path for path in [root / named[f"{split}_json"]] if path.is_file()]
        patterns = [named[f"{split}_json"]]
    else:
        patterns = [pattern.format(name) for name in _SPLITS[split] for pattern in _ANNOTATIONS]
        found = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    if not found:
        raise FileNotFoundError(
            f"{root} has no annotations for {split}: looked for {', '.join(patterns)}. Give "
            f"data_files.{split}_json=FILE if it is called otherwise"
        )
    annotations = found[0]
    first = _read(annotations)["images"]
    if not first:
        raise ValueError(f"{annotations} lists no images")
    name = first[0]["file_name"]
    if f"{split}_images" in named:
        patterns = [named[f"{split}_images"]]
        folders = [root / named[f"{split}_images"]]
    else:
        patterns = [pattern.format(name) for name in _SPLITS[split] for pattern in _IMAGES]
        folders = [annotations.parent, *(f for p in patterns for f in ([root] if p == "" else sorted(root.glob(p))))]
    for folder in folders:
        if (folder / name).is_file():
            return annotations, folder
    raise FileNotFoundError(
        f"{annotations} lists the image {name}, which is in none of {', '.join(map(str, folders))}. Give "
        f"data_files.{split}_images=FOLDER if its folder is called otherwise"
    )


def _read(annotations: Path) -> dict:
    try:
        content = json.loads(annotations.read_text())
    except ValueError as error:
        raise ValueError(f"{annotations} is no JSON: {error}") from error
    missing = {"images", "annotations", "categories"} - set(content if isinstance(content, dict) else ())
    if missing:
        raise ValueError(f"{annotations} is not in COCO's format: it lacks {', '.join(sorted(missing))}")
    return content


def _categories(annotations: Path) -> list[tuple[int, str]]:
    """(id, name) of each category in the file's order, in which mmdet numbers the labels."""
    found = [(category["id"], category["name"]) for category in _read(annotations)["categories"]]
    names = [name for _, name in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not found:
        raise ValueError(f"{annotations} has {f'more than one category called {twice}' if twice else 'no categories'}")
    return found


def _set_num_classes(config, count: int) -> None:
    """Sets ``num_classes`` of every part of a model's config that names it."""
    if isinstance(config, dict):
        if "num_classes" in config:
            config["num_classes"] = count
        for part in config.values():
            _set_num_classes(part, count)
    elif isinstance(config, list | tuple):
        for part in config:
            _set_num_classes(part, count)


def _choose_start(cfg: Config) -> None:
    """Takes ``start_from`` as ``load_from`` where it is there and nothing else is wanted."""
    start = cfg.get("start_from")
    resumed = cfg.get("resume") and Path(cfg.work_dir).is_dir() and find_latest_checkpoint(cfg.work_dir)
    if not start or cfg.get("load_from") or resumed:
        return
    if not Path(start).is_file():
        print_log(f"Training from scratch: {start} is not there", logger="current")
        return
    print_log(f"Training starts from {start}; what has another shape, as heads of other classes, is new", "current")
    cfg.load_from, cfg.resume = start, False
