"""Result cards: one JSON file for each published or own result, and the tables that are made from them.

A card says what was scored, where it was published or which command of which commit gave it, and the scores. README's
table of published figures and `results/README.md` are made from the cards, never by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any

from defocus_eval.errors import InputError
from defocus_eval.files import write_text
from defocus_eval.formats.files import read_json
from defocus_eval.markdown import fill_blocks, plain_table

KINDS = ("published", "own")
TASKS = {
    "object-detection": "object detection",
    "instance-segmentation": "instance segmentation",
    "panoptic-segmentation": "panoptic segmentation",
    "semantic-segmentation": "semantic segmentation",
    "image-classification": "image classification",
}
# What the headline scores are called, by part of the evaluation and its own name.
SCORES = {
    ("bbox", "AP"): "box AP",
    ("bbox", "AP50"): "box AP50",
    ("bbox", "AP75"): "box AP75",
    ("segm", "AP"): "mask AP",
    ("segm", "AP50"): "mask AP50",
    ("segm", "AP75"): "mask AP75",
    ("boundary", "AP"): "boundary AP",
    ("panoptic", "PQ"): "PQ",
    ("semantic", "mIoU"): "mIoU",
    ("semantic", "aAcc"): "pixel accuracy",
    ("classification", "accuracy"): "top-1 accuracy",
}
_NEEDED = {"published": ("source",), "own": ("command", "commit", "machine")}


@dataclass(frozen=True)
class Card:
    """A result.

    Attributes:
        name: Of its file, without `.json`.
        kind: "published" by others, or "own".
        task: A key of `TASKS`, which are the Hub's names of tasks.
        model: The backbone.
        method: What stands on it.
        data: `name` and `split`; `hub_id` where the Hub has the set.
        schedule: How long it was trained, or the size of the images.
        scores: By part of the evaluation (`bbox`, `segm`, `boundary`, `panoptic`, `semantic`, `classification`), name
            to fraction.
        date: Of publication or of the run, ISO 8601.
        source: `title` and `url` of where it was published.
        command: What gave an own result.
        commit: Of this project, for an own result.
        machine: That ran the command.
        config: File of this project, or None.
        pretraining: What the weights had seen before, or None.
        parameters: Of the whole model, or None.
        speed: `seconds` of the command, `seconds_per_step`, `images_per_second`; what is known of them.
        note: What else a reader should know.

    Raises:
        InputError: A value means nothing, or one that the kind of card needs is missing.
    """

    name: str
    kind: str
    task: str
    model: str
    method: str
    data: dict[str, str]
    schedule: str
    scores: dict[str, dict[str, float]]
    date: str
    source: dict[str, str] | None = None
    command: str | None = None
    commit: str | None = None
    machine: str | None = None
    config: str | None = None
    pretraining: str | None = None
    parameters: int | None = None
    speed: dict[str, float] = field(default_factory=dict)
    note: str | None = None

    def __post_init__(self) -> None:
        where = f"result card {self.name}"
        for key, value, known in (("kind", self.kind, KINDS), ("task", self.task, TASKS)):
            if value not in known:
                raise InputError(f"{where}: {key} {value!r} is not one of {', '.join(known)}")
        for key in _NEEDED[self.kind]:
            if not getattr(self, key):
                raise InputError(f"{where} has no {key}; a result that is {self.kind} needs it")
        for owner, keys in (("data", ("name", "split")), ("source", ("title", "url") if self.source else ())):
            for key in keys:
                if not getattr(self, owner).get(key):
                    raise InputError(f"{where}: {owner} has no {key}; write it")
        try:
            date.fromisoformat(self.date)
        except ValueError as error:
            raise InputError(f"{where}: {self.date!r} is no date; write YYYY-MM-DD") from error
        if not any(self.scores.values()):
            raise InputError(f"{where} holds no scores; a card without a result is none")
        for part, scores in self.scores.items():
            for score, number in scores.items():
                if not 0 <= number <= 1:
                    raise InputError(f"{where}: {part} {score} is {number}; write it as a fraction, 0 to 1")

    @property
    def headline(self) -> list[tuple[str, float]]:
        """Name and value of the scores that are shown, the most important first."""
        return [
            (title, self.scores[part][key]) for (part, key), title in SCORES.items() if key in self.scores.get(part, ())
        ]

    @property
    def data_set(self) -> str:
        """The data and the part of it that was scored."""
        return f"{self.data['name']}, {self.data['split']}"

    @property
    def origin(self) -> str:
        """Where the result is from, as Markdown."""
        if self.source:
            return f"published: [{self.source['title']}]({self.source['url']})"
        return f"own: `{self.command}` at {(self.commit or '')[:7]}, {self.machine}"


def read_card(path: str | Path) -> Card:
    """Reads a card.

    Raises:
        InputError: The file cannot be read, has a key that means nothing, or lacks one that is needed.
    """
    path = Path(path)
    cure = "give a result card, results/*.json"
    content = read_json(path, cure)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not an object; {cure}")
    known = [entry for entry in fields(Card) if entry.name != "name"]
    strangers = set(content) - {entry.name for entry in known}
    if strangers:
        raise InputError(f"{path}: {', '.join(sorted(strangers))} is not a key of a result card; remove it")
    needed = [entry.name for entry in known if entry.default is MISSING and entry.default_factory is MISSING]
    absent = [name for name in needed if name not in content]
    if absent:
        raise InputError(f"{path} has no {', '.join(absent)}; {cure}")
    return Card(name=path.stem, **content)


def read_cards(folder: str | Path) -> list[Card]:
    """All cards of a folder, by name.

    Raises:
        InputError: There are none, or one is not what it should be.
    """
    found = sorted(Path(folder).glob("*.json"))
    if not found:
        raise InputError(f"{folder} holds no result cards; give the folder of results/*.json")
    return [read_card(path) for path in found]


def write_card(card: Card, path: str | Path) -> None:
    """Writes a card as JSON, whole or not at all; what is None is left out."""
    content = {key: value for key, value in asdict(card).items() if key != "name" and value not in (None, {})}
    write_text(Path(path), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def headline_of(evaluation: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The scores of `SCORES` in the JSON of an evaluation, rounded to four digits."""
    scores: dict[str, dict[str, float]] = {}
    for part, name in SCORES:
        value = evaluation.get(part, {}).get(name)
        if value is not None and value >= 0:
            scores.setdefault(part, {})[name] = round(value, 4)
    return scores


