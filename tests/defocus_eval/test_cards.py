"""Result cards: what is read and refused, README's figures, and what the Hub reads of the files made for it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed")
huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

from defocus_eval import cards, hub
from defocus_eval.errors import InputError

ROOT = Path(__file__).parents[2]
ALL = cards.read_cards(ROOT / "results")
CONTENT = {
    "kind": "own",
    "task": "object-detection",
    "model": "Net",
    "method": "Head",
    "data": {"name": "set", "split": "val"},
    "schedule": "1 epoch",
    "scores": {"bbox": {"AP": 0.5}},
    "command": "make",
    "commit": "0123456789",
    "machine": "a machine",
    "date": "2026-01-31",
}


def by_name(name):
    return next(card for card in ALL if card.name == name)


@pytest.mark.parametrize("document", ["README.md", "results/README.md"])
def test_tables_of_the_documents_are_those_of_the_cards(document):
    text = (ROOT / document).read_text()
    assert "<!-- results: " in text
    root = "../" if "/" in document else ""
    assert cards.update_tables(text, ALL, root) == text


def test_the_figures_that_were_published():
    """By hand, from arXiv 2406.04342 and the release's own table."""
    rows = [row.split(" | ") for row in cards.detection_table(ALL).splitlines()[2:]]
    found = [tuple(cell.strip("| ") for cell in (row[1], row[3], row[4])) for row in rows]
    assert found == [
        ("12", "50.8", "50.2"),
        ("36", "53.5", "53.2"),
        ("12", "48.9", "–"),
        ("12", "49.1", "–"),
        ("36", "52.3", "–"),
        ("12", "49.0", "–"),
        ("36", "50.9", "–"),
    ]
    assert [re.search(r"(mamba-base|vit-base|DeiT-Base|ResNet-50)", row[0])[0] for row in rows] == [
        *("mamba-base", "mamba-base", "vit-base"), *("DeiT-Base",) * 2, *("ResNet-50",) * 2,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "document", "figures"),
    [
        ("demo_dino_defocus-mamba-tiny", "docs/demos.md", ["maxDets=100 ] = 0.443", "= 0.622", "= 0.511"]),
        ("demo_upernet_defocus-mamba-tiny", "docs/demos.md", ["mIoU 63.8", "| 63.8 | 92.7 |"]),
        ("shapes_rt-detr-v2_defocus-mamba-tiny", "docs/demos.md", ["box AP 41.8, AP50 58.6, AP75 49.8"]),
        ("demo_deimv2_defocus-mamba-tiny", "docs/demos.md", ["box AP 54.8, AP50 74.4, AP75 64.6"]),
        ("demo_mask-rcnn-d2_defocus-mamba-tiny", "docs/demos.md", ["box AP 51.3, mask AP 40.1"]),
        ("demo_mask-rcnn-d2_defocus-mamba-tiny", "detectron2_projects/rcnn/README.md", ["69.9 | 60.7", "65.7 | 40.6"]),
        ("shapes_mask-rcnn_defocus-mamba-tiny", "docs/demos.md", ["box AP 0.438 and mask AP 0.357"]),
    ],
)
def test_own_figures_stand_in_the_documents(name, document, figures):
    text = " ".join((ROOT / document).read_text().split())
    stated = {
        round(float(number) / (100 if float(number) > 1 else 1), 4)
        for f in figures
        for number in re.findall(r"\d+\.\d+", f)
    }
    assert all(figure in text for figure in figures)
    values = {value for _, value in by_name(name).headline}
    assert stated <= values, (stated, values)


def test_every_config_is_a_file_of_the_project():
    for card in ALL:
        assert card.config is None or (ROOT / card.config).is_file(), card.name


