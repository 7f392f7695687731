"""Windows of adjacent slices: the numba kernels against loops anyone can read."""

import numpy as np
import pytest
from scipy.stats import rankdata
from support.simulated import TASK

from ichkit.core.errors import ConfigError
from ichkit.stacking import features as features_module
from ichkit.stacking.combine import Ensemble
from ichkit.stacking.features import FEATURE_GROUPS, feature_names, make_features
from ichkit.stacking.neighbours import neighbour_rows, neighbour_stacks, running_means, study_bounds
from ichkit.stacking.rows import Rows
from ichkit.stacking.summaries import ranks_in_study, study_quantiles

GROUPS = tuple(FEATURE_GROUPS)
LENGTHS = (1, 2, 9, 4, 1, 30)


def make_codes(lengths=LENGTHS):
    # Codes neither ascend nor count up: only their change marks a new study.
    return np.repeat([7, 3, 11, 0, 5, 2], lengths)


def make_random_rows(seed=0, num_runs=2, lengths=LENGTHS):
    rng = np.random.default_rng(seed)
    codes = make_codes(lengths)
    index = np.concatenate([np.arange(length) for length in lengths])
    counts = np.repeat(lengths, lengths)
    gap_mm = np.where(index < counts - 1, 5.0, np.nan)
    facts = [index, counts, 5.0 * index - 40, gap_mm, rng.random(len(codes)) < 0.3, rng.random(len(codes))]
    logits = rng.normal(size=(len(codes), num_runs, TASK.num_classes)).astype(np.float32)
    return Rows(
        logits,
        codes,
        np.stack(facts, axis=1),
        np.empty((len(codes), 0), np.float32),
        Ensemble.of_whole(TASK, logits.shape[1]),
    )


def slow_stacks(values, codes, window, beyond):
    stacks = np.empty((len(values), window, values.shape[1]), np.float32)
    for row in range(len(values)):
        own = np.flatnonzero(codes == codes[row])
        for position in range(window):
            source = row + position - window // 2
            if beyond is not None and source not in own:
                stacks[row, position] = beyond
            else:
                stacks[row, position] = values[min(max(source, own[0]), own[-1])]
    return stacks


@pytest.mark.parametrize("window", [1, 3, 7, 21])
@pytest.mark.parametrize("beyond", [None, np.nan, -1.0])
def test_stacks_equal_the_loop_over_each_study(window, beyond):
    values = np.random.default_rng(1).random((len(make_codes()), 6)).astype(np.float32)
    fast = neighbour_stacks(values, make_codes(), window, beyond=beyond)
    np.testing.assert_array_equal(fast, slow_stacks(values, make_codes(), window, beyond))


def test_the_centre_of_a_window_is_the_slice_itself_and_other_studies_never_enter():
    codes = make_codes()
    stacks = neighbour_stacks(codes[:, None].astype(np.float32), codes, 7)
    assert (stacks[:, :, 0] == codes[:, None]).all()
    values = np.arange(len(codes), dtype=np.float32)[:, None]
    np.testing.assert_array_equal(neighbour_stacks(values, codes, 7)[:, 3], values)


def test_no_rows_give_no_windows():
    nothing = np.empty((0, 6), np.float32)
    assert neighbour_stacks(nothing, np.empty(0, np.int64)).shape == (0, 7, 6)
    assert running_means(nothing, np.empty(0, np.int64), 1).shape == (0, 6)


def test_gathering_by_row_numbers_equals_the_stacks():
    codes = make_codes()
    values = np.random.default_rng(2).random((len(codes), 6)).astype(np.float32)
    np.testing.assert_array_equal(values[neighbour_rows(codes, 5)], neighbour_stacks(values, codes, 5))


@pytest.mark.parametrize("reach", [0, 1, 3])
def test_running_means_equal_the_mean_of_what_is_there(reach):
    codes = make_codes()
    values = np.random.default_rng(3).normal(size=(len(codes), 4)).astype(np.float32)
    stacks = neighbour_stacks(values, codes, 2 * reach + 1, beyond=np.nan)
    np.testing.assert_allclose(running_means(values, codes, reach), np.nanmean(stacks, axis=1), rtol=1e-5, atol=1e-6)


def test_bounds_are_the_first_and_last_row_of_each_study():
    first, last = study_bounds(make_codes())
    for row, code in enumerate(make_codes()):
        own = np.flatnonzero(make_codes() == code)
        assert (first[row], last[row]) == (own[0], own[-1])


def test_quantiles_of_a_study_are_those_of_numpy():
    codes = make_codes()
    values = np.random.default_rng(4).normal(size=(len(codes), 3))
    found = study_quantiles(values, codes, (0.0, 0.3, 0.5, 1.0))
    for study, code in enumerate(dict.fromkeys(codes.tolist())):
        expected = np.quantile(values[codes == code], (0.0, 0.3, 0.5, 1.0), axis=0)
        np.testing.assert_allclose(found[study], expected, rtol=1e-12)


