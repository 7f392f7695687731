"""A model card as Markdown, and as JSON of the model schema of RSNA's ATLAS, the Annotated Library of AI Systems."""

import html
from typing import Any

from ichkit.show.table import BLANK, NOTHING
from ichkit.stages.predict.card import INTENDED_USE, Card, Measured, Network
from ichkit.stages.predict.model import RESEARCH_NOTE
from ichkit.work.artifacts import encode_json

CARD_MARKDOWN, CARD_JSON = "model-card.md", "model-card.json"
ATLAS_SCHEMA = "https://atlas.rsna.org/schemas/2025-11/model.json"
"""Source: RSNA ATLAS, model schema of 2025-11, https://github.com/RSNA/ATLAS."""
BLANK_LINK = "https://to-be-filled-in.invalid/"
"""The mark where the schema asks for an address; `.invalid` never exists (RFC 2606)."""
_METRICS = ("area under the receiver operating characteristic curve", "cross-entropy")
_KEYWORD_CHARACTERS = range(2, 65)
_AUTHORS = ("Authors", "Contact", "Address of the model", "Licence", "Funding", "Ethical review", "Clinical benefit")
_NETWORK_COLUMNS = (
    "run",
    "network",
    "folds",
    "parameters",
    "image size",
    "epochs",
    "initial weights",
    "slices",
    "hours",
)
_OUTPUT = "Probability of each class for each slice; for a study the maximum over its slices."
_INPUT = "Axial CT slices of one series, in Hounsfield units."


def encode_card(card: Card) -> dict[str, bytes]:
    """Both forms by file name."""
    return {CARD_MARKDOWN: to_markdown(card).encode(), CARD_JSON: encode_json(to_atlas(card))}


def to_markdown(card: Card) -> str:
    """The card for readers; every field of the authors is marked."""
    facts = {
        "task": f"{card.task.title}: {', '.join(card.task.classes)}",
        "input": _INPUT,
        "output": _OUTPUT,
        "architecture": card.architecture,
        "training data": card.data,
        "version": card.version,
        "created": card.created,
    }
    lines = [
        f"# Model card: {_plain(card.name)}",
        "",
        f"**{RESEARCH_NOTE}** Made from the manifests and scores of the model; what they do not tell is marked "
        f'"{BLANK}".',
        "",
        *_table(("", ""), facts.items()),
        "",
        "## Intended use",
        "",
        INTENDED_USE,
        "",
        "## Networks",
        "",
        *_table(_NETWORK_COLUMNS, map(_network_row, card.networks)),
        "",
        "## Performance",
        "",
        *_performance(card),
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in card.limits),
        "",
        "## Of the authors",
        "",
        *_table(("", ""), ((name, BLANK) for name in _AUTHORS)),
    ]
    return "\n".join(lines) + "\n"


def to_atlas(card: Card) -> dict[str, Any]:
    """The card for ATLAS; a field of the authors holds the mark, and an optional one that has no text is left out."""
    keywords = dict.fromkeys([card.task.title, *card.task.classes, "deep learning"])
    model = {
        "Name": f"ichkit {card.name}",
        "Link": BLANK_LINK,
        "Indexing": {"Content": ["CT"], "Keywords": [word for word in keywords if len(word) in _KEYWORD_CHARACTERS]},
        "Descriptors": {
            "Authors": [{"Name": BLANK}],
            "Contact": BLANK,
            "Date": {"Created": card.created},
            "Ethical review": BLANK,
            "Funding": BLANK,
            "License": {"Text": BLANK},
            "Version": card.version,
            "Comments": RESEARCH_NOTE,
        },
        "Model properties": _properties(card),
        "Imaging": {
            "Modalities": ["Computed tomography (RID10321)"],
            "File format": ["DICOM"],
            "Resolution": _resolution(card),
        },
        "Model performance": {"Metrics": list(_METRICS) if card.scores else [], "Comments": _say_scores(card)},
    }
    return {"$schema": ATLAS_SCHEMA, "Model": model}


def _properties(card: Card) -> dict[str, Any]:
    return {
        "Architecture": card.architecture,
        "Availability": BLANK,
        "Clinical benefit": BLANK,
        "Decision threshold": _say_thresholds(card),
        "Indications for use": INTENDED_USE,
        "Input": _INPUT,
        "Instructions": "ichkit predict DICOM_PATH --model FOLDER",
        "Limitations": " ".join((f"Training data: {card.data}.", *card.limits)),
        "Output": {"Description": f"{_OUTPUT} Classes: {', '.join(card.task.classes)}."},
        "Regulatory information": {"Authorization status": "None: research use only."},
        "Reproducibility": f"{card.version}. On a CPU the same inputs give the same bytes.",
        "Sustainability": _say_hours(card.networks),
        "Use": {"Intended": ["Research on detection"], "Excluded": ["Diagnosis", "Triage", "Decision support"]},
        "User": {"Intended": ["Researcher"]},
    }


def _network_row(network: Network) -> tuple[str, ...]:
    return (
        network.run,
        network.backbone,
        ", ".join(map(str, network.folds)),
        BLANK if network.num_parameters is None else f"{network.num_parameters:,}",
        BLANK if network.image_size is None else f"{network.image_size} px",
        BLANK if network.epochs is None else str(network.epochs),
        network.initial_weights,
        BLANK if network.num_slices is None else f"{network.num_slices:,}",
        BLANK if network.hours is None else f"{network.hours:.2f} ({network.device or BLANK})",
    )


def _performance(card: Card) -> list[str]:
    if not card.scores:
        return [f"Scores: {BLANK}. `ichkit evaluate` computes them; then export the model again."]
    rows = [(one.of, one.metric, one.name, one.value, one.interval or NOTHING, one.counts) for one in card.scores]
    table = _table(("on", "metric", "class", "value", "95 % interval", "counts"), rows)
    return [*table, "", f"Thresholds with the best F1 out of fold, by slice: {_say_thresholds(card)}."]


def _say_scores(card: Card) -> str:
    return "; ".join(map(_say_score, card.scores)) if card.scores else BLANK


def _say_score(one: Measured) -> str:
    interval = f", 95 % interval {one.interval}" if one.interval else ""
    return f"{one.of}: {one.metric} {one.name} {one.value}{interval} ({one.counts})"


def _say_thresholds(card: Card) -> str:
    return ", ".join(f"{name} {value}" for name, value in card.thresholds.items()) or BLANK


def _say_hours(networks: tuple[Network, ...]) -> str:
    if any(network.hours is None for network in networks):
        return BLANK
    said = (f"{network.run}: {network.hours:.2f} h on {network.device or BLANK}" for network in networks)
    return f"Training and prediction of all folds: {'; '.join(said)}. Energy was not measured."


def _resolution(card: Card) -> str:
    sizes = sorted({network.image_size for network in card.networks if network.image_size is not None})
    return ", ".join(f"{size} x {size} pixels" for size in sizes) or BLANK


def _table(columns: tuple[str, ...], rows: Any) -> list[str]:
    """A Markdown table."""
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return [*head, *(f"| {' | '.join(map(_plain, row))} |" for row in rows)]


def _plain(text: str) -> str:
    """Text on one line, escaped for Markdown."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{one}" if one in "\\`*_[]|#!" else one for one in escaped)
