"""Label maps that mmseg writes, in the numbers of the board; the scores are those of its own metric."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg", reason="mmseg is not installed")
pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from mmseg.datasets import ADE20KDataset, CityscapesDataset
from mmseg.evaluation import IoUMetric

from backbones.integrations.mmseg_results import BoardLabelMetric


def samples(classes, keys=()):
    """Two predictions and their truth, as an evaluator hands them over."""
    torch.manual_seed(0)
    found = []
    for number in range(2):
        truth = torch.randint(classes, (1, 6, 8))
        found.append(
            {
                "img_path": f"data/images/bochum_000000_00031{number}_leftImg8bit.jpg",
                "pred_sem_seg": {"data": torch.where(torch.rand(1, 6, 8) < 0.7, truth, (truth + 1) % classes)},
                "gt_sem_seg": {"data": truth},
                **dict.fromkeys(keys, True),
            }
        )
    return found


def run(metric, dataset, data):
    metric.dataset_meta = dataset
    metric.process({}, data)
    return metric.compute_metrics(metric.results)


def maps(folder):
    return {path.name: np.array(Image.open(path)) for path in sorted(folder.iterdir())}


def metainfo(kind, **changes):
    dataset = kind(lazy_init=True, data_root=None, **changes)
    return dataset.metainfo


@pytest.mark.parametrize("keys", [(), ("reduce_zero_label",)])
def test_ade20k_is_numbered_from_one_whatever_the_samples_say(keys, tmp_path):
    meta, data = metainfo(ADE20KDataset), samples(150, keys)
    scores = run(BoardLabelMetric(output_dir=str(tmp_path / "ours")), meta, data)
    stock = run(IoUMetric(output_dir=str(tmp_path / "stock")), meta, data)
    assert scores == stock
    written, stocks = maps(tmp_path / "ours"), maps(tmp_path / "stock")
    assert list(written) == list(stocks) == [f"bochum_000000_00031{i}_leftImg8bit.png" for i in (0, 1)]
    for sample, ours, theirs in zip(data, written.values(), stocks.values()):
        labels = sample["pred_sem_seg"]["data"][0].numpy()
        assert ours.dtype == np.uint8 and np.array_equal(ours, labels + 1)
        # The stock metric depends on the sample.
        assert np.array_equal(theirs, labels + bool(keys))


def test_cityscapes_has_label_ids(tmp_path):
    labels = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    data = samples(19)
    scores = run(BoardLabelMetric(output_dir=str(tmp_path)), metainfo(CityscapesDataset), data)
    for sample, written in zip(data, maps(tmp_path).values()):
        assert np.array_equal(written, np.array(labels)[sample["pred_sem_seg"]["data"][0].numpy()])
    assert scores == run(IoUMetric(), metainfo(CityscapesDataset), data)


def test_other_data_keep_their_labels(tmp_path):
    data = samples(3)
    run(BoardLabelMetric(output_dir=str(tmp_path)), {"classes": ["a", "b", "c"], "reduce_zero_label": False}, data)
    for sample, written in zip(data, maps(tmp_path).values()):
        assert np.array_equal(written, sample["pred_sem_seg"]["data"][0].numpy())


def test_test_sets_are_written_without_truth(tmp_path):
    data = samples(150)
    for sample in data:
        del sample["gt_sem_seg"]
    assert run(BoardLabelMetric(output_dir=str(tmp_path), format_only=True), metainfo(ADE20KDataset), data) == {}
    assert len(maps(tmp_path)) == 2


def test_nobody_guesses_what_label_0_is(tmp_path):
    with pytest.raises(ValueError, match="open whether label 0 is the first class"):
        run(BoardLabelMetric(output_dir=str(tmp_path)), {"classes": ["a", "b", "c"]}, samples(3))
    assert not maps(tmp_path)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(BoardLabelMetric(), metainfo(CityscapesDataset), samples(19))
    assert not list(tmp_path.iterdir())
