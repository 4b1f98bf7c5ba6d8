"""The knobs of a report, from ``conf/report.yaml`` and the user's own."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from repro.errors import UserError, did_you_mean
from repro.records.files import read_yaml
from repro.records.papers import config_folders


class Settings(BaseModel):
    """What is drawn, and how much of it; ``conf/report.yaml`` says what each means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    studies: PositiveInt
    curves: PositiveInt
    lines: PositiveInt
    points: PositiveInt
    pixels: PositiveInt
    pictures_kb: PositiveInt
    log_above: float

    @classmethod
    def load(cls) -> Self:
        """Reads report.yaml in every config folder; the user's settings win.

        Raises:
            UserError: a file is no mapping, or a setting is unknown or of the wrong kind.
        """
        merged: dict[str, object] = {}
        for folder in config_folders():
            file = folder / "report.yaml"
            if not file.is_file():
                continue
            own = read_yaml(file) or {}
            if not isinstance(own, dict):
                raise UserError(f"{file} takes settings such as studies: 3.")
            merged |= own
            try:
                settings = cls.model_validate(merged)
            except ValidationError as error:
                first = error.errors()[0]
                key = str(first["loc"][0])
                hint = did_you_mean(key, cls.model_fields)
                raise UserError(f"{file}, {key}: {first['msg']}.{hint}") from None
        return settings
