"""The contract of every table: a row has a name, a description and a source, and is found by its name."""

import pytest

from ichkit.core.errors import ConfigError
from ichkit.core.rows import find_row
from ichkit.core.tasks import TASKS
from ichkit.engine.optimizers import OPTIMIZERS
from ichkit.engine.sampling import CENTRES
from ichkit.engine.schedule import SCHEDULES
from ichkit.imaging.distort import DISTORTIONS
from ichkit.imaging.perturbations import PERTURBATIONS
from ichkit.imaging.steps import STEPS
from ichkit.imaging.windows import CHANNELS
from ichkit.models.descriptor import BACKBONES
from ichkit.models.losses import LOSSES
from ichkit.phantom.difficulty import DIFFICULTIES
from ichkit.phantom.lookalikes import LOOKALIKES
from ichkit.sources.table import SOURCES
from ichkit.stacking.strengths import STRENGTHS
from ichkit.stacking.table import STACKERS
from ichkit.validation.operating import OPERATING_POINTS
from ichkit.validation.protocols import REFERENCES, STUDY_SETS
from ichkit.validation.scores import METRICS
from ichkit.validation.studies import AGGREGATIONS

TABLES = {
    "AGGREGATIONS": AGGREGATIONS,
    "BACKBONES": BACKBONES,
    "CENTRES": CENTRES,
    "CHANNELS": CHANNELS,
    "DIFFICULTIES": DIFFICULTIES,
    "DISTORTIONS": DISTORTIONS,
    "LOOKALIKES": LOOKALIKES,
    "LOSSES": LOSSES,
    "METRICS": METRICS,
    "OPERATING_POINTS": OPERATING_POINTS,
    "OPTIMIZERS": OPTIMIZERS,
    "REFERENCES": REFERENCES,
    "PERTURBATIONS": PERTURBATIONS,
    "SCHEDULES": SCHEDULES,
    "SOURCES": SOURCES,
    "STACKERS": STACKERS,
    "STEPS": STEPS,
    "STRENGTHS": STRENGTHS,
    "STUDY_SETS": STUDY_SETS,
    "TASKS": TASKS,
}


@pytest.mark.parametrize(
    ("table", "key"), [(name, key) for name, table in TABLES.items() for key in table], ids=lambda text: text
)
def test_a_row_says_its_name_what_it_is_and_where_it_comes_from(table, key):
    row = TABLES[table][key]
    assert row.name == key
    assert row.description.endswith(".")
    assert "\n" not in row.description
    assert len(row.source) > 3
    assert find_row(TABLES[table], key, "here") is row


@pytest.mark.parametrize("table", TABLES)
def test_a_misspelt_row_is_refused_with_the_nearest_and_the_place(table):
    key = next(iter(TABLES[table]))
    with pytest.raises(ConfigError) as caught:
        find_row(TABLES[table], f"{key}x", "some.setting")
    assert str(caught.value).startswith(f'some.setting: unknown "{key}x". ')
    assert key in str(caught.value)
