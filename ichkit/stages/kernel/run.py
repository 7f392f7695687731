"""`ichkit kernel`: the offline inference notebook and the bundle of wheels that a code competition asks for."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

import ichkit
from ichkit.core.config import Config
from ichkit.core.errors import ConfigError
from ichkit.core.progress import logger
from ichkit.show.plan import Forecast, Plan
from ichkit.stages.kernel.notebook import make_notebook
from ichkit.stages.kernel.wheels import collect_wheels, pin_packages
from ichkit.stages.predict import export
from ichkit.work.artifacts import encode_json, package_versions, write_bytes_atomically
from ichkit.work.folder import WorkFolder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COMPETITION = "rsna-intracranial-hemorrhage-detection"


@dataclass(frozen=True)
class KernelOptions:
    """Options of `kernel`.

    Attributes:
        model: as for `export`.
        out: output folder: `bundle/` for a data set of the site, `notebook/` for the notebook.
        user: name on the site, in the metadata files.
        wheel: of ichkit; None makes it from the checkout or the installed package that runs.
        packages: further packages whose wheels are downloaded in the versions that are installed here.
    """

    model: str
    out: Path = Path("kernel")
    user: str = "USER"
    wheel: Path | None = None
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class KernelPlan(Plan):
    """What `kernel` found.

    Attributes:
        config: for the predictions of the notebook.
        model: the plan of the export of the model.
        source: the wheel of ichkit, or the checkout or the folder of installed packages that it is made from.
    """

    config: Config
    options: KernelOptions
    model: export.ExportPlan
    source: Path

    @property
    def slug(self) -> str:
        """The name of the data set on the site."""
        return re.sub(r"[^a-z0-9]+", "-", f"ichkit-{self.model.model.name}".lower()).strip("-")

    @property
    def writes(self) -> tuple[Path, ...]:
        """The bundle and the notebook."""
        return (self.options.out / "bundle", self.options.out / "notebook")

    def forecast(self) -> Forecast:
        """The model, the wheels, the notebook."""
        forecast = self.model.forecast()
        wheels = ", ".join(("ichkit", *self.options.packages))
        steps = (*forecast.steps, f"wheels: {wheels}", f"notebook/inference.ipynb, data set {self.slug}")
        return replace(forecast, steps=steps)


def plan(config: Config, work: WorkFolder, options: KernelOptions) -> KernelPlan:
    """Finds the model and what the wheel of ichkit is made from; writes nothing.

    Raises:
        ConfigError: no such model, a wheel that is none, a package that is not installed, or other content in `out`.
        ArtifactError: a part of the model is unfinished.
    """
    for name in options.packages:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"kernel --with: expected the name of a package, found {name!r}.")
    pin_packages(options.packages)
    source = options.wheel or Path(ichkit.__file__).resolve().parents[1]
    if options.wheel is not None and not (options.wheel.is_file() and options.wheel.suffix == ".whl"):
        raise ConfigError(f"kernel --wheel: expected a file that ends in .whl, found {options.wheel}.")
    model = export.plan(config, work, export.ExportOptions(options.model, options.out / "bundle" / "model"))
    return KernelPlan(config, options, model, source)


def run(plan: KernelPlan) -> Path:
    """Writes the bundle and the notebook; returns the path of the notebook.

    ::

        OUT/bundle/     model/ (an export), wheels/, config.yaml, requirements.txt, dataset-metadata.json
        OUT/notebook/   inference.ipynb, kernel-metadata.json (no internet)

    Raises:
        ArtifactError: a part of the model is damaged, or a wheel cannot be built or downloaded.
        DiskFullError: the disk is full.
    """
    bundle, notebook = plan.writes
    wheels = collect_wheels(plan.source, plan.options.packages)  # first: it may fail, and then nothing is written
    export.run(plan.model)
    for name, wheel in wheels:
        write_bytes_atomically(bundle / "wheels" / name, wheel)
    tree = {"task": plan.config.task}
    write_bytes_atomically(bundle / "config.yaml", yaml.safe_dump(tree).encode())
    pinned = [f"{name}=={version}" for name, version in sorted(package_versions().items()) if version[:1].isdigit()]
    pinned = [line for line in pinned if not line.startswith("python==")]
    write_bytes_atomically(bundle / "requirements.txt", ("\n".join(pinned) + "\n").encode())
    options, slug = plan.options, plan.slug
    dataset = {"title": slug, "id": f"{options.user}/{slug}", "licenses": [{"name": "other"}]}
    write_bytes_atomically(bundle / "dataset-metadata.json", encode_json(dataset))
    path = notebook / "inference.ipynb"
    write_bytes_atomically(path, encode_json(make_notebook(slug, plan.model.model.name)))
    kernel = {
        "id": f"{options.user}/{slug}-inference",
        "title": f"{slug}-inference",
        "code_file": path.name,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_internet": False,
        "dataset_sources": [f"{options.user}/{slug}"],
        "competition_sources": [_COMPETITION],
    }
    write_bytes_atomically(notebook / "kernel-metadata.json", encode_json(kernel))
    logger.info(
        "kernel: upload with `kaggle datasets create -p %s -r zip`, then `kaggle kernels push -p %s`", bundle, notebook
    )
    return path
