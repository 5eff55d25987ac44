"""Parts of a page without a browser: charts, where things are from, and a template that hides no mistake."""

import hashlib
import html
import json
import subprocess

import pytest

np = pytest.importorskip("numpy", reason="numpy is not installed")
jinja2 = pytest.importorskip("jinja2", reason="Jinja2 is not installed")

from defocus_eval.errors import InputError
from defocus_eval.logs import Evaluation, Run
from defocus_eval.pages import charts, provenance, render

RUN = Run(
    {step: 100.0 / step for step in range(1, 1001)},
    [Evaluation(500, 1, {"bbox_mAP": 0.2}), Evaluation(1000, 2, {"bbox_mAP": 0.4})],
    {step: 0.25 for step in range(1, 1001)},
)
EMPTY = Run({}, [], {})


def test_long_lines_are_thinned_and_keep_their_ends():
    ys = np.sqrt(np.arange(5000.0))
    ys[10] = np.nan
    points = charts.line("loss", "a", np.arange(5000), ys)["points"]
    assert len(points) == charts.MOST_POINTS and points[0] == [0, 0] and points[-1] == [4999, 70.704]
    assert all(y == pytest.approx(x**0.5, rel=1e-4) for x, y in points)


def test_charts_of_a_training():
    (loss, scores), sentence = charts.training([RUN], ["run"])
    assert sentence == "1,000 iterations, 0.25 s each (median)."
    assert [len(series["points"]) for series in loss.series] == [400, 400]
    assert loss.series[0]["points"][-1] == [1000, 0.1]
    # The first losses are large: they end at the top instead of hiding the rest.
    assert max(y for series in loss.series for _, y in series["points"]) <= loss.y[1][1] < 100
    assert scores.series[0]["points"] == [[1, 0.2], [2, 0.4]] and scores.x[0] == "epoch"
    assert "box AP 0.400 at epoch 2" in scores.caption


def test_charts_of_two_trainings_and_of_one_without_a_log():
    (loss, scores), sentence = charts.training([RUN, RUN], ["old", "new"])
    assert [series["name"] for series in loss.series] == [
        *("old, logged", "old, smoothed", "new, logged", "new, smoothed"),
    ]  # fmt: skip
    assert [series["name"] for series in scores.series] == ["old, box AP", "new, box AP"]
    assert "old: 1,000 iterations" in sentence and "new: 1,000 iterations" in sentence
    (loss, _), _ = charts.training([EMPTY, RUN], ["old", "new"])
    assert [series["color"] for series in loss.series] == ["b", "b"]
    assert charts.training([EMPTY], ["run"]) == ([], "")


def test_files_are_told_with_their_hash(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"x" * 200_000)
    (tmp_path / "p.bbox.json").write_text("[]")
    run = provenance.RunFiles("run", tmp_path / "p", (tmp_path / "log",), None, tmp_path / "net.pth")
    facts = dict(provenance.run_facts(run))
    assert hashlib.sha256(b"x" * 200_000).hexdigest() in facts["checkpoint"] and "0.2 MB" in facts["checkpoint"]
    # A prefix stands for the files that begin with it.
    assert "p.bbox.json" in facts["predictions"] and hashlib.sha256(b"[]").hexdigest() in facts["predictions"]
    with pytest.raises(InputError, match="q does not exist"):
        provenance.run_facts(provenance.RunFiles("run", tmp_path / "q"))
    with pytest.raises(InputError, match=r"cannot read .*net\.py"):
        provenance.config_text(tmp_path / "net.py")


def test_the_commit_of_a_checkout(tmp_path):
    assert provenance.commit(tmp_path) is None

    def git(*words):
        settings = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", tmp_path, *settings, *words], check=True, capture_output=True, text=True)

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert provenance.commit(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert provenance.commit(tmp_path) == f"{commit} with changes"


def test_the_machine_is_told():
    facts = dict(provenance.common_facts(provenance.Path(__file__), None, ["python", "tools/report.py"]))
    assert "GiB" in facts["machine"] and facts["command"] == "python tools/report.py"
    assert f"numpy {np.__version__}" in facts["software"]


def test_data_cannot_end_its_script():
    text = render.script_json({"name": "</script><!--\u2028"})
    assert "<" not in text and "\u2028" not in text
    assert json.loads(text) == {"name": "</script><!--\u2028"}
    with pytest.raises(ValueError):
        render.script_json(float("nan"))


def test_a_name_that_the_template_lacks_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        render.render_page({"title": "t"}, [], None)


def test_names_are_text_on_the_page():
    page = {
        "title": "<b>&", "subtitle": "", "runs": [], "parts": [], "gallery": None, "training": None,
        "origin": [{"title": "t", "facts": [("command", "a < b")]}], "notes": [], "configs": [], "made": "",
    }  # fmt: skip
    text = render.render_page(page, [], None)
    assert html.escape("<b>&") in text and "<b>&" not in text and "a &lt; b" in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
