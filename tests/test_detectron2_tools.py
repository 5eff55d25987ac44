"""Our runner, and the scripts of Detectron2's and detrex' checkouts, on our configs and a few drawn images."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed (build it from its source)")

from detectron2.config import LazyConfig

from backbones.integrations.detectron2.train import check_overrides
from defocus_commands.shapes.data_set import make_shapes
from tests.detectron2_checkouts import detectron2_root, detrex_root

pytestmark = pytest.mark.slow

RUNNER = Path("tools/train_detectron2.py").resolve()
CONFIGS = Path("detectron2_projects").resolve()
MASK_RCNN = CONFIGS / "rcnn/configs/shapes/mask_rcnn_defocus_mamba_tiny.py"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", train=8, val=3, size=96, seed=0)


def command(script, config, *options):
    return [sys.executable, *map(str, (script, "--config-file", config, *options))]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}


def run(words, folder=None):
    result = subprocess.run(words, capture_output=True, text=True, env=environment(), cwd=folder)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return result.stdout + result.stderr


def small(shapes, work_dir, iterations):
    return [
        f"data.root={shapes}",
        f"train.output_dir={work_dir}",
        f"train.max_iter={iterations}",
        "train.log_period=1",
        "train.eval_period=0",
        "train.checkpointer.period=2",
        "train.device=cpu",
        "model.backbone.net.arch.depth=2",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
    ]


def iterations(work_dir):
    records = [json.loads(line) for line in (work_dir / "metrics.json").open()]
    losses = [(record["iteration"], record["total_loss"]) for record in records if "total_loss" in record]
    assert all(0 < loss < 100 for _, loss in losses)
    return [iteration for iteration, _ in losses]


def printed_scores(output):
    return re.findall(r"copypaste: ([-\d.]+,[-\d.,na]+)", output)


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """A run that was killed once it had a checkpoint, and one that went on from there."""
    work_dir = tmp_path_factory.mktemp("work")
    process = subprocess.Popen(
        command(RUNNER, MASK_RCNN, *small(shapes, work_dir, 500)),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(600):
        if (work_dir / "last_checkpoint").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = (work_dir / "last_checkpoint").read_text()
    start = int(re.search(r"model_(\d+)\.pth", saved)[1]) + 1
    output = run(command(RUNNER, MASK_RCNN, "--resume", *small(shapes, work_dir, start + 2)))
    return work_dir, start, output


def test_resumes_after_a_kill(trained):
    work_dir, start, output = trained
    assert f"Starting training from iteration {start}" in output
    assert iterations(work_dir)[-2:] == [start, start + 1]


def test_eval_only_scores_the_same(trained, shapes):
    work_dir, _, output = trained
    checkpoint = f"train.init_checkpoint={work_dir}/model_final.pth"
    again = run(command(RUNNER, MASK_RCNN, "--eval-only", *small(shapes, work_dir, 1), checkpoint))
    # Nothing is found after so few steps or very little: what counts is that both say the same.
    assert printed_scores(again) == printed_scores(output) and len(printed_scores(again)) == 2


def test_what_detectron2_saved_goes_to_mmdet(trained):
    from backbones.checkpoints import read_checkpoint, to_mmdet, weights_of

    work_dir, _, _ = trained
    weights, container = weights_of(read_checkpoint(work_dir / "model_final.pth"))
    converted, left = to_mmdet(weights)
    assert container == "model" and "neck.fpn2.0.weight" in converted and "backbone.blocks.1.norm.weight" in converted
    assert {name.split(".")[0] for name in left} == {"proposal_generator", "roi_heads"}


def test_pictures_of_detectron2s_results(trained, shapes, tmp_path):
    work_dir, _, _ = trained
    results = work_dir / "inference/coco_instances_results.json"
    if results.read_text() == "[]":
        image = json.loads((shapes / "annotations/instances_val.json").read_text())["images"][0]["id"]
        results.write_text(json.dumps([dict(image_id=image, category_id=1, bbox=[5, 5, 20, 20], score=0.9)]))
    words = [sys.executable, "tools/show_results.py", "--annotations", shapes / "annotations/instances_val.json"]
    words += ["--images", shapes / "val", "--predictions", results, "--out", tmp_path, "--score-threshold", "0"]
    run([str(word) for word in [*words, "--log", work_dir / "metrics.json"]])
    assert (tmp_path / "predictions.png").stat().st_size > 0 and (tmp_path / "curves.png").stat().st_size > 0


def test_two_processes(shapes, tmp_path):
    output = run(
        command(RUNNER, MASK_RCNN, "--num-gpus", 2, "--dist-url", "tcp://127.0.0.1:29519", *small(shapes, tmp_path, 2))
    )
    assert "World size: 2" in output and iterations(tmp_path) == [0, 1]
    assert len(printed_scores(output)) == 2


def test_runner_says_what_needs_a_gpu(shapes, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    options = [*small(shapes, tmp_path, 1), "train.device=cuda", "train.amp.enabled=True"]
    output = run(command(RUNNER, MASK_RCNN, *options))
    assert "there is no GPU: running on the CPU" in output and "mixed precision runs on CUDA alone" in output


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "train.max_itr=5",
            r"'train\.max_itr' is nothing that this config has: train has no 'max_itr', but 'max_iter'",
        ),
        ("model.backbone.scale_factor=1", r"model\.backbone has no 'scale_factor', but 'scale_factors'"),
        ("modl.x=1", r"the config has no 'modl', but 'model'"),
        ("train.max_iter.x=1", r"train\.max_iter has no 'x'"),
        ("nothing", "'nothing' is not of the form key=value"),
        ("train.model_ema.enabled=True", "train has no 'model_ema'"),
    ],
)
def test_overrides_that_do_nothing_are_refused(override, message):
    with pytest.raises(ValueError, match=message):
        check_overrides(LazyConfig.load(str(MASK_RCNN)), [override])


def test_overrides_that_do_something_are_taken():
    config = LazyConfig.load(str(MASK_RCNN))
    # A value, an argument left at its default, a new key on request, an item of a list.
    overrides = ["train.max_iter=5", "model.backbone.net.with_cp=True", "+train.mine=1", "model.pixel_mean[0]=1.0"]
    check_overrides(config, overrides)
    config = LazyConfig.apply_overrides(config, overrides[:2])
    assert config.train.max_iter == 5 and config.model.backbone.net.with_cp is True


def test_a_moving_average_that_nobody_keeps_is_refused(shapes, tmp_path):
    words = command(RUNNER, MASK_RCNN, *small(shapes, tmp_path, 1), "+train.model_ema.enabled=True")
    result = subprocess.run(words, capture_output=True, text=True, env=environment())
    assert result.returncode != 0 and "this program keeps no moving average" in result.stderr


YAML_OPTIONS = (
    "SOLVER.MAX_ITER",
    "2",
    "SOLVER.IMS_PER_BATCH",
    "2",
    "DATALOADER.NUM_WORKERS",
    "0",
    "MODEL.DEVICE",
    "cpu",
)


def test_runner_takes_yaml(shapes, tmp_path):
    config = CONFIGS / "rcnn/configs/custom/faster_rcnn_defocus_mamba_tiny.yaml"
    sets = []
    for split in ("train", "val"):
        sets += ["--dataset", f"shapes_{split}={shapes}/annotations/instances_{split}.json:{shapes}/{split}"]
    options = ("DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('shapes_val',)", "OUTPUT_DIR", tmp_path)
    options += ("MODEL.ROI_HEADS.NUM_CLASSES", "6")
    output = run(command(RUNNER, config, *sets, *options, *YAML_OPTIONS))
    assert len(printed_scores(output)) == 1
    again = run(
        command(
            RUNNER, config, "--eval-only", *sets, *options, *YAML_OPTIONS, "MODEL.WEIGHTS", tmp_path / "model_final.pth"
        )
    )
    assert printed_scores(again) == printed_scores(output)


def test_stock_lazy_script(shapes, tmp_path):
    root = detectron2_root()
    script = root / "tools/lazyconfig_train_net.py"
    output = run(command(script, MASK_RCNN, *small(shapes, tmp_path, 2)), root)
    assert len(printed_scores(output)) == 2 and iterations(tmp_path) == [0, 1]


def test_stock_yaml_script(shapes, tmp_path):
    root = detectron2_root()
    registers = "".join(
        f"register_coco_json('{shapes}/annotations/instances_{split}.json', '{shapes}/{split}', 'shapes_{split}'); "
        for split in ("train", "val")
    )
    code = (
        "from backbones.integrations.detectron2 import register_coco_json; import runpy; "
        f"{registers}runpy.run_path('tools/train_net.py', run_name='__main__')"
    )
    config = CONFIGS / "rcnn/configs/custom/faster_rcnn_defocus_mamba_tiny.yaml"
    options = ("DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('shapes_val',)", "OUTPUT_DIR", tmp_path)
    words = [sys.executable, "-c", code, "--config-file", config, *options, "MODEL.ROI_HEADS.NUM_CLASSES", "6"]
    output = run([str(word) for word in (*words, *YAML_OPTIONS)], root)
    assert len(printed_scores(output)) == 1


def test_detrex_trainer(shapes, tmp_path):
    root = detrex_root()
    config = tmp_path / "dino_tiny.py"
    config.write_text(
        f"""
