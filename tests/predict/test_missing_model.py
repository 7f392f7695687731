"""A path at which there is no model."""

import pytest

from ichkit.core.errors import ConfigError
from ichkit.core.tasks import find_task
from ichkit.stages.predict.model import find_model
from ichkit.work.folder import WorkFolder


def test_a_path_without_a_folder_is_said_as_a_path_and_how_to_write_one(tmp_path):
    with pytest.raises(ConfigError, match="at export/none, found none.*`ichkit export NAME`"):
        find_model(WorkFolder(tmp_path), "export/none", find_task("hemorrhage"))
