"""A task: classes, weights, the umbrella class if there is one, and which class covers which."""

import pickle

import pytest

from ichkit.core.errors import ConfigError
from ichkit.core.tasks import Task, find_task

FIVE = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")


def make(**changes):
    whole = {
        "name": "side",
        "classes": ("left", "right", "any"),
        "weights": (0.25, 0.25, 0.5),
        "any_class": "any",
        "description": "Which side.",
        "source": "this test",
    }
    return Task(**{**whole, **changes})


def test_the_umbrella_class_covers_every_other_class():
    assert dict(find_task("hemorrhage").covers) == {"any": FIVE}
    assert find_task("hemorrhage").headline_class == "any"
    assert find_task("hemorrhage").headline_index == 5


def test_a_task_without_an_umbrella_class_is_sorted_by_its_first_class():
    task = make(classes=("left", "right"), weights=(0.5, 0.5), any_class=None)
    assert (task.headline_class, task.headline_index) == ("left", 0)
    assert task.subtypes == ("left", "right")
    assert dict(task.covers) == {}


def test_other_coverage_stands_beside_the_umbrella_class_and_travels_to_a_worker():
    task = make(classes=("bleed", "left", "right", "any"), weights=(0.25,) * 4, covers={"bleed": ("left", "right")})
    assert dict(task.covers) == {"bleed": ("left", "right"), "any": ("bleed", "left", "right")}
    assert pickle.loads(pickle.dumps(task)) == task
    assert hash(task) == hash(pickle.loads(pickle.dumps(task)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": (), "weights": ()}, "expected one or more classes, each once, found []"),
        ({"classes": ("any", "any", "left")}, "each once, found ['any', 'any', 'left']"),
        ({"weights": (0.5, 0.5)}, "expected 3 weights, one for each class, found 2"),
        ({"weights": (0.5, 0.5, 0.5)}, "sum to 1, found [0.5, 0.5, 0.5] (1.5)"),
        ({"weights": (-0.5, 0.5, 1.0)}, "weights of 0 or more that sum to 1"),
        ({"any_class": "all"}, "any_class is \"all\", expected None or one of ['left', 'right', 'any']"),
        ({"covers": {"left": ("top",)}}, 'covers names "top", expected classes among'),
        ({"covers": {"left": ("right",), "right": ("left",)}}, '"left" covers itself'),
        ({"covers": {"left": ("any",)}}, '"left" covers itself'),
    ],
)
def test_a_task_that_contradicts_itself_is_refused_when_it_is_made(changes, message):
    with pytest.raises(ConfigError) as caught:
        make(**changes)
    assert str(caught.value).startswith('task "side": ')
    assert message in str(caught.value)
    assert str(caught.value).endswith("Change the row that defines the task.")
