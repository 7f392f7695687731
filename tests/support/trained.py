"""The work folder of `pixels` with a tiny network trained on each of its two folds."""

from pathlib import Path

from ichkit.core.config import load_config
from ichkit.stages.train import run as train
from ichkit.work.folder import WorkFolder
from support.commands import do
from support.pixels import make_pixel_work

CONFIG = load_config(
    "default",
    (
        "train.backbone=test_byobnet",
        "train.pretrained=none",
        "train.image_size=32",
        "train.batch_blocks=2",
        "train.epochs=1",
        "train.accelerator=cpu",
        "train.threads=1",
        "train.workers=0",
        "stack.num_inner=2",
        "stack.fusion.epochs=1",
        "stack.fusion.num_seeds=1",
        "stack.lightgbm.max_rounds=5",
        "prepare.workers=1",
    ),
)


def make_trained_work(root: Path) -> WorkFolder:
    """A store of two folds with the run `demo` trained on both, one after the other in this process."""
    work = make_pixel_work(root)
    for fold in (0, 1):
        do(train, CONFIG, work, run_name="demo", folds=[fold])
    return work
