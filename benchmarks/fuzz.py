"""Coverage-guided fuzzing of what reads foreign bytes: DICOM headers and pixels, zips, model folders.

`python benchmarks/fuzz.py [--seconds 60] [--json FILE] [--keep]` needs the extra `fuzz` (atheris, that is libFuzzer).
Seeds are slices of the phantom and what is packed from them. What is neither a reason nor one message is a crash, and
its input is kept. `--keep` puts the smallest input of every new outcome into tests/sources/corpus, which the test suite
reads again.
"""

import argparse
import io
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pydicom

CORPUS = Path(__file__).parents[1] / "tests" / "sources" / "corpus"
MAX_LENGTH = 16_384
_INSTRUMENTED = ["ichkit.imaging.dicom", "ichkit.imaging.tags", "ichkit.sources.files", "ichkit.engine.inference"]
"""Modules whose branches guide the search; compiled kernels cannot be instrumented."""


def try_file(data: bytes) -> str:
    """What becomes of a file's bytes: "read", or the first reason."""
    from ichkit.imaging.dicom import STORED_COLUMNS, StoredPixels, UnreadableError, read_slices
    from ichkit.imaging.hounsfield import decode_stored, open_file

    # As where headers are read: a validating reader warns about every id that is no legal UID.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    for header, reason in read_slices(lambda length: data[:length], len(data))[:3]:
        if reason or header is None:
            return reason
        stored = StoredPixels(*(getattr(header, name) for name in STORED_COLUMNS))
        begin, length = header.pixel_offset, header.pixel_bytes
        try:
            pixels = data[begin : begin + length] if length and not header.syntax else open_file(data, stored)
            assert decode_stored(pixels, stored).size == header.rows * header.columns
        except UnreadableError as error:
            return str(error)
    return "read"


def try_zip(data: bytes) -> str:
    """What becomes of the members of a zip."""
    from ichkit.imaging.dicom import UnreadableError
    from ichkit.sources.files import file_refs, scan_files

    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        path = Path(folder) / "a.zip"
        path.write_bytes(data)
        files, refused = scan_files(path)
        found = list(refused["reason"])
        for ref in file_refs(files)[:8]:
            try:
                assert len(ref.read()) == ref.num_bytes
                found.append("read")
            except UnreadableError as error:
                found.append(str(error))
    return "; ".join(sorted(set(map(str, found)))) or "nothing inside"


def try_model(data: bytes) -> str:
    """What becomes of a card (first byte even) or of the text of boosted trees."""
    import numpy as np

    from ichkit.core.errors import IchkitError
    from ichkit.engine.inference import read_card
    from ichkit.stacking.trees import read_trees

    try:
        if data[:1] and data[0] % 2:
            trees = read_trees(data[1:].decode("latin-1"), "trees")
            trees.predict(np.zeros((2, 4), np.float32))
            return "trees"
        with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
            (Path(folder) / "model.json").write_bytes(data[1:])
            read_card(Path(folder))
            return "card"
    except IchkitError as error:
        return type(error).__name__


TARGETS: dict[str, Callable[[bytes], str]] = {"file": try_file, "zip": try_zip, "model": try_model}


def make_seeds(target: str, folder: Path) -> None:
    """Inputs to begin with, made from a phantom of 64 x 64 pixels."""
    from ichkit import write_phantom
    from ichkit.core.config import load_config
    from ichkit.engine.inference import ModelCard

    with tempfile.TemporaryDirectory() as made:
        write_phantom(Path(made), studies=1, test_studies=1, cq500_studies=1, size=64, seed=0, workers=1)
        slices = sorted((path.read_bytes() for path in Path(made).rglob("*.dcm")), key=len)[:8]
    if target == "file":
        seeds = slices
    elif target == "zip":
        seeds = []
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", method) as archive:
                archive.writestr("a/b.dcm", slices[0][:3000])
                archive.writestr("c.dcm", b"x" * 300)
            seeds.append(buffer.getvalue())
    else:
        card = ModelCard.of(load_config("demo"), 128, (-800, 2000))
        lines = {"split_feature": "0 1", "split_gain": "1 1", "threshold": "0 0", "decision_type": "8 8"}
        lines |= {"left_child": "1 -1", "right_child": "-2 -3", "leaf_value": "1 2 3"}
        body = "\n".join(f"{name}={value}" for name, value in lines.items())
        trees = f"tree\nversion=v4\n\nTree=0\n{body}\n\nend of trees\n"
        seeds = [b"\0" + json.dumps(asdict(card)).encode(), b"\1" + trees.encode()]
    for number, seed in enumerate(seeds):
        (folder / f"seed{number}").write_bytes(seed[:MAX_LENGTH])


def fuzz_here(target: str, folder: Path, seconds: int) -> None:
    """Fuzzes in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        for name in _INSTRUMENTED:
            __import__(name)
    run = TARGETS[target]
    options = [f"-max_total_time={seconds}", f"-max_len={MAX_LENGTH}", "-rss_limit_mb=4000", "-timeout=10"]
    options += [f"-artifact_prefix={folder.parent}/crash-{target}-", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(folder)], lambda data: (run(bytes(data)), None)[1])
    atheris.Fuzz()


def _fast_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _keep_outcomes(target: str, folder: Path) -> dict[str, int]:
    """Outcome to the number of corpus inputs with it; the smallest input of each goes to `CORPUS`."""
    found: dict[str, list[bytes]] = {}
    for path in [*folder.iterdir(), *CORPUS.glob(f"{target}-*")]:
        data = path.read_bytes()
        found.setdefault(TARGETS[target](data), []).append(data)
    for path in CORPUS.glob(f"{target}-*"):
        path.unlink()
    CORPUS.mkdir(parents=True, exist_ok=True)
    for number, outcome in enumerate(sorted(found)):
        (CORPUS / f"{target}-{number:02d}").write_bytes(min(found[outcome], key=lambda data: (len(data), data)))
    return {outcome: len(inputs) for outcome, inputs in found.items()}


def main() -> None:
    """Fuzzes every target for so many seconds and says how many cases were tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--inside", nargs=2, metavar=("TARGET", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        fuzz_here(asked.inside[0], Path(asked.inside[1]), asked.seconds)
        return
    figures: dict[str, int | str] = {"seconds_each": asked.seconds, "crashes": 0}
    with tempfile.TemporaryDirectory() as place:
        for target in TARGETS:
            folder = Path(place) / target
            folder.mkdir()
            make_seeds(target, folder)
            command = [sys.executable, __file__, "--seconds", str(asked.seconds), "--inside", target, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
            runs = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
            figures[f"cases_{target}"] = int(runs[1]) if runs else 0
            crashed = sorted(Path(place).glob(f"crash-{target}-*"))
            figures["crashes"] = int(figures["crashes"]) + len(crashed)
            if crashed or done.returncode:
                print(
                    "\n".join(line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("INFO"))[
                        -3000:
                    ]
                )
            outcomes = _keep_outcomes(target, folder) if asked.keep and not crashed else {}
            figures[f"inputs_{target}"] = len(list(folder.iterdir()))
            if outcomes:
                figures[f"outcomes_{target}"] = len(outcomes)
            print(
                f"{target}: {figures[f'cases_{target}']} cases, {len(crashed)} crashes, {len(outcomes)} outcomes kept"
            )
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
