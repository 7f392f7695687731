"""Every example in a docstring says what really comes out."""

import doctest
import importlib
import inspect
import pkgutil

import numpy as np
import pandas as pd
import pytest
import torch

import ichkit
from ichkit.core.config import load_config
from ichkit.core.tasks import find_task

FLAGS = doctest.NORMALIZE_WHITESPACE
COMMON = {"np": np, "pd": pd, "torch": torch, "load_config": load_config, "find_task": find_task}
"""What an example may take for granted."""


def find_examples():
    """A doctest for every docstring of the package with an example, by its name.

    Each sees its module's names and `COMMON`.
    """
    found = []
    names = [info.name for info in pkgutil.walk_packages(ichkit.__path__, "ichkit.") if not info.ispkg]
    for name in names:
        if name == "ichkit.__main__" or ">>>" not in inspect.getsource(importlib.import_module(name)):
            continue
        module = importlib.import_module(name)
        found += [test for test in doctest.DocTestFinder(exclude_empty=True).find(module, name) if test.examples]
    return found


EXAMPLES = find_examples()


def test_there_are_examples():
    assert len(EXAMPLES) > 40


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name.removeprefix("ichkit."))
def test_an_example_is_true(example, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    example.globs = COMMON | example.globs
    said: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(example, out=said.append)
    assert not failed, "".join(said)
