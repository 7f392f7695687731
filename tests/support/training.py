"""The smallest training that is one: a config, and how the files of a fold are compared."""

from dataclasses import dataclass

from ichkit.core.config import load_config
from ichkit.core.progress import StopFlag

TINY = (
    "train.backbone=test_byobnet",
    "train.pretrained=none",
    "train.image_size=32",
    "train.batch_blocks=2",
    "train.epochs=2",
    "train.ema_decay=0.9",
    "train.learning_rate=0.003",
    # The paper's sampling: it has padding and CutMix, which resuming and several processes must get right.
    "train.sampling=blocks",
    "train.adapts_to_length=false",
    "train.accelerator=cpu",
    "train.threads=1",
)
TABLES = ("oof", "test", "cq500")


def config(*changes):
    return load_config("default", (*TINY, *changes))


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@dataclass
class StopAtLook(StopFlag):
    """Raised at the n-th look at it."""

    number: int

    def __post_init__(self):
        super().__init__()

    def __bool__(self):
        self.number -= 1
        return self.number < 0
