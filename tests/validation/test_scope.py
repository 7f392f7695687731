"""What a run predicts: its classes, and the class that must be present for them to be asked."""

import numpy as np
import pandas as pd
import pytest
from support.simulated import TASK

from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.validation.coherence import make_coherent
from ichkit.validation.scope import SCOPE, Scope, label_array

LABELS = pd.DataFrame({name: pd.array([1, 0, 1, None], "Int8") for name in TASK.subtypes}).assign(
    any=pd.array([1, 0, None, 1], "Int8"), slice_id=list("abcd")
)


def test_labels_of_other_classes_and_where_the_given_class_is_not_present_are_unknown():
    masked = label_array(Scope.of(TASK, ("subdural", "any"), "any").mask(LABELS), TASK)
    expected = np.full((4, 6), np.nan)
    expected[:, TASK.classes.index("any")] = [1, 0, np.nan, 1]
    expected[:, TASK.classes.index("subdural")] = [1, np.nan, np.nan, np.nan]
    np.testing.assert_array_equal(masked, expected)


def test_the_whole_task_leaves_labels_and_values_as_they_are():
    whole = Scope.of(TASK)
    assert whole.mask(LABELS) is LABELS
    values = np.ones((2, 6), np.float32)
    assert whole.spread(values) is values
    assert whole.facts() == {}


def test_a_scope_comes_back_from_the_facts_of_a_manifest():
    scope = Scope.of(TASK, ("any", "epidural"), "any")
    assert scope.classes == ("epidural", "any")
    assert Scope.of_facts(TASK, scope.facts(), "a run") == scope
    assert Scope.of_facts(TASK, {}, "a run") == Scope.of(TASK)
    with pytest.raises(ArtifactError, match=r"a run: its manifest has an invalid scope .*\"subdurl\""):
        Scope.of_facts(TASK, {SCOPE: {"classes": ["subdurl"], "given": None}}, "a run")


@pytest.mark.parametrize(
    ("classes", "given", "message"),
    [
        (("subdurl",), None, r'train\.classes: unknown class "subdurl". Did you mean "subdural"'),
        (None, "each", r'train\.given: unknown class "each"'),
        ((), None, r"train\.classes: expected one or more of"),
    ],
)
def test_a_class_that_the_task_does_not_have_is_refused(classes, given, message):
    with pytest.raises(ConfigError, match=message):
        Scope.of(TASK, classes, given)


def test_values_of_classes_that_are_not_predicted_are_nan_and_coherence_leaves_them_out():
    scope = Scope.of(TASK, ("subdural", "any"))
    spread = scope.spread(np.array([[0.8, 0.5], [0.1, 0.2]]))
    assert np.isnan(spread).sum(0).tolist() == [2, 2, 2, 2, 0, 0]
    coherent = make_coherent(spread, TASK)
    assert np.isnan(coherent).sum() == 8
    assert coherent[0, 4] == coherent[0, 5]
    np.testing.assert_array_equal(coherent[1, 4:], [0.1, 0.2])
    unknown_whole = make_coherent(Scope.of(TASK, TASK.subtypes).spread(np.full((3, 5), 0.9)), TASK)
    np.testing.assert_array_equal(unknown_whole[:, :5], 0.9)
