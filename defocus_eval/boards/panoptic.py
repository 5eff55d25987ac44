"""COCO's panoptic format: a JSON, and a folder of its name with a PNG an image, both at the root of the zip."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from defocus_eval.boards.archive import Member
from defocus_eval.boards.content import Content, Request
from defocus_eval.errors import InputError
from defocus_eval.formats import Predictions, Truth, read_predictions, read_segment_ids
from defocus_eval.formats.files import image_size
from defocus_eval.progress import with_progress

# An id is the three colours of a pixel.
_LARGEST_ID = 256**3 - 1


def prepare(request: Request, truth: Truth) -> Content:
    """Checks panoptic predictions and makes the JSON and PNGs of a package.

    Mended are keys that the board does not take, segments without a pixel, and the names of the PNGs.

    Raises:
        InputError: An annotation is not what the board takes, or a PNG is missing, broken, of another size than its
            image, or holds an id that its annotation lacks. The PNGs are looked at while they are written.
    """
    predictions = read_predictions(request.predictions, truth, request.folder)
    if "panoptic" not in predictions.kind:
        raise InputError(
            f"{request.predictions} holds {' and '.join(predictions.kind)}, {request.board.name} takes panoptic "
            "annotations; give the JSON of them (mmdet: .panoptic.json)"
        )
    _check_ids(predictions)
    content = Content(task="panoptic", notes=list(predictions.notes))
    segments = sum(len(annotation["segments_info"]) for annotation in predictions.entries["panoptic"])
    content.summary = f"{segments:,} segments in {len(truth.images):,} images"
    content.members = _members(request.package, predictions, truth, content)
    return content


def _check_ids(predictions: Predictions) -> None:
    for index, annotation in enumerate(predictions.entries["panoptic"]):
        for segment in annotation["segments_info"]:
            number = segment["id"]
            if type(number) is not int or not 0 < number <= _LARGEST_ID:
                raise InputError(
                    f"{predictions.numbers['panoptic'](index)}: segment id {number!r} is no whole number from 1 to "
                    f"{_LARGEST_ID}; 0 is what belongs to no segment, so number segments from 1"
                )


def _members(name: str, predictions: Predictions, truth: Truth, content: Content) -> Iterator[Member]:
    annotations, found = [], predictions.entries["panoptic"]
    for index, annotation in enumerate(with_progress(found, len(found), "packing panoptic maps")):
        image = truth.images[annotation["image_id"]]
        source = predictions.files[annotation["image_id"]]
        file_name = f"{Path(image['file_name']).stem}.png"
        present = _check_png(source, annotation, image, predictions.numbers["panoptic"](index))
        segments = [segment for segment in annotation["segments_info"] if segment["id"] in present]
        absent = len(annotation["segments_info"]) - len(segments)
        content.mended["{count} segments left out that have no pixel"] += absent
        content.mended["{count} PNGs named like their image"] += file_name != annotation["file_name"]
        content.mended["{count} segments rid of keys that the board does not take"] += sum(
            set(segment) != {"id", "category_id"} for segment in segments
        )
        segments = [{"id": segment["id"], "category_id": segment["category_id"]} for segment in segments]
        annotations.append({"image_id": image["id"], "file_name": file_name, "segments_info": segments})
        yield Member(f"{name}/{file_name}", [_as_png(source)])
    # The categories let a reader of the package tell what it is.
    text = json.dumps({"annotations": annotations, "categories": truth.data["categories"]}, separators=(",", ":"))
    yield Member(f"{name}.json", [text.encode()])


def _check_png(source: Path, annotation: dict, image: dict, where: str) -> set[int]:
    """Ids of the segments that have a pixel."""
    size = (image["width"], image["height"])
    if image_size(source) != size:
        width, height = image_size(source)
        raise InputError(
            f"{where}: {source} is {width}×{height}, its image {size[0]}×{size[1]}; write predictions at the size of "
            "the image"
        )
    ids, counts = np.unique(read_segment_ids(source), return_counts=True)
    pixels = dict(zip(ids.tolist(), counts.tolist()))
    pixels.pop(0, None)
    unknown = sorted(set(pixels) - {segment["id"] for segment in annotation["segments_info"]})
    if unknown:
        raise InputError(
            f"{where}: {source} has {pixels[unknown[0]]:,} pixels of id {unknown[0]}, which its segments_info lacks; "
            "write an entry for every segment of the PNG, or 0 where there is none"
        )
    return set(pixels)


def _as_png(source: Path) -> bytes:
    with Image.open(source) as picture:
        if picture.format == "PNG" and picture.mode == "RGB":
            return source.read_bytes()
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
