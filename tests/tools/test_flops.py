"""The program: what it prints and writes, its tables, and its words to a user who errs."""

import json
import sys
from pathlib import Path

import pytest

from backbones.flops import Subject, measure
from backbones.flops.published import FIGURES
from backbones.flops.table import Entry, entries, kept_row, row, update_tables
from backbones.integrations.flops import find_subject
from defocus_commands import flops

ROOT = Path(__file__).parents[2]


def run(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tools/flops.py", *map(str, arguments)])
        flops.main()


def test_both_conventions_are_printed_and_all_is_kept_as_json(tmp_path, capsys):
    pytest.importorskip("timm", minversion="1.0.3", reason="timm 1.0.3 or newer is not installed")
    run("deit_small_patch16_224", "--size", 224, "--json", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    # 196 patches and a class token; projections, MLP and attention of 12 blocks; a head of 1,000 classes.
    block = 2 * 197 * 12 * 384 * 384 + 2 * 6 * 197 * 197 * (64 + 64)
    expected = 2 * 196 * 768 * 384 + 12 * block + 2 * 384 * 1000
    assert found["flops"] == expected == 2 * found["macs"] and found["parameters"] == 22050664
    assert found["size"] == [224, 224] and found["by_operator"].keys() >= {"aten.addmm", "aten.convolution"}
    assert {"operator", "calls", "elements"} == set(found["uncounted"][0])
    out = capsys.readouterr().out
    assert (
        f"{expected / 1e9:.2f} G   a multiply-add counts two" in out and f"{expected / 2e9:.2f} G   half of them" in out
    )
    assert "published           4.60 G" in out and "elementwise" in out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["no_such_model", "--size", 224], "timm has no model 'no_such_model'"),
        (["no/such/file.py", "--size", 224], "there is no file no/such/file.py"),
        (["defocus_mamba_small"], "give a model and --size N"),
        (["defocus_mamba_small", "--size", 224, "--options", "num_classes"], "an option is KEY=VALUE"),
        (["defocus_mamba_small", "--size", 1, 2, 3], "a side or a height and a width"),
        (["defocus_mamba_small", "--size", 0], "in pixels, got 0"),
        (["--table", "x.md", "--size", 1], "--table goes alone"),
    ],
)
def test_a_mistake_is_one_clear_error(arguments, said, capsys):
    pytest.importorskip("timm", minversion="1.0.3", reason="timm 1.0.3 or newer is not installed")
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert said in f"{end.value.code}{capsys.readouterr().err}"


@pytest.mark.parametrize("figure", FIGURES[1:3], ids=lambda figure: figure.name)
def test_published_figures_are_multiply_adds(figure):
    pytest.importorskip("timm", minversion="1.0.3", reason="timm 1.0.3 or newer is not installed")
    assert measure(find_subject(figure.name, figure.size)).macs == pytest.approx(1e9 * figure.giga, rel=0.01)


def test_the_table_has_a_row_for_every_config():
    found = entries()
    names = {entry.name for entry in found}
    for folder in ("mmdet_configs", "mmseg_configs"):
        assert {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("*/*.py")} <= names
    assert sum("common" in name for name in names) == 0
    assert {entry.part for entry in found} == {
        "classification",
        "mmdet_configs",
        "mmseg_configs",
        "detectron2_projects",
    }
    by_name = {Path(entry.name).stem: entry.size for entry in found}
    assert by_name["upernet_defocus-mamba-base-tap_4xb2-80k_cityscapes-512x1024"] == (512, 1024)
    assert by_name["dino-4scale_defocus-mamba-base_8xb2-12e_coco"] == (800, 1280)
    assert by_name["mask-rcnn_defocus-mamba-base_8xb2-lsj-36e_coco"] == (1024, 1024)
    assert by_name["mask_rcnn_defocus_mamba_tiny"] == (160, 160)


def test_the_page_has_every_row():
    text = (ROOT / "docs/flops.md").read_text()
    assert [entry.name for entry in entries() if kept_row(entry, text, "../") is None] == [], (
        "python tools/flops.py --table docs/flops.md writes them"
    )


def test_tables_are_filled_and_known_rows_kept():
    import torch
    from torch import nn

    def build():
        model = nn.Linear(1000, 1000)
        image = torch.empty(1000, 1000)
        return Subject(model, lambda: model(image).relu().cumsum(0).sort(), [model])

    entry, other = Entry("a", "folder/x.py", (2, 3)), Entry("a", "name", (4, 4))
    line = row(entry, measure(build), "../")
    assert line.startswith("| [`x`](../folder/x.py) | 2 × 3 | 1.00 M | 2.00 | 1.00 | – | ")
    assert line.endswith("| `aten.sort` |\n")
    text = "before\n<!-- flops: a -->\nstale\n<!-- /flops -->\nafter\n"
    filled = update_tables(text, [(entry, line), (other, "| `name` | 4 × 4 | kept |\n")])
    assert filled.startswith("before\n") and filled.endswith("<!-- /flops -->\nafter\n") and "stale" not in filled
    assert kept_row(entry, filled, "../") == line and kept_row(other, filled, "../") == "| `name` | 4 × 4 | kept |\n"
    assert kept_row(entry, text, "../") is None
    with pytest.raises(ValueError, match="no rows for 'a'"):
        update_tables(text, [])