from detectron2.config import LazyCall as L, LazyConfig
from backbones.integrations.detectron2 import register_coco_json

config = LazyConfig.load({str(CONFIGS / "dino/configs/dino_defocus_mamba_base_4scale_12ep.py")!r})
dataloader, lr_multiplier, model, optimizer, train = (
    config[name] for name in ("dataloader", "lr_multiplier", "model", "optimizer", "train")
)
for split, name in (("train", "train"), ("test", "val")):
    dataloader[split].dataset.names = L(register_coco_json)(
        json_file=f"{shapes}/annotations/instances_{{name}}.json", image_root=f"{shapes}/{{name}}"
    )
    dataloader[split].num_workers = 0
dataloader.train.mapper.update(augmentation=[], augmentation_with_crop=None)
dataloader.test.mapper.augmentation = []
dataloader.train.total_batch_size = 2
model.backbone.net.update(arch=dict(embed_dims=64, inner_dims=128, depth=2, dt_rank=4), section_size=None)
model.update(num_queries=20, num_classes=6, dn_number=10, select_box_nums_for_evaluation=10)
for _part in (model.transformer.encoder, model.transformer.decoder.decoder):
    _part.update(feedforward_dim=128, num_layers=2)
train.update(init_checkpoint="", output_dir={str(tmp_path)!r}, max_iter=3, eval_period=3, log_period=1, device="cpu")
"""
    )
    # detrex' trainer and denoising want CUDA; this lets them have the CPU for it.
    launcher = tmp_path / "train_on_cpu.py"
    launcher.write_text(
        f"""
import runpy, sys, torch
to = torch.Tensor.to
torch.Tensor.cuda = lambda self: self
torch.Tensor.to = lambda self, *a, **k: self if a == ("cuda",) else to(self, *a, **k)
torch.cuda.is_available = lambda: sys._getframe(1).f_code.co_name == "run_step"
runpy.run_path({str(root / "tools/train_net.py")!r}, run_name="__main__")
"""
    )
    output = run(command(launcher, config), root)
    assert iterations(tmp_path) == [0, 1, 2]
    assert len(printed_scores(output)) == 1