def update_tables(text: str, cards: Sequence[Card], root: str = "") -> str:
    """Fills the marked blocks of a Markdown text, `<!-- results: NAME -->` to `<!-- /results -->`.

    Args:
        text: The document.
        cards: All cards.
        root: What leads from the document to the project's root, such as "../".

    Raises:
        InputError: A block asks for a table that does not exist.
    """

    def fill(name: str) -> str:
        if name not in TABLES:
            raise InputError(f"there is no table {name!r}; known are {', '.join(TABLES)}")
        return TABLES[name](cards, root)

    return fill_blocks(text, "results", fill)


def detection_table(cards: Iterable[Card], root: str = "") -> str:
    """Published figures on COCO's boxes, a row for each model and schedule."""
    rows: dict[tuple, dict[str, Card]] = {}
    for card in cards:
        if card.kind == "published" and card.task == "object-detection":
            origin = card.name.rsplit(".", 1)[-1]
            rows.setdefault((card.model, card.schedule), {})[origin] = card
    lines = []
    # Ours first: they have a config. Then by the shortest schedule.
    ours = {model: any(card.config for card in found.values()) for (model, _), found in rows.items()}
    for (model, schedule), found in sorted(rows.items(), key=lambda row: (not ours[row[0][0]], row[0][0], row[0][1])):
        card = next(iter(found.values()))
        config = f"[`{Path(card.config).name}`]({root}{card.config})" if card.config else model
        figures = (f"{100 * found[o].scores['bbox']['AP']:.1f}" if o in found else "–" for o in ("paper", "release"))
        lines.append((config, schedule.removesuffix(" epochs"), _millions(card.parameters), *figures))
    head = ("config or backbone", "epochs", "parameters", "box AP **published**: paper", "released weights")
    return plain_table(head, lines) + "\n"


def all_table(cards: Iterable[Card], root: str = "") -> str:
    """Every card: what, the scores, and where they are from."""
    lines = []
    for card in cards:
        scores = ", ".join(f"{title} {100 * value:.1f}" for title, value in card.headline)
        name = f"[{card.model}, {card.method}]({card.name}.json)"
        lines.append((name, card.data_set, card.schedule, scores, card.origin, card.date))
    return plain_table(("result", "data", "schedule", "scores", "from", "date"), lines) + "\n"


TABLES = {"coco-detection": detection_table, "all": all_table}


def _millions(parameters: int | None) -> str:
    if parameters is None:
        return "–"
    # What was published in whole millions is not given digits that nobody stated.
    return f"{parameters / 1e6:.0f} M" if parameters % 1_000_000 == 0 else f"{parameters / 1e6:.2f} M"