def test_a_card_is_written_as_it_is_read(tmp_path):
    for card in ALL:
        cards.write_card(card, tmp_path / f"{card.name}.json")
        assert cards.read_card(tmp_path / f"{card.name}.json") == card
        assert (tmp_path / f"{card.name}.json").read_text() == (ROOT / f"results/{card.name}.json").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "rumour"}, "kind 'rumour' is not one of published, own"),
        ({"task": "detection"}, "task 'detection' is not one of object-detection"),
        ({"commit": None}, "has no commit"),
        ({"kind": "published"}, "has no source"),
        ({"kind": "published", "source": {"title": "A paper"}}, "source has no url"),
        ({"data": {"name": "set"}}, "data has no split"),
        ({"date": "yesterday"}, "'yesterday' is no date; write YYYY-MM-DD"),
        ({"scores": {"bbox": {"AP": 50.2}}}, "bbox AP is 50.2; write it as a fraction"),
        ({"scores": {"bbox": {}}}, "holds no scores"),
        ({"AP": 0.5}, "AP is not a key of a result card"),
        ({"model": ...}, "has no model"),
    ],
)
def test_a_wrong_card_is_refused(tmp_path, change, message):
    content = {key: value for key, value in {**CONTENT, **change}.items() if value is not ...}
    (tmp_path / "card.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        cards.read_cards(tmp_path)
    assert "card" in str(caught.value)


def test_a_folder_without_cards_and_a_table_without_cards(tmp_path):
    with pytest.raises(InputError, match="holds no result cards"):
        cards.read_cards(tmp_path)
    with pytest.raises(InputError, match="there is no table 'lvis'"):
        cards.update_tables("<!-- results: lvis -->\n<!-- /results -->", ALL)


def test_only_marked_blocks_are_filled():
    text = "before\n<!-- results: coco-detection -->\nold\n<!-- /results -->\nafter\n"
    filled = cards.update_tables(text, ALL)
    assert filled.startswith("before\n<!-- results: coco-detection -->\n| config")
    assert filled.endswith("|\n<!-- /results -->\nafter\n") and "old" not in filled
    assert cards.update_tables(filled, ALL) == filled


def test_headline_of_an_evaluation():
    evaluation = {"bbox": {"AP": 0.41234567, "AP50": 0.5, "APs": 0.1, "AP75": -1}, "semantic": {"mIoU": 0.25}, "n": 3}
    found = {part: scores for part, scores in evaluation.items() if isinstance(scores, dict)}
    assert cards.headline_of(found) == {"bbox": {"AP": 0.4123, "AP50": 0.5}, "semantic": {"mIoU": 0.25}}


def test_the_hub_reads_what_is_written_for_it(tmp_path):
    card = by_name("dino_defocus-mamba-base_12e.release")
    written = hub.write_hub_files([card], tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        *("README.md", "results_page.json"),
        ".eval_results/dino_defocus-mamba-base_12e_release.yaml",
    ]
    expected = {"box AP": 50.2, "box AP50": 68.2, "box AP75": 54.5}
    data = huggingface_hub.ModelCard.load(written[0]).data
    assert {r.metric_name: r.metric_value for r in data.eval_results} == expected
    assert {(r.task_type, r.dataset_type, r.dataset_split, r.source_url) for r in data.eval_results} == {
        ("object-detection", "detection-datasets/coco", "val2017", card.source["url"])
    }
    entries = huggingface_hub.parse_eval_result_entries(yaml.safe_load(written[2].read_text()))
    assert {e.task_id: e.value for e in entries} == {"box_ap": 50.2, "box_ap50": 68.2, "box_ap75": 54.5}
    assert {(e.dataset_id, e.date, e.source_url) for e in entries} == {
        ("detection-datasets/coco", "2024-06-07", card.source["url"])
    }
    (page,) = json.loads(written[1].read_text())
    assert page["metrics"] == expected and page["parameters"] == 115_360_000 and page["dataset"] == "COCO"


def test_a_folder_of_transformers_goes_to_the_hub_with_its_page(tmp_path, monkeypatch):
    sent = {}

    class Api:
        def create_repo(self, repo_id, private, exist_ok):
            assert exist_ok
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, folder_path, allow_patterns, ignore_patterns, **_):
            paths = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
            rules = dict(allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
            sent["files"] = sorted(huggingface_hub.utils.filter_repo_objects(paths, **rules))
            return SimpleNamespace(commit_url="there")

    monkeypatch.setattr(hub, "HfApi", Api)
    card = by_name("dino_defocus-mamba-base_12e.release")
    with pytest.raises(InputError, match=r"has no config\.json; give a folder that save_pretrained"):
        hub.push_to_hub(tmp_path, "me/mine", [card])
    (tmp_path / "checkpoint-5").mkdir()
    for name in ("config.json", "model.safetensors", "training_args.bin", "optimizer.pt", "trainer_state.json"):
        (tmp_path / name).touch()
        (tmp_path / "checkpoint-5" / name).touch()
    assert hub.push_to_hub(tmp_path, "me/mine", [card]) == "there"
    results = ".eval_results/dino_defocus-mamba-base_12e_release.yaml"
    assert sent["files"] == [results, "README.md", "config.json", "model.safetensors"]
    page = (tmp_path / "README.md").read_text()
    assert huggingface_hub.ModelCard(page).data.library_name == "transformers"
    assert 'pipeline("object-detection"' in page and "import backbones.integrations.transformers" in page


def test_a_set_that_the_hub_does_not_have_gets_no_eval_results(tmp_path):
    card = by_name("demo_upernet_defocus-mamba-tiny")
    assert [path.name for path in hub.write_hub_files([card], tmp_path)] == ["README.md", "results_page.json"]
    (result, _) = huggingface_hub.ModelCard.load(tmp_path / "README.md").data.eval_results
    assert (result.metric_type, result.metric_value) == ("mean_iou", 63.8)
    with pytest.raises(InputError, match="drawn shapes has no name on the Hub"):
        hub.eval_results(card)


def test_a_page_is_of_one_model_and_one_figure(tmp_path):
    paper, release = (by_name(f"dino_defocus-mamba-base_12e.{origin}") for origin in ("paper", "release"))
    with pytest.raises(InputError, match="both give box AP on COCO, val2017"):
        hub.write_hub_files([paper, release], tmp_path)
    with pytest.raises(InputError, match="are of De-focus Mamba-Base, DINO, 4 scales and Other, DINO, 4 scales"):
        hub.write_hub_files([paper, replace(paper, model="Other")], tmp_path)
    assert not list(tmp_path.iterdir())
