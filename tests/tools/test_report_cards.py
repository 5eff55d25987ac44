"""What `defocus report` makes of result cards: the Hub's card, and tables in documents."""

import pytest

for package in ("hotcoco", "jinja2", "pycocotools"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from defocus_commands import report


def test_cards_and_tables(tmp_path, capsys):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    assert report.main(["--card", "results/dino_defocus-vit-base_12e.paper.json", "--out", str(tmp_path / "card")]) == 0
    assert "value: 48.9" in (tmp_path / "card/README.md").read_text()
    document = tmp_path / "doc.md"
    document.write_text("<!-- results: coco-detection -->\n<!-- /results -->\n")
    assert report.main(["--tables", str(document), "README.md"]) == 0
    assert "| 12 | 109.90 M | 48.9 |" in document.read_text()
    assert "README.md: nothing to change" in capsys.readouterr().out
