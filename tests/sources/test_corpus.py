"""What fuzzing found ways to: the smallest input of every outcome is read again, and ends as a reason or as read."""

import importlib.util
from pathlib import Path

import pytest

NUM_INPUTS = {"file": 25, "zip": 12, "model": 3}
CORPUS = Path(__file__).parent / "corpus"
_SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "benchmarks" / "fuzz.py")
fuzz = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fuzz)


def outcomes(target):
    return [fuzz.TARGETS[target](path.read_bytes()) for path in sorted(CORPUS.glob(f"{target}-*"))]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("target", "good"), [("file", "read"), ("zip", "read"), ("model", "card"), ("model", "trees")])
def test_every_input_ends_as_before_in_an_outcome_of_its_own(target, good):
    found = outcomes(target)
    assert len(found) >= NUM_INPUTS[target]
    assert good in found
    assert all(found)
    # Reasons may be joined later; a corpus of one outcome would be none.
    assert len(set(found)) > len(found) / 2


def test_the_corpus_is_small():
    sizes = [path.stat().st_size for path in CORPUS.iterdir()]
    assert sum(sizes) < 200_000
