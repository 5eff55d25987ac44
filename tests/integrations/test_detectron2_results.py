"""What Detectron2 predicts lasts in files that boards take: panoptic PNGs, Cityscapes' label maps and masks."""

import gc
import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2", reason="detectron2 is not installed (build it from its source)")
pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances

from backbones.integrations.detectron2.results import (
    CityscapesInstanceResults,
    CityscapesSemanticResults,
    PanopticResults,
)

FRAMES = ("aachen_000000_000019", "bochum_000000_000313")
SIZE = (40, 60)


class Stored(torch.nn.Module):
    """A model that gives what is stored with its input."""

    def forward(self, batch):
        return [sample["output"] for sample in batch]


@pytest.fixture
def catalog():
    """A data set's metadata, forgotten at the end."""
    made = []

    def make(**content):
        name = f"results_of_a_test_{len(made)}"
        MetadataCatalog.get(name).set(**content)
        made.append(name)
        return name

    yield make
    for name in made:
        MetadataCatalog.remove(name)


def run(evaluator, batch):
    """Through Detectron2's own loop."""
    scores = inference_on_dataset(Stored(), [[sample] for sample in batch], evaluator)
    del evaluator
    gc.collect()
    return scores


def panoptic_fpn_output(stuff_first):
    """What Detectron2's panoptic FPN makes of two objects on two kinds of stuff."""
    instances = Instances(SIZE)
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 5:25, 5:25], masks[1, 10:30, 35:55] = True, True
    instances.pred_masks, instances.pred_classes = masks, torch.tensor([1, 0])
    instances.scores = torch.tensor([0.9, 0.8])
    stuff = torch.full(SIZE, stuff_first)
    stuff[:, 30:] = 1
    return combine_semantic_and_instance_outputs(instances, stuff, 0.5, 100, 0.5)


def read_ids(path):
    return np.array(Image.open(path)).astype(int) @ [1, 256, 65536]


