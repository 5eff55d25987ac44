"""Networks as the command line names them, opened and compared with what their own frameworks find."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
from PIL import Image

from backbones.analysis.drawing import pictures
from backbones.integrations.app.looking import RECIPES, draw_maps, look, map_runs
from backbones.integrations.app.sources import Source
from backbones.integrations.networks import is_lazy

# Redder than blue.
PIXELS = np.random.default_rng(0).integers((100, 0, 0), (255, 255, 155), (60, 90, 3), np.uint8)
DINO = "mmdet_configs/dino/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py"
UPERNET = "mmseg_configs/upernet/upernet_defocus-mamba-tiny-fpn_1xb4-3600it_shapes.py"
MASK_RCNN = "detectron2_projects/rcnn/configs/shapes/mask_rcnn_defocus_mamba_tiny.py"


def open_and_look(word):
    looked = look("net", Source.read(str(word)).open(), PIXELS)
    assert looked.picture.shape == (*looked.seen.shape[2:], 3)
    # Whatever the order in which the network's own framework reads colours.
    assert looked.picture[..., 0].mean() > looked.picture[..., 2].mean() + 50
    return looked


def saved_image(folder):
    Image.fromarray(PIXELS).save(folder / "image.png")
    return folder / "image.png"


def assert_same_objects(found, boxes, scores, labels):
    """Objects are those of arrays that are sorted by score; the corners are x0, y0, x1, y1."""
    ours = np.array([item.box for item in found])
    ours[:, 2:] += ours[:, :2]
    np.testing.assert_allclose([item.score for item in found], scores, atol=1e-5)
    np.testing.assert_allclose(ours, boxes, atol=1e-2)
    assert [item.label for item in found] == list(labels)


def test_a_folder_of_transformers_finds_what_its_pipeline_finds(tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")
    from tests.integrations.app.tiny import save_detector

    save_detector(tmp_path)
    looked = open_and_look(tmp_path)
    pipeline = transformers.pipeline("object-detection", model=str(tmp_path), use_fast=True)
    stock = sorted(pipeline(Image.fromarray(PIXELS), threshold=0.0), key=lambda item: -item["score"])
    assert len(stock) == len(looked.prediction.objects) == 8
    for item, other in zip(looked.prediction.objects, stock):
        x, y, w, h = item.box
        assert item.score == pytest.approx(other["score"], abs=1e-5)
        assert looked.prediction.name(item.label) == other["label"]
        # The pipeline cuts to whole pixels, ours off at the image's edge.
        theirs = np.clip([other["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")], 0, [90, 60, 90, 60])
        np.testing.assert_allclose([x, y, x + w, y + h], theirs, atol=1)
    # What the backbone saw is the image, resized; the maps are of it.
    resized = np.asarray(Image.fromarray(PIXELS).resize((96, 64), Image.Resampling.BILINEAR))
    assert abs(looked.picture.astype(int) - resized).mean() < 2
    assert looked.depth == 2 and map_runs(looked, 1) == 8
    first, second = (draw_maps(looked, recipe, 1) for recipe in ("gradient", "features"))
    assert map_runs(looked, 1) == 0 and looked.measured[1].maps.drawn == (1,)
    assert first.shape != second.shape
    assert set(RECIPES.values()) <= set(pictures([looked.measured[1]]))
    with pytest.raises(ValueError, match="there is no layer 2"):
        draw_maps(looked, "gradient", 2)


@pytest.mark.parametrize(("head", "semantic"), [("mask2former", False), ("mask2former", True), ("upernet", True)])
def test_masks_and_label_maps_of_transformers(head, semantic, tmp_path):
    pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")
    from backbones.integrations.transformers_training import heads
    from tests.integrations.transformers_training.tiny import BACKBONE, MASK2FORMER

    torch.manual_seed(0)
    task = heads.find_task(head, semantic)
    options = MASK2FORMER if head == "mask2former" else {"hidden_size": 16, "auxiliary_channels": 16}
    backbone = BACKBONE | {"adapter": BACKBONE["adapter"] | {"num_outs": 4, "start_level": 1}}
    model = heads.build_model(head, task, backbone, options, ["red", "blue"]).eval()
    model.save_pretrained(tmp_path)
    processor = heads.build_processor(head, task, (64, 64), {}, 255)
    processor.save_pretrained(tmp_path)
    found = open_and_look(tmp_path).prediction
    with torch.no_grad():
        outputs = model(**processor(images=[PIXELS], return_tensors="pt"))
    if semantic:
        (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 90)])
        # Resized before they are normalised or after, near borders labels differ.
        assert (found.labels == labels.numpy()).mean() > 0.97
        assert found.certainty.shape == (60, 90) and found.certainty.min() > 0 and found.certainty.max() <= 1
        return
    (stock,) = processor.post_process_instance_segmentation(
        outputs, threshold=0.0, target_sizes=[(60, 90)], return_binary_maps=True
    )
    masks = {round(info["score"], 5): stock["segmentation"][info["id"]] for info in stock["segments_info"]}
    for item in found.objects:
        mask = masks[round(item.score, 5)].numpy().astype(bool)
        rows, columns = np.nonzero(mask)
        assert (item.mask == mask).all()
        assert item.box == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)


def test_a_config_of_mmdet_finds_what_mmdet_finds(tmp_path):
    apis = pytest.importorskip("mmdet.apis", reason="mmdet is not installed")
    torch.manual_seed(0)
    stock = apis.init_detector(DINO, None, palette="random", device="cpu")
    torch.save(
        {"state_dict": stock.state_dict(), "meta": {"dataset_meta": {"classes": ("a", "b")}}}, tmp_path / "d.pth"
    )
    looked = open_and_look(f"{DINO}:{tmp_path / 'd.pth'}")
    found = apis.inference_detector(stock, str(saved_image(tmp_path))).pred_instances.numpy()
    assert len(looked.prediction.objects) == len(found.scores) > 0 and looked.prediction.names == ("a", "b")
    order = np.argsort(-found.scores, kind="stable")
    assert_same_objects(looked.prediction.objects, found.bboxes[order], found.scores[order], found.labels[order])


def test_a_config_of_mmseg_finds_what_mmseg_finds(tmp_path):
    apis = pytest.importorskip("mmseg.apis", reason="mmseg is not installed")
    stock = apis.init_model(UPERNET, None, device="cpu")
    torch.save({"state_dict": stock.state_dict()}, tmp_path / "s.pth")
    looked = open_and_look(f"{UPERNET}:{tmp_path / 's.pth'}")
    found = apis.inference_model(stock, str(saved_image(tmp_path)))
    assert (looked.prediction.labels == found.pred_sem_seg.data[0].numpy()).all()
    probability = found.seg_logits.data.softmax(0).max(0).values.numpy()
    np.testing.assert_allclose(looked.prediction.certainty, probability, atol=1e-6)
    (tmp_path / "other.pth").write_bytes((tmp_path / "s.pth").read_bytes())
    with pytest.raises(ValueError, match="is not of this config"):
        pytest.importorskip("mmdet.apis", reason="mmdet is not installed")
        Source.read(f"{DINO}:{tmp_path / 'other.pth'}").open()


def test_a_lazy_config_finds_what_detectron2_finds(tmp_path, monkeypatch):
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from detectron2.config import LazyConfig, instantiate
    from detectron2.data.detection_utils import read_image

    config_file = Path(MASK_RCNN).absolute()
    annotations = tmp_path / "work_dirs/shapes/annotations"
    annotations.mkdir(parents=True)
    categories = [{"id": i + 3, "name": name} for i, name in enumerate("abcdef")]
    for part in ("train", "val"):
        (annotations.parent / part).mkdir()
        content = {"images": [], "annotations": [], "categories": categories}
        (annotations / f"instances_{part}.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = LazyConfig.load(str(config_file))
    stock = instantiate(config.model).eval()
    torch.save({"model": stock.state_dict()}, "model.pth")
    looked = open_and_look(f"{config_file}:model.pth")
    image = read_image(str(saved_image(tmp_path)), config.model.input_format)
    with torch.no_grad():
        (found,) = stock([{"image": torch.tensor(image.transpose(2, 0, 1).copy()), "height": 60, "width": 90}])
    found = found["instances"]
    assert len(looked.prediction.objects) == min(len(found), 100) > 0
    assert_same_objects(
        looked.prediction.objects, found.pred_boxes.tensor.numpy()[:100], found.scores[:100], found.pred_classes[:100]
    )
    assert (looked.prediction.objects[0].mask == found.pred_masks[0].numpy()).all()
    assert list(looked.prediction.names) == list("abcdef")
    assert abs(looked.picture[:60, :90].astype(int) - PIXELS).max() <= 1


def test_a_backbone_alone_has_maps(tmp_path):
    pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")
    from backbones.integrations.transformers import BACKBONES, CONFIGS
    from tests.test_families import TINY

    config = CONFIGS["DefocusRetNet"](arch=TINY["DefocusRetNet"])
    BACKBONES["DefocusRetNet"](config).save_pretrained(tmp_path)
    looked = open_and_look(tmp_path)
    assert looked.prediction.objects is None and (looked.picture == PIXELS).all()
    assert draw_maps(looked, "features", 0).ndim == 3
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="has no image processor"):
        Source.read(str(tmp_path)).open()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("epoch_12.pth", "is not a folder that transformers saved, or CONFIG.py:CHECKPOINT"),
        ("config.py", "is not a folder that transformers saved"),
        ("absent.py:net.pth", "absent.py does not exist"),
        ("net.py:absent.pth", "absent.pth does not exist"),
    ],
)
def test_words_that_name_no_network(word, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").touch()
    with pytest.raises(ValueError, match=said):
        Source.read(word)


def test_a_config_tells_whose_it_is(tmp_path):
    file = tmp_path / "config.py"
    for text, lazy in (
        ("_base_ = ['a.py']\nmodel = dict()", False),
        ("from mmengine.config import read_base\nwith read_base():\n    from .other import *", False),
        ("from .other import model", True),
        ("from detectron2.config import LazyCall as L", True),
        ("import detectron2.data.transforms as T", True),
    ):
        file.write_text(text)
        assert is_lazy(file) == lazy, text
    assert not is_lazy(Path(DINO)) and is_lazy(Path(MASK_RCNN))
    file.write_text("model = (")
    with pytest.raises(ValueError, match=r"config\.py is no config"):
        is_lazy(file)


def test_a_config_that_breaks_is_said(tmp_path):
    pytest.importorskip("mmengine", reason="mmengine is not installed")
    (tmp_path / "config.py").write_text("default_scope = 'mmdet'\nmodel = dict(type='Nothing')")
    (tmp_path / "net.pth").touch()
    with pytest.raises(ValueError, match=r"config\.py cannot be built \(KeyError: .*Nothing"):
        Source.read(f"{tmp_path / 'config.py'}:{tmp_path / 'net.pth'}").open()
