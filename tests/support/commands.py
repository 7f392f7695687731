"""Commands in-process, as a person would type them, and settings that make the whole pipeline small."""

from pathlib import Path
from types import ModuleType
from typing import Any

from click.testing import CliRunner

from ichkit.cli.main import main
from ichkit.core.config import Config
from ichkit.stages.prepare import run as prepare
from ichkit.work.folder import WorkFolder

TINY = (
    "prepare.workers=1",
    "prepare.num_folds=3",
    "train.image_size=32",
    "train.epochs=1",
    "train.batch_blocks=4",
    "train.threads=1",
    "train.workers=0",
    "evaluate.num_draws=200",
)
SMALL = [word for text in (*TINY, "prepare.size=null") for word in ("--set", text)]
FAST_STACK = ["--set", "stack.fusion.epochs=2", "--set", "stack.fusion.num_seeds=1", "--set", "stack.num_parts=2"]


def call(*words, code=0):
    """Runs one command; returns what it printed, both streams."""
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="ichkit")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def do(stage: ModuleType, config: Config, work: WorkFolder, asked: object = None, **options: object) -> Any:
    """Plans one command and runs it: as `do(train, config, work, run_name="demo", folds=[0])`.

    Args:
        stage: has the options' class, `plan` and `run`.
        asked: the options, or none of them and keyword arguments for their class.
    """
    (name,) = (name for name, value in vars(stage).items() if name.endswith("Options") and isinstance(value, type))
    return stage.run(stage.plan(config, work, asked or getattr(stage, name)(**options)))


def phantom_options(root: Path, **options: object) -> prepare.PrepareOptions:
    """Options that name both parts of a phantom."""
    return prepare.PrepareOptions(**{"rsna": root / "rsna", "cq500": root / "cq500", **options})
