"""Pictures of numbers: forms that trainers write, and what is none."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from defocus_eval.errors import InputError
from defocus_eval.formats import read_label_map, read_segment_ids
from tests.defocus_eval.drawn import save


def test_colours_are_no_labels(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(InputError, match=r"mode RGB, not a map of labels"):
        read_label_map(path)
    with pytest.raises(InputError, match=r"mode L; a panoptic PNG is RGB"):
        read_segment_ids(save(tmp_path / "b.png", np.zeros((3, 3), np.uint8)))
    (tmp_path / "c.png").write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"c.png cannot be read as an image"):
        read_label_map(tmp_path / "c.png")


def test_forms_of_label_maps(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (read_label_map(save(tmp_path / "l.png", labels)) == labels).all()
    # What mmseg's CityscapesMetric writes.
    Image.fromarray(labels).convert("P").save(tmp_path / "p.png")
    assert (read_label_map(tmp_path / "p.png") == labels).all()
    wide = labels.astype(np.uint16) + 300
    assert (read_label_map(save(tmp_path / "w.png", wide)) == wide).all()


def test_segment_ids_are_colours(tmp_path):
    pixels = np.array([[[1, 2, 3], [255, 255, 255]]], np.uint8)
    assert read_segment_ids(save(tmp_path / "a.png", pixels)).tolist() == [[1 + 2 * 256 + 3 * 65536, 2**24 - 1]]
