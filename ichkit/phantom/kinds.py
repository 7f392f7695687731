"""What a phantom shows: a table of kinds, each with the data sets that it writes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ichkit.phantom import cq500, onset, rsna, scans
from ichkit.phantom.difficulty import DEMO, DIFFICULTIES
from ichkit.phantom.plan import StudyToDraw, plan_part


class RunStudies(Protocol):
    """Runs a function for every study in worker processes; returns the results in the order of the studies."""

    def __call__(self, function: Callable[[Any], dict[str, Any]], tasks: Sequence[Any]) -> list[dict[str, Any]]:
        """The description of every study."""


@dataclass(frozen=True)
class Drawing:
    """One data set being written.

    Attributes:
        folder: unfinished folder of the data set.
        masks: folder for the masks, or None.
        settings: of `phantom.json`.
        run: runs the studies.
    """

    folder: Path
    masks: Path | None
    settings: dict[str, Any]
    run: RunStudies

    def place(self) -> dict[str, Any]:
        """The fields of a study to draw besides its plan."""
        difficulty = DIFFICULTIES[self.settings.get("difficulty", DEMO.name)]
        settings = {"size": self.settings["size"], "seed": self.settings["seed"], "difficulty": difficulty}
        return {"root": self.folder, "masks": self.masks, **settings}


@dataclass(frozen=True)
class DataSet:
    """A folder of a phantom.

    Attributes:
        name: of the folder.
        counts: the settings with its numbers of studies.
        title: for messages.
        slices_per_study: about, for the forecast.
        write: writes all files but `phantom.json`, and returns the description of every study.
        is_optional: not written where its counts are 0.
        extras: its other settings in the config.
    """

    name: str
    counts: tuple[str, ...]
    title: str
    slices_per_study: int
    write: Callable[[Drawing], list[dict[str, Any]]]
    is_optional: bool = False
    extras: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A row of `KINDS`.

    Attributes:
        name: key in the table.
        data_sets: what it writes.
        description: one sentence.
        source: where it comes from.
    """

    name: str
    data_sets: tuple[DataSet, ...]
    description: str
    source: str


def _write_rsna(drawing: Drawing) -> list[dict[str, Any]]:
    settings, place = drawing.settings, drawing.place()
    counts = {"train": settings["studies"], "test": settings["test_studies"]}
    plans = [plan for part, count in counts.items() for plan in plan_part(part, count, settings["seed"])]
    for folder in rsna.FOLDERS.values():
        (drawing.folder / folder).mkdir()
    facts = drawing.run(rsna.write_study, [StudyToDraw(plan, **place) for plan in plans])
    rsna.write_tables(drawing.folder, facts, settings["seed"])
    return facts


def _write_cq500(drawing: Drawing) -> list[dict[str, Any]]:
    seed, place = drawing.settings["seed"], drawing.place()
    plans = plan_part("cq500", drawing.settings["cq500_studies"], seed)
    numbers = cq500.choose_numbers(len(plans), seed)
    tasks = [(StudyToDraw(plan, **place), number) for plan, number in zip(plans, numbers, strict=True)]
    facts = drawing.run(cq500.write_study, tasks)
    cq500.write_reads(drawing.folder, facts, seed)
    return facts


def _write_scans(drawing: Drawing, part: str, count: str) -> list[dict[str, Any]]:
    tasks = scans.plan_scans(part, drawing.settings[count], **drawing.place())
    facts = drawing.run(scans.write_scan, tasks)
    scans.write_regions(drawing.folder, facts)
    return facts


def _write_bids(drawing: Drawing) -> list[dict[str, Any]]:
    settings = drawing.settings
    place = (drawing.folder, drawing.masks, settings["size"], settings["seed"])
    onset.prepare_workers()
    facts = drawing.run(
        onset.write_patient, [onset.PatientToDraw(number, *place) for number in range(settings["studies"])]
    )
    onset.write_tables(drawing.folder, facts, settings["seed"], settings["readers"])
    return facts


KINDS = {
    "hemorrhage": Kind(
        name="hemorrhage",
        data_sets=(
            DataSet("rsna", ("studies", "test_studies"), "as RSNA 2019", 33, _write_rsna),
            DataSet("cq500", ("cq500_studies",), "as CQ500", 80, _write_cq500, is_optional=True),
        ),
        description="Intracranial hemorrhage of five subtypes, in the layouts of RSNA 2019 and CQ500.",
        source="chosen here",
    ),
    "ischemia": Kind(
        name="ischemia",
        data_sets=(
            DataSet("scans", ("studies",), "as a folder", 30, lambda one: _write_scans(one, "scans", "studies")),
            DataSet(
                "site",
                ("test_studies",),
                "of another site",
                30,
                lambda one: _write_scans(one, "site", "test_studies"),
                is_optional=True,
            ),
        ),
        description="Infarcts in regions of the brain, early and old, as a folder of scans with a label file, and an "
        "external set of the same form.",
        source="Jung and Whangbo, Journal of Internet Technology 2020, sections 2.4 and 3.3: their Hounsfield units",
    ),
    "onset": Kind(
        name="onset",
        data_sets=(DataSet("bids", ("studies",), "as a BIDS tree of MR", 26, _write_bids, extras=("readers",)),),
        description="MR of strokes of known onset: DWI, b0 and FLAIR of every patient, one half of the brain affected.",
        source="Zhang et al., Computerized Medical Imaging and Graphics 2021, section 2.1: their times since onset",
    ),
}
