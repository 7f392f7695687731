"""Difficulties: the demo's bytes stay, labels have the errors they are given, look-alikes are in no mask."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.config import IGNORE
from pydicom.config import settings as pydicom_settings

from ichkit import write_phantom
from ichkit.core.errors import ConfigError
from ichkit.phantom.bleeds import SUBTYPES, draw_bleeds
from ichkit.phantom.difficulty import DIFFICULTIES
from ichkit.phantom.head import draw_head
from ichkit.phantom.lookalikes import LOOKALIKES, draw_lookalikes
from ichkit.phantom.study import draw_scene, draw_slices, draw_stack, read_labels

REAL = DIFFICULTIES["real"]
SMALL = {"studies": 3, "test_studies": 1, "cq500_studies": 1, "size": 64, "workers": 1}
# Of `write_phantom(**SMALL, seed=7)` before there were difficulties: labels, and mean stored value of each study.
DEMO_LABELS = "4b28402b95fbf0e3"
DEMO_MEANS = [389.855, 392.216, 2127.485, 34.366]


def digest_of(root):
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def test_the_demo_has_the_pixels_and_labels_it_had_before_there_were_difficulties(tmp_path, monkeypatch):
    monkeypatch.setattr(pydicom_settings, "reading_validation_mode", IGNORE)
    write_phantom(tmp_path, **SMALL, seed=7)
    facts = json.loads((tmp_path / "rsna" / "phantom.json").read_text())
    assert "difficulty" not in facts["settings"]
    labels = json.dumps([study["labels"] for study in facts["studies"]])
    assert hashlib.sha256(labels.encode()).hexdigest()[:16] == DEMO_LABELS
    for study, mean in zip(facts["studies"], DEMO_MEANS, strict=True):
        names = [name for name in study["slice_ids"] if name != study["truncated"]]
        paths = [next(tmp_path.glob(f"rsna/stage_2_*/{name}.dcm")) for name in names]
        # The last bits of the drawing differ between processors, a pixel here and there by 1 HU.
        assert np.mean([pydicom.dcmread(path).pixel_array.mean() for path in paths]) == pytest.approx(mean, abs=0.02)


@pytest.mark.parametrize("name", DIFFICULTIES)
def test_the_same_settings_give_the_same_bytes_and_another_seed_gives_others(name, tmp_path):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_phantom(tmp_path / folder, **{**SMALL, "cq500_studies": 0}, seed=seed, difficulty=name)
    digests = [digest_of(tmp_path / folder) for folder in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_a_real_phantom_names_its_difficulty_and_the_demo_is_as_before(tmp_path):
    write_phantom(tmp_path, **{**SMALL, "cq500_studies": 0}, difficulty="real")
    assert json.loads((tmp_path / "rsna" / "phantom.json").read_text())["settings"]["difficulty"] == "real"


def test_an_unknown_difficulty_is_refused_with_the_nearest_spelling(tmp_path):
    with pytest.raises(ConfigError, match='phantom.difficulty: unknown "reel".*real'):
        write_phantom(tmp_path, **SMALL, difficulty="reel")


def draw_labels(generator, num_studies):
    """Studies of 30 slices, each with one subtype in ten adjacent slices."""
    for _ in range(num_studies):
        labels = np.zeros((30, 6), np.uint8)
        first = int(generator.integers(1, 19))
        labels[first : first + 10, [int(generator.integers(5)), 5]] = 1
        yield labels


def test_labels_have_the_share_of_errors_that_the_difficulty_states():
    generator = np.random.default_rng(0)
    beside, wrong_ends, missed, confused, far = 0, 0, 0, 0, 0
    for labels in draw_labels(generator, 4000):
        read = read_labels(generator, labels, REAL)
        assert np.array_equal(read[:, 5], read[:, :5].max(1))
        if not read.any():
            missed += 1
            continue
        differs = labels[:, 5] != read[:, 5]
        ends = np.flatnonzero(np.diff(labels[:, 5]))
        near = np.unique([ends, ends + 1])
        far += np.delete(differs, near).sum()
        beside, wrong_ends = beside + len(near), wrong_ends + differs[near].sum()
        confused += labels[:, :5].any(0).argmax() != read[:, :5].any(0).argmax()
    assert far == 0
    assert wrong_ends / beside == pytest.approx(REAL.end_error, abs=0.01)
    assert missed / 4000 == pytest.approx(REAL.missed_share, abs=0.01)
    # A bleed that is confused may draw its own name, one time in five.
    assert confused / 4000 == pytest.approx(REAL.confused_share * 4 / 5, abs=0.01)


def test_labels_without_errors_are_the_true_ones():
    generator = np.random.default_rng(0)
    for labels in draw_labels(generator, 20):
        assert np.array_equal(read_labels(generator, labels, DIFFICULTIES["demo"]), labels)


def test_a_few_per_cent_of_the_positive_labels_of_a_real_phantom_are_wrong():
    generator = np.random.default_rng(0)
    wrong = positive = 0
    for labels in draw_labels(generator, 2000):
        wrong += (read_labels(generator, labels, REAL)[:, :5] != labels[:, :5]).sum()
        positive += labels[:, :5].sum()
    assert 0.02 < wrong / positive / 2 < 0.15


def test_lookalikes_change_the_picture_and_not_the_mask():
    changed = 0
    for seed in range(4):
        generator = np.random.default_rng(seed)
        scene = draw_scene(generator, draw_head(generator), ("intraparenchymal",), REAL)
        shapes = [shape for row in LOOKALIKES.values() for shape in row.draw(generator)]
        stack = draw_stack(generator, scene.pose, (64, 64), np.arange(20, 120, 5.0), 5.0, 0.0)
        bare = draw_slices(with_lookalikes(scene, []), stack)
        full = draw_slices(with_lookalikes(scene, shapes), stack)
        assert all(np.array_equal(a.bits, b.bits) for a, b in zip(bare, full, strict=True))
        changed += any(not np.array_equal(a.hounsfield, b.hounsfield) for a, b in zip(bare, full, strict=True))
    assert changed == 4


def with_lookalikes(scene, shapes):
    return replace(scene, lookalikes=np.array(shapes, np.float64).reshape(-1, 10))


@pytest.mark.parametrize("name", LOOKALIKES)
def test_every_lookalike_shows_in_some_slice(name):
    """Drawn alone, it changes tissue by more than a few HU."""
    strongest = 0.0
    for seed in range(3):
        generator = np.random.default_rng(seed)
        scene = replace(draw_scene(generator, draw_head(generator), (), REAL), lookalikes=None)
        stack = draw_stack(generator, scene.pose, (96, 96), np.arange(15, 140, 3.0), 3.0, 0.0)
        shapes = [shape for _ in range(3) for shape in LOOKALIKES[name].draw(generator)]
        before, after = draw_slices(scene, stack), draw_slices(with_lookalikes(scene, shapes), stack)
        strongest = max(
            strongest, *(np.abs(a.hounsfield - b.hounsfield).max() for a, b in zip(before, after, strict=True))
        )
    assert strongest > 8


def test_their_number_has_the_mean_of_the_difficulty():
    generator = np.random.default_rng(0)
    rows = [draw_lookalikes(generator, 2.0) for _ in range(2000)]
    num_shapes = np.mean([len(LOOKALIKES[name].draw(generator)) * LOOKALIKES[name].share for name in LOOKALIKES])
    share = sum(row.share for row in LOOKALIKES.values())
    assert np.mean([len(row) for row in rows]) == pytest.approx(2 * num_shapes * len(LOOKALIKES) / share, rel=0.05)
    assert draw_lookalikes(generator, 0.0).shape == (0, 10)


@pytest.mark.parametrize("subtype", SUBTYPES)
def test_real_bleeds_are_smaller_and_darker_than_those_of_the_demo(subtype):
    def drawn(difficulty):
        generator = np.random.default_rng(0)
        return np.concatenate([draw_bleeds(generator, (subtype,), difficulty) for _ in range(400)])

    demo, real = drawn(DIFFICULTIES["demo"]), drawn(REAL)
    assert np.median(real[:, 8]) < np.median(demo[:, 8]) - 1
    if subtype == "intraventricular":  # less blood: its level is further back
        assert np.median(real[:, 2]) > np.median(demo[:, 2])
    else:
        assert np.median(real[:, 4]) < 0.95 * np.median(demo[:, 4])
