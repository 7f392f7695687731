"""What was checked in the prepared data, with the verdict: the top of the audit page."""

from collections.abc import Iterator
from typing import Any

from ichkit.core.roles import title_of
from ichkit.core.tasks import Task
from ichkit.show.blocks import FAIL, PASS, WARN, Check

_MANY_REJECTED, _FEW_POSITIVES, _UNLIKE = 0.01, 30, 1.5


def find_checks(audit: dict[str, Any], task: Task) -> list[Check]:
    """The checks of an audit.

    Args:
        audit: from `audit.make_audit`.
    """
    return [*_of_data(audit), *_of_labels(audit, task), *_of_folds(audit), *_of_pixels(audit), *_of_sets(audit)]


def _of_data(audit: dict[str, Any]) -> Iterator[Check]:
    is_phantom = audit["data"] == "phantom"
    yield Check(WARN if is_phantom else PASS, "Data", "synthetic phantoms" if is_phantom else audit["data"])
    differs = [
        f"{row['what']} {row['found']:,} instead of {row['expected']:,}"
        for row in audit["counts"]
        if row["expected"] not in (None, row["found"])
    ]
    if any(row["expected"] is not None for row in audit["counts"]):
        found = f"not as published: {', '.join(differs)}" if differs else "as published"
        yield Check(FAIL if differs else PASS, "Counts", found)
    rejected, kept = sum(audit["rejected"].values()), sum(row["slices"] for row in audit["splits"])
    share = rejected / max(rejected + kept, 1)
    found = f"{rejected:,} rejected, {kept:,} slices kept"
    yield Check(WARN if share > _MANY_REJECTED else PASS, "Files", found)


def _of_labels(audit: dict[str, Any], task: Task) -> Iterator[Check]:
    labels = audit["labels"]
    num_contradictions = len(labels["any_differs_from_subtypes"])
    if task.covers:
        covering = ", ".join(task.covers)
        found = f"{num_contradictions:,} slices whose {covering} contradicts the other classes"
        yield Check(FAIL if num_contradictions else PASS, "Labels", found)
    if labels["given_per"] == "study":
        yield Check(WARN, "Weak labels", "labels of studies are copied to all their slices")
    counts = audit["positive_studies"]
    few = [f"{name} ({count})" for name, count in counts.items() if count is not None and count < _FEW_POSITIVES]
    if counts:
        found = (
            f"fewer than {_FEW_POSITIVES} positive studies: {', '.join(few)}"
            if few
            else f"every class has {_FEW_POSITIVES} or more positive studies"
        )
        yield Check(WARN if few else PASS, "Small classes", found)


def _of_folds(audit: dict[str, Any]) -> Iterator[Check]:
    folds = audit["folds"]
    if not folds:
        return
    empty = [
        f"{name} in fold {row['fold']}" for row in folds for name, share in row["prevalence"].items() if share == 0
    ]
    found = f"{len(folds)} folds, split by patient"
    notes = f"; no positive slices: {', '.join(empty)}" if empty else ""
    yield Check(WARN if empty else PASS, "Folds", f"{found}{notes}")


def _of_pixels(audit: dict[str, Any]) -> Iterator[Check]:
    padding, geometry = audit["padding"], audit["geometry"]
    rates = [padding["positive_rate_with"], padding["positive_rate_without"]]
    if None not in rates:
        low, high = sorted(rates)
        found = f"{100 * rates[0]:.1f} % of the padded slices are positive, {100 * rates[1]:.1f} % of the others"
        yield Check(WARN if high > _UNLIKE * low else PASS, "Shortcut: padding", found)
    uneven = geometry["studies_of_uneven_gaps"]
    found = f"{uneven:,} studies whose slice gaps vary by more than 0.5 mm"
    yield Check(WARN if uneven else PASS, "Slice gaps", found)
    crop = audit.get("crop")
    if crop is not None:
        missed = crop["not_found"]
        found = f"no head was found in {missed:,} of {crop['studies']:,} studies"
        yield Check(WARN if missed else PASS, "Heads", found)


def _of_sets(audit: dict[str, Any]) -> Iterator[Check]:
    for name, facts in audit["external"].items():
        missing = facts["missing"]
        found = f"{facts['prepared']:,} studies"
        found += f", {len(missing):,} labelled ones without a usable series" if missing else ""
        yield Check(WARN if missing else PASS, f"External set: {title_of(name)}", found)
