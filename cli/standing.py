"""What the user wants for every command: config folders, typed or in a settings file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from repro.errors import UserError, did_you_mean
from repro.records.files import read_yaml
from repro.records.papers import CONFIG_DIR_VARIABLE

KNOWN = ("config_dirs",)


def settings_file() -> Path:
    """``~/.config/repro/settings.yaml``, or where $XDG_CONFIG_HOME says."""
    # `os.path`: in a container there may be no home folder, and `Path` raises then.
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(home) / "repro" / "settings.yaml"


def use_settings() -> None:
    """Uses the settings file, unless the environment says already which folders to use.

    Raises:
        UserError: it has an unknown setting, or names a folder that is not there.
    """
    file = settings_file()
    # Likewise: under sudo the home folder may be one that cannot be read.
    if CONFIG_DIR_VARIABLE in os.environ or not os.path.isfile(file):
        return
    content = read_yaml(file) or {}
    if not isinstance(content, dict):
        raise UserError(f"{file} takes settings such as config_dirs: [DIR].")
    for key in content:
        if key not in KNOWN:
            raise UserError(f"{file} has no setting '{key}'.{did_you_mean(str(key), KNOWN)}")
    for folder in content.get("config_dirs") or []:
        place = Path(os.path.expanduser(str(folder)))
        if not place.is_dir():
            raise UserError(f"{file} names a folder that is not there: {place}.")
        use_config_dir(place)


def use_config_dir(folder: Path) -> None:
    """Uses a folder of papers and configs, here and in the processes started here."""
    # Environment variables, because workers and cluster jobs must see them too.
    _append(CONFIG_DIR_VARIABLE, str(folder.absolute()))
    # The rooms of one's own papers may lie beside that folder; last, so as to hide no module.
    beside = str(folder.absolute().parent)
    sys.path.append(beside)
    _append("PYTHONPATH", beside)


def _append(variable: str, value: str) -> None:
    before = os.environ.get(variable)
    os.environ[variable] = f"{before}{os.pathsep}{value}" if before else value