def test_ranks_are_the_share_of_the_other_slices_below_with_ties_counting_half():
    codes = make_codes()
    values = np.random.default_rng(5).integers(4, size=(len(codes), 2)).astype(float)
    found = ranks_in_study(values, codes)
    for code in set(codes.tolist()):
        own = values[codes == code]
        if len(own) == 1:
            assert np.isnan(found[codes == code]).all()
            continue
        expected = (rankdata(own, axis=0) - 1) / (len(own) - 1)
        np.testing.assert_allclose(found[codes == code], expected, rtol=1e-6)


def test_features_have_the_names_they_say_and_the_values_of_those_names():
    rows = make_random_rows()
    features = make_features(rows, TASK, 19, GROUPS)
    names = feature_names(TASK, 2, 19, GROUPS)
    assert len(names) == len(set(names)) == features.shape[1]
    at = {name: features[:, column] for column, name in enumerate(names)}
    row = sum(LENGTHS[:2]) + 4  # the middle of the study of nine slices
    study = slice(sum(LENGTHS[:2]), sum(LENGTHS[:3]))
    mean = rows.logits.mean(axis=1)
    subdural = TASK.classes.index("subdural")
    assert at["logit_subdural_-3_run1"][row] == rows.logits[row - 3, 1, subdural]
    assert at["logit_any_+2_run0"][row] == rows.logits[row + 2, 0, TASK.headline_index]
    assert at["logit_subdural_+4_mean"][row] == pytest.approx(mean[row + 4, subdural], abs=1e-6)
    assert np.isnan(at["logit_subdural_+5_mean"][row])
    assert at["step_+1_epidural"][row] == pytest.approx(mean[row + 1, 0] - mean[row, 0], abs=1e-6)
    assert at["step_-2_any"][row] == pytest.approx(mean[row - 2, 5] - mean[row, 5], abs=1e-6)
    assert at["mean_three_epidural"][row] == pytest.approx(mean[row - 1 : row + 2, 0].mean(), abs=1e-6)
    assert at["mean_seven_epidural"][row] == pytest.approx(mean[row - 3 : row + 4, 0].mean(), abs=1e-6)
    assert at["mean_window_epidural"][row] == pytest.approx(mean[study, 0].mean(), abs=1e-6)
    assert at["study_maximum_any"][row] == pytest.approx(mean[study, TASK.headline_index].max(), abs=1e-6)
    assert at["study_mean_any"][row] == pytest.approx(mean[study, TASK.headline_index].mean(), abs=1e-6)
    assert at["study_quantile75_any"][row] == pytest.approx(
        np.quantile(mean[study, TASK.headline_index], 0.75), abs=1e-6
    )
    below = (mean[study, TASK.headline_index] < mean[row, TASK.headline_index]).sum()
    assert at["rank_any"][row] == pytest.approx(below / 8)
    assert (at["position"][row], at["slices_above"][row], at["gap_below_mm"][row]) == (0.5, 4, 5)
    assert (at["slices_to_edge"][row], at["slices_to_edge"][row + 3], at["num_slices"][row]) == (4, 1, 9)
    assert at["brain_share"][row] == np.float32(rows.facts[row, 5])


def test_features_beyond_the_ends_of_a_study_are_missing():
    rows = make_random_rows()
    names = feature_names(TASK, 2, 19, GROUPS)
    alone = make_features(rows, TASK, 19, GROUPS)[0]  # a study of one slice
    missing = {name for name, value in zip(names, alone, strict=True) if np.isnan(value)}
    neighbours = {name for name in names if name.startswith("logit_") and "_+0_" not in name}
    lonely = {name for name in names if name.startswith(("step_", "rank_"))}
    assert missing == neighbours | lonely | {"gap_below_mm", "gap_above_mm"}


def test_features_of_a_study_do_not_depend_on_the_studies_around_it():
    rows = make_random_rows()
    chosen = np.isin(rows.study_codes, [11, 2])
    whole = make_features(rows, TASK, 7, GROUPS)
    np.testing.assert_array_equal(make_features(rows.take(chosen), TASK, 7, GROUPS), whole[chosen])


@pytest.mark.parametrize("block_rows", [1, 7, 20])
def test_features_made_in_blocks_are_those_made_at_once(monkeypatch, block_rows):
    rows = make_random_rows()
    at_once = make_features(rows, TASK, 19, GROUPS)
    monkeypatch.setattr(features_module, "_BLOCK_ROWS", block_rows)
    np.testing.assert_array_equal(make_features(rows, TASK, 19, GROUPS), at_once)


def test_chosen_groups_give_their_columns_alone_and_others_are_refused_with_the_nearest():
    rows = make_random_rows()
    names = feature_names(TASK, 2, 7, ("position", "ranks"))
    assert names == [*(f"rank_{name}" for name in TASK.classes), *names[6:]]
    assert make_features(rows, TASK, 7, ("position", "ranks")).shape[1] == len(names) == 15
    with pytest.raises(ConfigError, match=r'unknown group "rank" in stack.lightgbm.features. Did you mean "ranks"'):
        feature_names(TASK, 2, 7, ("rank",))


def test_no_rows_have_no_features():
    rows = make_random_rows()
    nothing = rows.take(np.zeros(len(rows), bool))
    assert make_features(nothing, TASK, 19, GROUPS).shape == (0, len(feature_names(TASK, 2, 19, GROUPS)))
