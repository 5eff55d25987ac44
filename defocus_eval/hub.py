"""What a model's page on the Hub and a results page ask for, made from result cards.

A model card with `model-index` (README.md), one `.eval_results/*.yaml` for each benchmark, and the fields that the form
of a results page has (results_page.json). Sources: huggingface_hub, which writes and checks the first two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, HfApi, ModelCardData, eval_result_entries_to_yaml

from defocus_eval.cards import TASKS, Card
from defocus_eval.errors import InputError
from defocus_eval.files import write_text

PROJECT = "De-focus backbones for dense prediction"
PAPER = {
    "title": "Learning 1D Causal Visual Representation with De-focus Attention Networks",
    "url": "https://arxiv.org/abs/2406.04342",
    "arxiv": "2406.04342",
}
# The Hub's names of metrics; average precision has none there and keeps its own.
_METRIC_TYPES = {"mIoU": "mean_iou", "top-1 accuracy": "accuracy", "pixel accuracy": "accuracy"}

# transformers has one pipeline for all masks.
_PIPELINES = {task: "image-segmentation" for task in TASKS if task.endswith("segmentation")}
_USE = """## Use

With `defocus-backbones[transformers]` installed; no remote code is needed.

```python
import backbones.integrations.transformers  # makes the model known
from transformers import pipeline

predict = pipeline("{task}", "FOLDER, or this model's name on the Hub")
```"""


def write_hub_files(cards: Sequence[Card], out: str | Path) -> list[Path]:
    """Writes all that a model's page needs.

    Args:
        cards: Results of one model, of which no two say the same score.
        out: Folder, made if need be.

    Returns:
        The files written. A data set that the Hub does not have gets no `.eval_results` file.

    Raises:
        InputError: The cards are of several models, or two give the same score.
    """
    _refuse_several(cards)
    out = Path(out)
    # A folder of weights that transformers reads says itself what it is.
    library = "transformers" if (out / "config.json").is_file() else "pytorch"
    files = {
        "README.md": model_card(cards, library),
        "results_page.json": _json([results_page(card) for card in cards]),
    }
    for card in cards:
        if "hub_id" in card.data:
            files[f".eval_results/{card.name.replace('.', '_')}.yaml"] = eval_results(card)
    for name, text in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return [out / name for name in files]


def push_to_hub(folder: str | Path, repo_id: str, cards: Sequence[Card] = (), private: bool | None = None) -> str:
    """Uploads a folder that transformers saved: config, weights, image processor, and the model's page.

    What a training keeps there besides, its states and its checkpoints, stays.

    Args:
        folder: As of ``save_pretrained``.
        repo_id: "owner/name" on the Hub, made if need be. The account is that of ``hf auth login``.
        cards: Results of the model, of which its page is made; without any the folder's own README.md is taken.
        private: Whether a new one is hidden; None for the account's own rule.

    Returns:
        The address of the commit.

    Raises:
        InputError: The folder has no config or no weights, or the cards are of several models.
    """
    folder = Path(folder)
    for kind in ("config.json", "model*.safetensors"):
        if not any(folder.glob(kind)):
            raise InputError(f"{folder} has no {kind}; give a folder that save_pretrained of transformers wrote")
    if cards:
        write_hub_files(cards, folder)
    api = HfApi()
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    kept = ("*.json", "*.safetensors", "README.md", ".eval_results/*")
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message="Upload model",
        allow_patterns=list(kept),
        ignore_patterns=["checkpoint-*", "trainer_state.json", "results_page.json"],
    ).commit_url


def model_card(cards: Sequence[Card], library: str = "pytorch") -> str:
    """A model card: metadata with `model-index`, then text with a table of the scores.

    Args:
        cards: Results of one model.
        library: What reads the weights: "pytorch", or "transformers", whose users are told how.
    """
    first = cards[0]
    data = ModelCardData(
        license="mit",
        library_name=library,
        pipeline_tag=first.task,
        tags=["de-focus", "causal-vision", "backbone", f"arxiv:{PAPER['arxiv']}"],
        datasets=sorted({card.data["hub_id"] for card in cards if "hub_id" in card.data}) or None,
        model_name=_name(first),
        eval_results=[result for card in cards for result in _model_index(card)],
    )
    lines = ["---", data.to_yaml(), "---", "", f"# {_name(first)}", ""]
    lines += [f"From {PROJECT}, after [{PAPER['title']}]({PAPER['url']}).", ""]
    lines += ["| data | score | value |", "| --- | --- | --- |"]
    for card in cards:
        lines += [f"| {card.data_set} | {title} | {100 * value:.1f} |" for title, value in card.headline]
    if library == "transformers":
        lines += ["", *_USE.format(task=_PIPELINES.get(first.task, first.task)).splitlines()]
    for card in cards:
        lines += ["", f"## {TASKS[card.task].capitalize()} on {card.data['name']}", ""]
        lines += [f"- {name}: {value}" for name, value in _facts(card)]
    return "\n".join(lines) + "\n"


def eval_results(card: Card) -> str:
    """YAML of `.eval_results/`: one entry for each score, values in percent.

    Raises:
        InputError: The card's data set has no name on the Hub.
    """
    if "hub_id" not in card.data:
        raise InputError(f"{card.name}: {card.data['name']} has no name on the Hub; write it as data.hub_id")
    source = card.source or {}
    entries = [
        EvalResultEntry(
            dataset_id=card.data["hub_id"],
            task_id=title.replace(" ", "_").replace("-", "_").lower(),
            value=round(100 * value, 2),
            date=card.date,
            source_url=source.get("url"),
            source_name=source.get("title"),
            notes=f"{_name(card)}, {card.schedule}; {card.data['split']}",
        )
        for title, value in card.headline
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=120)


def results_page(card: Card) -> dict[str, Any]:
    """The fields of a results page's form: task, data set, metrics in percent, parameters, speed, where it is from."""
    return {
        "model_name": _name(card),
        "task": TASKS[card.task],
        "dataset": card.data["name"],
        "split": card.data["split"],
        "metrics": {title: round(100 * value, 2) for title, value in card.headline},
        "parameters": card.parameters,
        "frames_per_second": card.speed.get("images_per_second"),
        "extra_training_data": card.pretraining,
        "paper_title": PAPER["title"],
        "paper_url": PAPER["url"],
        "source": card.source or {"command": card.command, "commit": card.commit, "machine": card.machine},
        "date": card.date,
    }


