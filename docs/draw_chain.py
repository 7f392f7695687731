"""Draws docs/img/chain.png from a prepared work folder: `python docs/draw_chain.py WORK RUN STACK STUDY SLICE`."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ichkit.core.config import load_config
from ichkit.core.tasks import find_task
from ichkit.imaging.store import Prepared
from ichkit.work.folder import WorkFolder

SHORT = {"epidural": "EDH", "intraparenchymal": "IPH", "intraventricular": "IVH", "subarachnoid": "SAH"}


def main(work_path: str, run: str, stack: str, study: str, slice_index: str) -> None:
    """One slice in its windows, the seven descriptors around it, and what the second stage makes of them."""
    work, middle = WorkFolder(Path(work_path)), int(slice_index)
    task, config = find_task("hemorrhage"), load_config("default")
    names = [SHORT.get(name, {"subdural": "SDH"}.get(name, name)) for name in task.classes]
    prepared = Prepared.open(work.prepared, task)
    row = prepared.split("train").query("study_id == @study and slice_index == @middle").iloc[0]
    hounsfield = prepared.read_slices(row.volume, middle, middle + 1)[0]
    oof = pd.read_parquet(work.fold(run, row.fold) / "oof.parquet")
    stacks = np.load(work.fold(run, row.fold) / "stacks_oof.npy", allow_pickle=False)
    at = int(np.flatnonzero(oof.slice_id == row.slice_id)[0])
    blend = pd.read_parquet(work.stacks / stack / "blend_oof.parquet").set_index("slice_id").loc[row.slice_id]

    figure = Figure(figsize=(12, 3.1), layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=[1, 1, 1, 1.25, 1.1])
    for axis, (level, width), name in zip(axes, config.channels.windows, ("brain", "subdural", "bone"), strict=False):
        axis.imshow(hounsfield, cmap="gray", vmin=level - width / 2, vmax=level + width / 2)
        axis.set_title(f"{name} {level:.0f}/{width:.0f}", fontsize=10)
        axis.axis("off")
    axes[3].imshow(stacks[at], cmap="magma", vmin=0, vmax=1, aspect="auto")
    axes[3].set_title("2D network: 7 descriptors", fontsize=10)
    axes[3].set_xticks(range(task.num_classes), names, fontsize=8)
    axes[3].set_yticks(range(7), [f"{d:+d}" if d else "slice" for d in range(-3, 4)], fontsize=8)
    axes[4].barh(names[::-1], [blend[f"p_{name}"] for name in task.classes][::-1], color="#c2410c")
    axes[4].set_xlim(0, 1)
    axes[4].tick_params(labelsize=8)
    axes[4].set_title("second stage: the middle slice", fontsize=10)
    figure.savefig(Path(__file__).parent / "img" / "chain.png", dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
