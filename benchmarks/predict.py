"""Times `ichkit predict` on one study of 32 slices: `python benchmarks/predict.py [--json FILE] [--model EXPORT]`.

Twice: in a process that has predicted before (what a service would see), and as the command that a person types, from
the start of Python to the end. Without `--model` the demo's model is made first, on fewer phantoms: what weights say
does not change how long they take. With `--data` the study is one of your own, of any number of slices.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import make_parser, report, watch_memory

from ichkit import write_phantom
from ichkit.core.config import load_config
from ichkit.sources.files import scan_files
from ichkit.sources.index import read_index
from ichkit.stages.predict import export
from ichkit.stages.predict import run as predict
from ichkit.stages.prepare import run as prepare
from ichkit.stages.stack import run as stack
from ichkit.stages.train import run as train
from ichkit.work.folder import WorkFolder

NUM_SLICES, SIZE = 32, 512
REPEATS = 7
FEW = ("train.epochs=1", "stack.fusion.epochs=2")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, help="an exported model instead of the demo's")
    parser.add_argument("--warm", action="store_true", help="only the warm part; needs --data and --model")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if args.warm:
            report(measure_warm(args.data, args.model, folder), args.json)
            return
        study = args.data or make_study(folder / "study")
        model = args.model or make_model(folder / "demo")
        figures = measure_command(study, model, folder / "out")
        # In a process of its own: this one may hold what training left behind.
        words = ["--warm", "--data", study, "--model", model, "--json", folder / "warm.json"]
        subprocess.run([sys.executable, __file__, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
        warm = json.loads((folder / "warm.json").read_text())
    figures |= {name: value for name, value in warm.items() if name not in ("device", "cores", "versions")}
    figures["seconds_start_up"] = figures["seconds_command"] - figures["seconds_per_study"]
    figures["peak_gb"] = max(figures["peak_gb_command"], figures["peak_gb_command_with_page"])
    report(figures, args.json)


def make_study(folder: Path) -> Path:
    """A folder with 32 slices of 512 x 512 of one phantom, as DICOM."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_phantom(root, studies=6, test_studies=0, cq500_studies=0, size=SIZE, seed=0)
        files, _ = scan_files(root / "rsna" / "stage_2_train")
        index = read_index(files, None)
        counts = index["series_uid"].value_counts()
        series = sorted(counts.index[counts >= NUM_SLICES])[0]
        slices = index[index["series_uid"] == series].sort_values("position_z").head(NUM_SLICES)
        folder.mkdir(parents=True)
        for relative in slices["relative"]:
            shutil.copy(root / "rsna" / "stage_2_train" / relative, folder / Path(relative).name)
    return folder


def make_model(folder: Path) -> Path:
    """An export of the demo's stack: every fold and the blend, trained for one epoch."""
    config, work = load_config("demo", FEW), WorkFolder(folder / "work")
    write_phantom(folder / "phantom", studies=40, test_studies=3, cq500_studies=3, size=128, seed=0)
    roots = {"rsna": folder / "phantom" / "rsna", "cq500": folder / "phantom" / "cq500"}
    prepare.run(prepare.plan(config, work, prepare.PrepareOptions(**roots)))
    train.run(train.plan(config, work, train.TrainOptions(run_name="demo")))
    stack.run(stack.plan(config, work))
    export.run(export.plan(config, work, export.ExportOptions(model="demo-blend", out=folder / "export")))
    return folder / "export"


def measure_command(study: Path, model: Path, out: Path) -> dict[str, float]:
    """The command as it is typed: median wall seconds and the most memory of all its processes."""
    figures = {}
    for name, options in (("", ["--no-page"]), ("_with_page", [])):
        seconds, peaks = [], []
        for _ in range(REPEATS):
            words = ["predict", str(study), "--model", str(model), "--out", str(out), "-c", "demo", "--quiet", *options]
            began = time.perf_counter()
            process = subprocess.Popen([sys.executable, "-m", "ichkit", *words], stdout=subprocess.DEVNULL)
            with watch_memory(process.pid) as peak:
                code = process.wait()
            seconds.append(time.perf_counter() - began)
            peaks.append(peak.gb)
            if code:
                raise SystemExit(f"predict ended with {code}")
        figures[f"seconds_command{name}"] = float(np.median(seconds))
        figures[f"peak_gb_command{name}"] = max(peaks)
    return figures


def measure_warm(study: Path, model: Path, out: Path) -> dict[str, float]:
    """Inside this process, after a first call: DICOM to tables, with the model read anew each time."""
    config = load_config("demo")
    figures = {}
    for name, has_page in (("", False), ("_with_page", True)):
        seconds = []
        with watch_memory() as peak:
            for _ in range(REPEATS + 1):
                began = time.perf_counter()
                made = predict.run(
                    predict.plan(
                        config,
                        WorkFolder(out),
                        predict.PredictOptions(path=study, model=str(model), out=out, has_page=has_page),
                    )
                )
                seconds.append(time.perf_counter() - began)
        figures[f"seconds_per_study{name}"] = float(np.median(seconds[1:]))
        figures[f"peak_gb_warm{name}"] = peak.gb
    return {"num_slices": len(made.slices), **figures}


if __name__ == "__main__":
    main()
