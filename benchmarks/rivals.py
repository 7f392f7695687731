"""The stacking of AutoGluon and MLJAR on exported data sets: `python benchmarks/rivals.py autogluon|mljar IN OUT`.

Run by `benchmarks/prove.py --rivals PYTHON` in an environment of its own, because these packages need other versions
than ichkit: `pip install autogluon.tabular mljar-supervised lightgbm`. Nothing of ichkit is imported.

IN is an .npz with `train` (N, F) features, `labels` (N,) of one class, `patients` (N,), and `locked` (M, F). OUT gets
`oof` (N,), the package's own out-of-fold probabilities, and `locked` (M,), those of the fitted model for new rows.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

NUM_PARTS, SECONDS = 5, 60


def main() -> None:
    name, given, wanted = sys.argv[1:]
    data = np.load(given)
    with tempfile.TemporaryDirectory() as folder:
        oof, locked = RIVALS[name](data["train"], data["labels"], data["patients"], data["locked"], Path(folder))
    np.savez(wanted, oof=oof, locked=locked)


def autogluon(train, labels, patients, locked, folder):
    """Two layers of bagged models and the weighted ensemble, as `presets="best_quality"` has them, of three kinds."""
    return _autogluon(train, labels, locked, folder, {})


def autogluon_groups(train, labels, patients, locked, folder):
    """The same, with the parts of bagging dealt by patient: an argument that users must know of."""
    return _autogluon(train, labels, locked, folder, {"part": _parts(patients)})


def _autogluon(train, labels, locked, folder, groups):
    from autogluon.tabular import TabularPredictor

    table = _table(train).assign(label=labels, **groups)
    predictor = TabularPredictor(
        "label", eval_metric="log_loss", path=str(folder / "ag"), verbosity=0, groups="part" if groups else None
    )
    predictor.fit(
        table,
        num_bag_folds=NUM_PARTS,
        num_stack_levels=1,
        dynamic_stacking=False,
        hyperparameters={"GBM": {}, "XT": {"n_estimators": 100}, "LR": {}},
        time_limit=SECONDS,
        num_cpus=1,
        ag_args_ensemble={"fold_fitting_strategy": "sequential_local"},
    )
    new = predictor.predict_proba(_table(locked), as_multiclass=False)
    return predictor.predict_proba_oof(as_multiclass=False).to_numpy(), new.to_numpy()


def mljar(train, labels, patients, locked, folder):
    """Its ensemble with stacked models, by five parts of shuffled rows."""
    from supervised.automl import AutoML

    model = AutoML(
        results_path=str(folder / "mljar"),
        mode="Compete",
        algorithms=["LightGBM", "Extra Trees", "Linear"],
        eval_metric="logloss",
        total_time_limit=SECONDS,
        stack_models=True,
        train_ensemble=True,
        golden_features=False,
        features_selection=False,
        hill_climbing_steps=0,
        start_random_models=1,
        explain_level=0,
        validation_strategy={"validation_type": "kfold", "k_folds": NUM_PARTS, "shuffle": True, "stratify": True},
        n_jobs=1,
        verbose=0,
        random_state=0,
    )
    model.fit(_table(train), labels)
    told = pd.read_csv(Path(model.results_path) / model._best_model.get_name() / f"predictions_{_kind(model)}.csv")
    assert (told["target"].to_numpy() == labels).all()  # its rows are in the order of the table
    return told["prediction"].to_numpy(), model.predict_proba(_table(locked))[:, 1]


def _kind(model):
    return "ensemble" if model._best_model.get_type() == "Ensemble" else "out_of_folds"


def _parts(patients):
    """(N,) the part of each row, whole patients in turn."""
    codes = pd.factorize(patients)[0]
    return np.random.default_rng(0).permutation(codes.max() + 1)[codes] % NUM_PARTS


def _table(features):
    return pd.DataFrame(features, columns=[f"f{number}" for number in range(features.shape[1])])


RIVALS = {"autogluon": autogluon, "autogluon_groups": autogluon_groups, "mljar": mljar}

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
