"""Training logs: whose step is what, what a resumed run replaces, what is no log."""

import pytest

np = pytest.importorskip("numpy", reason="numpy is not installed")

from defocus_eval import logs
from defocus_eval.errors import InputError
from tests.defocus_eval.training_logs import evaluation, training_lines, write_log


@pytest.mark.parametrize(
    ("epoch_length", "steps", "epochs"),
    [
        (50, [1, 2], [1, 2]),
        (None, [50, 100], [None, None]),
        (50, [50, 100], [None, None]),
        (None, [0, 0], [None, None]),
    ],
    ids=["epoch-based", "iteration-based", "epochs-logged-by-iteration", "iterations-logged-by-epoch"],
)
def test_steps_of_evaluations(tmp_path, epoch_length, steps, epochs):
    records = [
        *training_lines(10, 50, epoch_length),
        evaluation(steps[0], 0.1),
        *training_lines(60, 100, epoch_length),
        evaluation(steps[1], 0.2),
    ]
    run = logs.read_log(write_log(tmp_path / "scalars.json", records))
    assert list(run.losses) == list(range(10, 101, 10))
    assert [e.epoch for e in run.evaluations] == epochs
    assert [e.iteration for e in run.evaluations] == [50, 100]
    assert run.evaluations[1].scores == {"bbox_mAP": 0.2, "bbox_mAP_50": pytest.approx(0.3)}
    assert set(run.seconds) == set(run.losses) and set(run.seconds.values()) == {0.5}


def test_a_resumed_run_replaces_what_was_lost(tmp_path):
    records = [
        *training_lines(10, 50, 50),
        evaluation(1, 0.1),
        *training_lines(60, 100, 50),
        evaluation(2, 0.7),
    ]
    broken = write_log(tmp_path / "first.json", [*records, *training_lines(110, 120, 50)])
    broken.write_text(broken.read_text() + '{"lr": 0.0')
    resumed = [{**line, "loss": 5.0} for line in training_lines(60, 100, 50)]
    resumed = write_log(tmp_path / "second.json", [*resumed, evaluation(2, 0.2)])
    for order in ((broken, resumed), (resumed, broken)):
        run = logs.read_logs(order)
        assert list(run.losses) == list(run.seconds) == list(range(10, 101, 10))
        assert set(list(run.losses.values())[5:]) == {5.0}
        assert [(e.epoch, e.scores["bbox_mAP"]) for e in run.evaluations] == [(1, 0.1), (2, 0.2)]


def test_an_evaluation_at_the_very_step_of_resuming_is_kept_once(tmp_path):
    first = write_log(tmp_path / "first.json", [*training_lines(10, 50), evaluation(50, 0.1)])
    again = write_log(tmp_path / "again.json", [*training_lines(50, 60), evaluation(60, 0.3)])
    repeated = write_log(tmp_path / "repeated.json", [*training_lines(50, 50), evaluation(50, 0.2)])

    def scores(*paths):
        return [(e.iteration, e.scores["bbox_mAP"]) for e in logs.read_logs(paths).evaluations]

    assert scores(first, again) == [(50, 0.1), (60, 0.3)]
    assert scores(first, repeated) == [(50, 0.2)]


def test_reads_detectron2s_log(tmp_path):
    """Losses and hundredths of AP by iteration, NaN left out, what a resumed run repeats counted once."""
    log = tmp_path / "metrics.json"
    log.write_text(
        '{"iteration": 19, "total_loss": 2.0, "loss_mask": 0.7}\n'
        '{"iteration": 39, "total_loss": 1.0, "bbox/AP": 21.5, "bbox/APl": NaN, "segm/AP": NaN, "bbox/AP-star": 3.0}\n'
        '{"iteration": 39, "total_loss": 1.5}\n'
    )
    run = logs.read_log(log)
    assert run.losses == {19: 2.0, 39: 1.5}
    assert [(e.iteration, e.epoch, e.scores) for e in run.evaluations] == [(39, None, {"bbox_mAP": 0.215})]


@pytest.mark.parametrize("key", ["mIoU", "sem_seg/mIoU", "coco_panoptic/PQ", "panoptic_seg/PQ"])
def test_segmentors_log_hundredths(tmp_path, key):
    log = write_log(tmp_path / "log.json", [{"loss": 1.0, "step": 10}, {key: 67.4, "aAcc": 93.0, "step": 10}])
    (found,) = logs.read_log(log).evaluations
    assert found.scores == {key.rsplit("/")[-1]: pytest.approx(0.674)}


def test_smoothing_is_a_running_mean():
    values = np.random.default_rng(0).normal(size=60)
    smoothed = logs.smooth(values)
    # A fifteenth of 60 values: four of them, cut at the ends.
    expected = [values[max(0, i - 2) : i + 2].mean() for i in range(60)]
    np.testing.assert_allclose(smoothed, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read .*No such file.*; give the vis_data/scalars\.json"),
        ("", "is empty"),
        ("[1, 2]", "line 1 holds a list"),
        ("2025/01/01 - mmengine - INFO\n", "line 1 is not JSON"),
        ('{"acc": 1, "step": 3}\n', "neither finite training losses nor COCO evaluations"),
        (b"\xff\xfe", "is not a text file"),
    ],
)
def test_what_is_no_log(tmp_path, content, message):
    path = tmp_path / "log.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        logs.read_logs([path])
    assert str(path) in str(caught.value)
