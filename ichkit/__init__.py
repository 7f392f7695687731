"""Intracranial hemorrhage detection on head CT: the commands as Python functions, their tables as DataFrames.

Names are imported on first use to keep `import ichkit` fast. See docs/python.md.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ichkit.core.caches import provide_kernel_cache

if TYPE_CHECKING:
    from ichkit.api import (
        LoadedModel,
        evaluate,
        load_model,
        out_of_fold,
        prepare,
        scores,
        stack,
        submit,
        train,
        write_phantom,
    )
    from ichkit.core.config import Config, load_config
    from ichkit.core.errors import IchkitError

__version__ = "0.1.0"
__all__ = [
    "Config",
    "IchkitError",
    "LoadedModel",
    "__version__",
    "evaluate",
    "load_config",
    "load_model",
    "out_of_fold",
    "prepare",
    "scores",
    "stack",
    "submit",
    "train",
    "write_phantom",
]
_MODULES = {"Config": "ichkit.core.config", "load_config": "ichkit.core.config", "IchkitError": "ichkit.core.errors"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "ichkit.api")), name)


def __dir__() -> list[str]:
    return sorted(__all__)


provide_kernel_cache()  # numba chooses its cache folder when the first kernel is defined, at import