def _name(card: Card) -> str:
    return f"{card.model}, {card.method}"


def _refuse_several(cards: Sequence[Card]) -> None:
    names = sorted({_name(card) for card in cards})
    if len(names) != 1:
        raise InputError(f"the cards are of {' and '.join(names)}; a model's page is of one, give the cards of one")
    said: dict[tuple[str, str], Card] = {}
    for card in cards:
        for title, _ in card.headline:
            other = said.setdefault((card.data_set, title), card)
            if other is not card:
                raise InputError(
                    f"{other.name} and {card.name} both give {title} on {card.data_set}; a model's page has one figure "
                    "for it, give the card of the weights that are on the page"
                )


def _model_index(card: Card) -> list[EvalResult]:
    source = card.source or {}
    return [
        EvalResult(
            task_type=card.task,
            dataset_type=card.data.get("hub_id", card.data["name"]),
            dataset_name=card.data["name"],
            dataset_split=card.data["split"],
            metric_type=_METRIC_TYPES.get(title, title),
            metric_value=round(100 * value, 2),
            metric_name=title,
            source_name=source.get("title"),
            source_url=source.get("url"),
        )
        for title, value in card.headline
    ]


def _facts(card: Card) -> list[tuple[str, str]]:
    units = {"seconds": "s in all", "seconds_per_step": "s a step", "images_per_second": "images a second"}
    facts = [
        ("origin", card.origin),
        ("date", card.date),
        ("schedule", card.schedule),
        ("config", card.config and f"`{card.config}`"),
        ("pre-training", card.pretraining or "none"),
        ("parameters", card.parameters and f"{card.parameters:,}"),
        ("speed", ", ".join(f"{value:g} {units[name]}" for name, value in card.speed.items())),
        ("note", card.note),
    ]
    return [(name, value) for name, value in facts if value]


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