@pytest.fixture
def panoptic(catalog, tmp_path):
    """Metadata of things 3 and 7, stuff 92 and 95 (0 is all things), and ground truth: left half 92, right half 95."""
    folder = tmp_path / "panoptic_val"
    folder.mkdir()
    ids = np.full(SIZE, 1000)
    ids[:, 30:] = 2
    colours = np.stack([ids % 256, ids // 256, ids * 0], -1).astype(np.uint8)
    images, annotations = [], []
    for number in (5, 8):
        Image.fromarray(colours).save(folder / f"{number:012}.png")
        images.append({"id": number, "file_name": f"{number:012}.jpg", "height": SIZE[0], "width": SIZE[1]})
        segments = [{"id": i, "category_id": c, "area": 1200, "iscrowd": 0} for i, c in ((1000, 92), (2, 95))]
        annotations.append({"image_id": number, "file_name": f"{number:012}.png", "segments_info": segments})
    categories = [{"id": i, "name": str(i), "isthing": int(i < 90)} for i in (3, 7, 92, 95)]
    truth = tmp_path / "panoptic_val.json"
    truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return catalog(
        thing_dataset_id_to_contiguous_id={3: 0, 7: 1},
        stuff_dataset_id_to_contiguous_id={0: 0, 92: 2, 95: 1},
        panoptic_json=str(truth),
        panoptic_root=str(folder),
        label_divisor=1000,
    )


def test_panoptic_predictions_last(panoptic, tmp_path):
    batch = [
        {"file_name": f"val2017/{i:012}.jpg", "image_id": i, "output": {"panoptic_seg": panoptic_fpn_output(2)}}
        for i in (5, 8)
    ]
    evaluator = instantiate(L(PanopticResults)(dataset_name=panoptic, output_dir=str(tmp_path / "out")))
    scores = run(evaluator, batch)["panoptic_seg"]
    found = json.loads((tmp_path / "out/panoptic.json").read_text())["annotations"]
    assert [annotation["file_name"] for annotation in found] == [f"{i:012}.png" for i in (5, 8)]
    for annotation, sample in zip(found, batch):
        ids, segments = sample["output"]["panoptic_seg"]
        assert np.array_equal(read_ids(tmp_path / "out/panoptic" / annotation["file_name"]), ids.numpy())
        # Numbers of the model, told apart by things and stuff, became those of the data set.
        categories = [7, 3, 95, 92]
        assert annotation["segments_info"] == [
            {"id": segment["id"], "category_id": category} for segment, category in zip(segments, categories)
        ]
    # Of 40 × 30 pixels of grass 400 are an object's: an IoU of 2/3, for two kinds of stuff; two things too many.
    assert scores["PQ_st"] == pytest.approx(100 * 2 / 3) and scores["RQ_st"] == 100
    assert scores["PQ_th"] == 0 and scores["PQ"] == pytest.approx(100 / 3)


def test_panoptic_maps_of_categories_are_split(panoptic, tmp_path):
    """Models without a list of segments give category · label_divisor + number, and -1 where nothing is."""
    ids = torch.full(SIZE, 92000)
    ids[:, 30:], ids[0], ids[1] = 95000, -1, 3002
    output = {"panoptic_seg": (ids, None)}
    # Their categories may be the data set's own: `isthing` tells them apart by the numbers of the model.
    meta = MetadataCatalog.get(panoptic)
    meta.thing_dataset_id_to_contiguous_id.clear()
    meta.stuff_dataset_id_to_contiguous_id.clear()
    meta.thing_dataset_id_to_contiguous_id.update({3: 3})
    meta.stuff_dataset_id_to_contiguous_id.update({92: 92, 95: 95})
    batch = [{"file_name": f"{i:012}.jpg", "image_id": i, "output": output} for i in (5, 8)]
    scores = run(PanopticResults(panoptic, str(tmp_path / "out")), batch)["panoptic_seg"]
    written = read_ids(tmp_path / "out/panoptic/000000000008.png")
    assert np.array_equal(written, ids.numpy() + 1)
    found = json.loads((tmp_path / "out/panoptic.json").read_text())["annotations"][1]["segments_info"]
    assert found == [{"id": i + 1, "category_id": i // 1000} for i in (3002, 92000, 95000)]
    assert scores["PQ_st"] == pytest.approx(100 * 38 / 40)


def test_test_sets_are_written_without_scores(panoptic, tmp_path):
    (tmp_path / "panoptic_val.json").unlink()
    batch = [{"file_name": "000000000005.jpg", "image_id": 5, "output": {"panoptic_seg": panoptic_fpn_output(2)}}]
    assert run(PanopticResults(panoptic, str(tmp_path / "out")), batch) == {}
    assert (tmp_path / "out/panoptic.json").is_file() and (tmp_path / "out/panoptic/000000000005.png").is_file()


def frames(outputs):
    return [
        {"file_name": f"leftImg8bit/val/{frame[:6]}/{frame}_leftImg8bit.png", "image_id": frame, "output": output}
        for frame, output in zip(FRAMES, outputs)
    ]


def test_cityscapes_label_maps_last(catalog, tmp_path):
    torch.manual_seed(0)
    outputs = [{"sem_seg": torch.randn(19, *SIZE)} for _ in FRAMES]
    (tmp_path / "gtFine/x").mkdir(parents=True)
    # The truth is road everywhere.
    road = Image.fromarray(np.full(SIZE, 7, np.uint8))
    for frame in FRAMES:
        road.save(tmp_path / f"gtFine/x/{frame}_gtFine_labelIds.png")
    name = catalog(gt_dir=str(tmp_path / "gtFine"))
    scores = run(CityscapesSemanticResults(name, str(tmp_path / "out")), frames(outputs))
    labels = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33])
    right = 0
    for frame, output in zip(FRAMES, outputs):
        written = np.array(Image.open(tmp_path / f"out/{frame}.png"))
        assert written.dtype == np.uint8 and np.array_equal(written, labels[output["sem_seg"].argmax(0).numpy()])
        right += (written == 7).sum()
    # All 19 classes are found, the other 18 wrongly.
    assert scores["sem_seg"]["IoU"] == pytest.approx(100 * right / (2 * SIZE[0] * SIZE[1]) / 19)


def test_cityscapes_masks_last(catalog, tmp_path):
    instances = Instances(SIZE)
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 5:25, 5:25], masks[1, 10:30, 35:55] = True, True
    instances.pred_masks, instances.pred_classes = masks, torch.tensor([2, 0])
    instances.scores = torch.tensor([0.9, 0.75])
    nothing = Instances(SIZE)
    nothing.pred_masks, nothing.pred_classes = masks[:0], torch.zeros(0, dtype=torch.long)
    nothing.scores = torch.zeros(0)
    (tmp_path / "gtFine").mkdir()
    objects = np.full(SIZE, 7, np.uint16)
    objects[5:25, 5:25], objects[10:30, 35:55] = 26000, 24000
    for frame in FRAMES:
        Image.fromarray(objects).save(tmp_path / f"gtFine/{frame}_gtFine_instanceIds.png")
    classes = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    name = catalog(thing_classes=classes, gt_dir=str(tmp_path / "gtFine"))
    outputs = [{"instances": instances}, {"instances": nothing}]
    scores = run(CityscapesInstanceResults(name, str(tmp_path / "out")), frames(outputs))
    lines = (tmp_path / f"out/{FRAMES[0]}.txt").read_text().splitlines()
    assert [line.split(" ")[1:] for line in lines] == [["26", "0.8999999761581421"], ["24", "0.75"]]
    for line, mask in zip(lines, masks):
        assert np.array_equal(np.array(Image.open(tmp_path / "out" / line.split(" ")[0])), mask.numpy())
    assert (tmp_path / f"out/{FRAMES[1]}.txt").read_text() == ""
    # Half of each class is found, without a mistake: precision 1 up to a recall of 1/2.
    assert scores["segm"] == {"AP": 50, "AP50": 50}


def test_other_names_are_refused(catalog, tmp_path):
    evaluator = CityscapesSemanticResults(catalog(), str(tmp_path))
    with pytest.raises(ValueError, match=r"a/b.png is not named <city>"):
        evaluator.process([{"file_name": "a/b.png"}], [{"sem_seg": torch.zeros(19, 2, 2)}])
