"""What sets the arms of a study apart: the settings that are not the same in all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from repro.records import files, names
from repro.records.layers import flatten
from repro.report.collect import StudyEntry

_NOT_SETTINGS = ("arm", "seed", "paper", "module")  # names, and pointers at the settings themselves


@dataclass(frozen=True)
class Differences:
    """Settings that differ between arms: a row a setting, a cell an arm."""

    arms: list[str]
    rows: dict[str, list[str]]


def differences(study: StudyEntry, most: int) -> Differences:
    """Compares the configs of the first runs of the first ``most`` arms."""
    configs = {
        name: settings
        for name, runs in list(study.groups.items())[:most]
        if (settings := read_settings(runs[0].folder / names.RUN_CONFIG))
    }
    keys = dict.fromkeys(key for settings in configs.values() for key in settings)
    rows = {key: [settings.get(key, "–") for settings in configs.values()] for key in keys}
    return Differences(
        arms=list(configs),
        rows={key: values for key, values in rows.items() if len(set(values)) > 1},
    )


def read_settings(file: Path) -> dict[str, str]:
    """A run's settings, flattened and as text; nothing if the file cannot be read."""
    try:
        text = file.read_text(encoding="utf-8")
        content: Any = files.parse_yaml(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    if not isinstance(content, dict) or _has_aliases(text):
        return {}
    kept = {key: value for key, value in content.items() if key not in _NOT_SETTINGS}
    return {key: _text(value) for key, value in flatten(kept).items()}


def monitored(study: StudyEntry) -> str | None:
    """The metric that the study's first run selects its best checkpoint by."""
    if not study.runs:
        return None
    return read_settings(study.runs[0].folder / names.RUN_CONFIG).get("training.monitor")


def _has_aliases(text: str) -> bool:
    """Whether parts repeat others by reference: ours do not, and a few can stand for gigabytes."""
    if "&" not in text or "*" not in text:
        return False
    events = yaml.parse(text, Loader=files.YamlLoader)
    return any(isinstance(event, yaml.AliasEvent) for event in events)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)
