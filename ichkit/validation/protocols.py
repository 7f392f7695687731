"""Protocols of an external test: which studies, how slices make a study, which series, which reading is the truth."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from ichkit.validation.studies import AGGREGATIONS, MAXIMUM

SCANNED, LABELS = "scanned", "labels"
POOLED_HEAD = "pooled"
"""The aggregation by the pool of a run (`train.pool`), for sources that have one."""


@dataclass(frozen=True)
class StudySet:
    """A row of `STUDY_SETS`.

    Attributes:
        name: key in the table, and the `studies` of `protocols.parquet`.
        choose: (studies of one series rule, studies of every series rule) to the studies that are scored.
        needs_series: it differs from the others only where the scans are prepared by more than one series rule.
    """

    name: str
    choose: Callable[[set[str], Sequence[set[str]]], set[str]]
    needs_series: bool
    description: str
    source: str


STUDY_SETS = {
    SCANNED: StudySet(
        name=SCANNED,
        choose=lambda own, _all: own,
        needs_series=False,
        description="Every study with labels and a usable series.",
        source="MIDL 2020: 490 of the 491 studies of CQ500",
    ),
    "shared": StudySet(
        name="shared",
        choose=lambda own, every: own.intersection(*every),
        needs_series=True,
        description="The studies that every series rule has a series of, so that rules are compared on the same ones.",
        source="chosen here, because rules lose different studies",
    ),
}


@dataclass(frozen=True)
class Reference:
    """A row of `REFERENCES`.

    Attributes:
        name: key in the table, and the `reference` of `protocols.parquet`.
        label: (N, C) labels of the set and (N, R, C) reads of R readers to (N, C) float64, NaN where left out.
        needs_reads: it needs the reads of single readers.
    """

    name: str
    label: Callable[[np.ndarray, np.ndarray], np.ndarray]
    needs_reads: bool
    description: str
    source: str


REFERENCES = {
    LABELS: Reference(
        name=LABELS,
        label=lambda labels, _reads: labels,
        needs_reads=False,
        description="The labels of the set: of CQ500 the majority of its three readers, else those of the label file.",
        source="Chilamkurthy et al., Lancet 392, 2018",
    ),
    "unanimity": Reference(
        name="unanimity",
        label=lambda _labels, reads: np.where(reads.min(1) == reads.max(1), reads[:, 0], np.nan),
        needs_reads=True,
        description="The reading of all readers; a study on which they differ is left out for that class.",
        source="chosen here, as the easiest reference",
    ),
    "any_reader": Reference(
        name="any_reader",
        label=lambda _labels, reads: reads.max(1),
        needs_reads=True,
        description="Positive if one reader or more says so.",
        source="chosen here, as the most sensitive reference",
    ),
}


@dataclass(frozen=True)
class Protocol:
    """One way to score the studies of an external set.

    Attributes:
        studies: a key of `STUDY_SETS`.
        aggregation: a key of `AGGREGATIONS`, or `POOLED_HEAD`.
        series: the name of the external set, which stands for the rule that chose its series.
        reference: a key of `REFERENCES`.
    """

    studies: str
    aggregation: str
    series: str
    reference: str

    def changes(self, base: "Protocol") -> tuple[str, ...]:
        """The names of the attributes in which it differs from another.

        Example:
            >>> base = paper_protocol("cq500")
            >>> Protocol("scanned", "noisy_or", "cq500", "labels").changes(base)
            ('aggregation',)
        """
        return tuple(one.name for one in fields(self) if getattr(self, one.name) != getattr(base, one.name))


def paper_protocol(series: str) -> Protocol:
    """The protocol of the paper: every study with scans, the maximum over slices, the labels of the set.

    Source: MIDL 2020, section 3.1.
    """
    return Protocol(SCANNED, MAXIMUM, series, LABELS)


def list_protocols(series: Sequence[str], *, has_reads: bool, has_pool: bool) -> Iterator[Protocol]:
    """Every combination of studies, aggregation, series and reference that there are data for.

    Args:
        series: external sets of the same scans, by different series rules.
    """
    aggregations = [*AGGREGATIONS, *([POOLED_HEAD] if has_pool else [])]
    for name in series:
        for studies in STUDY_SETS.values():
            if studies.needs_series and len(series) < 2:
                continue
            for reference in REFERENCES.values():
                if reference.needs_reads and not has_reads:
                    continue
                for aggregation in aggregations:
                    yield Protocol(studies.name, aggregation, name, reference.name)
