"""tools/app.py as a command: what it refuses. The page itself is tests/integrations/app/test_page.py's."""

import sys

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from tests.testing import load_tool


def refusal(capsys, *words):
    with pytest.raises(SystemExit) as end:
        load_tool("app").main([str(word) for word in words])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_a_word_that_names_no_network_is_refused_before_anything_is_loaded(tmp_path, capsys):
    assert "is not a folder that transformers saved" in refusal(capsys, tmp_path, tmp_path / "net.pth")


def test_without_gradio_it_says_what_is_needed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "backbones.integrations.app.page", raising=False)
    said = " ".join(refusal(capsys, tmp_path).split())
    assert "gradio is not installed; De-focus models need gradio 6.0.0 or newer" in said
