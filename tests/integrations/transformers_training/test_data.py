"""Data sets for transformers' heads: what is read, what a head is given, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")

from backbones.integrations.transformers_training import heads
from backbones.integrations.transformers_training.augmentation import build_augmentation
from backbones.integrations.transformers_training.data import (
    CocoImages,
    LabelMapImages,
    collate_boxes,
    collate_label_maps,
    collate_masks,
)
from tests.integrations.transformers_training.tiny import draw

PICTURES = {"a.png": [(3, 8, 4, 16, 12), (7, 40, 20, 20, 20)], "b.png": [], "c.png": [(7, 0, 0, 64, 48)]}


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_labels_follow_the_order_of_the_categories(tmp_path):
    dataset = CocoImages(draw(tmp_path, PICTURES))
    assert dataset.names == ["red", "blue"] and dataset.category_ids == [7, 3]
    sample = dataset[0]
    assert sample["labels"].tolist() == [1, 0]
    assert sample["boxes"].tolist() == [[8, 4, 16, 12], [40, 20, 20, 20]]
    assert sample["image"].shape == (3, 48, 64) and sample["image"][:, 5, 9].tolist() == [20, 20, 250]


def test_training_leaves_out_crowds_and_images_without_objects(tmp_path):
    path = draw(tmp_path, PICTURES)
    edit(path, lambda content: content["annotations"][2].update(iscrowd=1))
    assert [record["file_name"] for record in CocoImages(path).records] == ["a.png", "b.png", "c.png"]
    assert [record["file_name"] for record in CocoImages(path, training=True).records] == ["a.png"]


def test_a_batch_of_boxes_has_them_as_shares_of_the_image(tmp_path):
    dataset = CocoImages(draw(tmp_path, PICTURES))
    processor = heads.build_processor("rt_detr_v2", "boxes", (32, 96), {}, 255)
    batch = collate_boxes(processor, [dataset[0], dataset[2]])
    assert batch["pixel_values"].shape == (2, 3, 32, 96)
    first, second = batch["labels"]
    assert first["class_labels"].tolist() == [1, 0] and second["class_labels"].tolist() == [0]
    expected = torch.tensor([[16 / 64, 10 / 48, 16 / 64, 12 / 48], [50 / 64, 30 / 48, 20 / 64, 20 / 48]])
    torch.testing.assert_close(first["boxes"], expected)
    torch.testing.assert_close(second["boxes"], torch.tensor([[0.5, 0.5, 1.0, 1.0]]))
    # Grey is a little above ImageNet's mean.
    assert batch["pixel_values"][0, :, 0, 0].tolist() == pytest.approx([0.074, 0.205, 0.426], abs=0.01)


def test_a_batch_of_masks_has_one_for_each_instance_and_the_upper_one_covers(tmp_path):
    path = draw(tmp_path, {"a.png": [(3, 0, 0, 32, 32), (7, 16, 16, 32, 16)]}, size=(64, 64))
    processor = heads.build_processor("mask2former", "masks", (64, 64), {}, 255)
    batch = collate_masks(processor, [CocoImages(path, masks=True)[0]])
    assert batch["class_labels"][0].tolist() == [1, 0]
    lower, upper = torch.zeros(64, 64), torch.zeros(64, 64)
    upper[16:32, 16:48] = 1
    lower[:32, :32] = 1
    assert torch.equal(batch["mask_labels"][0], torch.stack([lower * (1 - upper), upper]))


def write_maps(folder, maps):
    for kind in ("images", "maps"):
        (folder / kind).mkdir()
    for name, labels in maps.items():
        labels = np.array(labels, np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(np.stack([labels * 40] * 3, -1)).save(folder / "images" / f"{name}.jpg")
        Image.fromarray(labels).save(folder / "maps" / f"{name}.png")
    return folder / "maps", folder / "images"


def test_label_maps_are_found_by_name_and_counted(tmp_path):
    maps, images = write_maps(tmp_path, {"a": [[0, 1], [2, 255]], "b": [[4, 4], [0, 0]]})
    (images / "other.jpg").write_bytes((images / "a.jpg").read_bytes())
    dataset = LabelMapImages(maps, images)
    assert dataset.names == ["0", "1", "2", "3", "4"] and len(dataset) == 2
    processor = heads.build_processor("upernet", "semantic", (2, 2), {}, 255)
    batch = collate_label_maps(processor, [dataset[0], dataset[1]])
    assert batch["labels"].tolist() == [[[0, 1], [2, 255]], [[4, 4], [0, 0]]]


def test_a_head_of_queries_learns_a_mask_for_each_label_but_the_ignored_one(tmp_path):
    dataset = LabelMapImages(*write_maps(tmp_path, {"a": [[0, 1], [2, 255]]}), names=list("abc"))
    processor = heads.build_processor("mask2former", "semantic", (32, 32), {}, 255)
    batch = collate_label_maps(processor, [dataset[0]])
    assert batch["class_labels"][0].tolist() == [0, 1, 2]
    quarter = torch.zeros(32, 32)
    quarter[:16, 16:] = 1
    assert torch.equal(batch["mask_labels"][0][1], quarter)


def test_what_is_drawn_depends_on_epoch_and_image_alone(tmp_path):
    path = draw(tmp_path, {f"{number}.png": [(3, 4, 4, 8, 8)] for number in range(8)})

    def lefts(epoch, order):
        dataset = CocoImages(path, augmentation=build_augmentation("flip", (48, 64), 0), seed=5)
        dataset.begin_epoch(epoch)
        return {index: dataset[index]["boxes"][0, 0].item() for index in order}

    state = torch.get_rng_state()
    first = lefts(0, range(8))
    assert set(first.values()) == {4, 64 - 4 - 8}
    assert lefts(0, reversed(range(8))) == first
    assert lefts(1, range(8)) != first
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["flip", "crop", "jitter"])
def test_boxes_and_masks_stay_on_what_they_show(tmp_path, name):
    dataset = CocoImages(
        draw(tmp_path, {"a.png": [(3, 8, 10, 24, 20)]}),
        masks=True,
        augmentation=build_augmentation(name, (48, 64), 0),
    )
    seen = 0
    for epoch in range(6):
        dataset.begin_epoch(epoch)
        sample = dataset[0]
        x, y, w, h = sample["boxes"][0].round().int().tolist()
        if min(w, h) < 3:
            continue
        # Blue less red tells the rectangle from grey, whatever the colours were changed to.
        pixels = sample["image"].float()
        inside = pixels[:, y + 1 : y + h - 1, x + 1 : x + w - 1].mean((1, 2))
        assert (inside - pixels.flatten(1).median(1).values).abs().max() > 20 or w * h > 0.5 * pixels[0].numel()
        rows, columns = torch.nonzero(torch.as_tensor(sample["masks"][0]), as_tuple=True)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert found == pytest.approx([x, y, x + w, y + h], abs=1.5)
        seen += 1
    assert seen >= 3


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda content: content["images"][0].update(width=65), "is 64×48 pixels, .* says 65×48"),
        (lambda content: content["annotations"][0].update(category_id=9), "annotation 1 is of category 9"),
        (lambda content: content["annotations"][0].pop("segmentation"), "annotation 1 has no mask"),
        (lambda content: content["images"][0].update(file_name="z.png"), "z.png does not exist: give the folder"),
        (lambda content: content.pop("categories"), "not in COCO's instances format: it lacks categories"),
        (lambda content: content.update(annotations=[]), "has no image with an object"),
    ],
)
def test_a_broken_file_is_refused_with_its_cause(tmp_path, break_it, message):
    path = draw(tmp_path, PICTURES)
    edit(path, break_it)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        CocoImages(path, masks=True, training=True)[0]


def test_an_image_that_is_none_is_named(tmp_path):
    path = draw(tmp_path, PICTURES)
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"c\.png cannot be read as an image"):
        CocoImages(path)[2]


def test_label_maps_that_do_not_fit_are_refused(tmp_path):
    maps, images = write_maps(tmp_path, {"a": [[0, 3]]})
    with pytest.raises(ValueError, match=r"holds labels \[3\], there are names for 0 to 1"):
        LabelMapImages(maps, images, names=["x", "y"])[0]
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(maps / "a.png")
    with pytest.raises(ValueError, match=r"is 4×4 pixels, its image .* 16×8"):
        LabelMapImages(maps, images)[0]
    (maps / "a.png").unlink()
    with pytest.raises(ValueError, match=r"no label map .* has the name of an image"):
        LabelMapImages(maps, images)
