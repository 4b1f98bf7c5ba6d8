"""JSON files with known keys: checked when they are read, changed by one writer at a time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, PlainSerializer, ValidationError

from repro.errors import UserError
from repro.records import files

# `isoformat`, because pydantic would write another form than files of earlier versions hold.
Moment = Annotated[datetime, PlainSerializer(datetime.isoformat)]


class Record(BaseModel):
    """Content of a JSON file; the keys that other versions write are kept."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        ser_json_inf_nan="constants",
        defer_build=True,  # until one is needed: few commands need every kind
    )

    def content(self) -> dict[str, Any]:
        """What the file holds: the keys that were ever given, as JSON has them."""
        return self.model_dump(mode="json", exclude_unset=True)


CHECKSUM = "checksum"  # of the other keys; a file without it, written by hand, is believed

RecordType = TypeVar("RecordType", bound=Record)


def read_record(kind: type[RecordType], file: Path) -> RecordType:
    """Reads a record.

    A `UserError` says so if the file is missing, damaged or not JSON, or a value in it is of the
    wrong kind.
    """
    return record_in(kind, file, files.read_json(file))


def record_in(kind: type[RecordType], file: Path, content: Any) -> RecordType:
    """The record that a file's JSON holds, where that was read already; see `read_record`."""
    return _validated(kind, file, _unsealed(file, content))


def write_record(file: Path, record: Record) -> None:
    """Writes a record's file."""
    _write(file, record.content())


def update_record(kind: type[Record], file: Path, changes: dict[str, Any]) -> None:
    """Merges changes into a record's file, whoever else does the same.

    A `UserError` says so if the file cannot be read or written.

    Raises:
        TypeError: the record has no such key.
    """
    unknown = changes.keys() - kind.model_fields.keys()
    if unknown:
        raise TypeError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    with files.replacing(file):
        before = _unsealed(file, files.read_json(file))
        after = _validated(kind, file, {**before, **changes}).content()
        _write(file, before | {key: after[key] for key in changes})


def _unsealed(file: Path, content: Any) -> dict[str, Any]:
    """A record's content as JSON has it, without the checksum.

    Raises:
        UserError: it is damaged.
    """
    if not isinstance(content, dict):
        raise UserError(f"{file} cannot be read: it holds no mapping.")
    expected = content.pop(CHECKSUM, None)
    if expected is not None and expected != _checksum(content):
        raise UserError(
            f"{file} is damaged: its checksum is wrong. If you changed it yourself, take the line "
            f'"{CHECKSUM}" out of it.'
        )
    return content


def _write(file: Path, content: dict[str, Any]) -> None:
    files.write_json(file, {**content, CHECKSUM: _checksum(content)})


def _checksum(content: dict[str, Any]) -> str:
    return files.checksum(json.dumps(content).encode())


def _validated(kind: type[RecordType], file: Path, content: Any) -> RecordType:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{file} cannot be read: {key}: {first['msg']}.") from None


def now() -> datetime:
    """The current time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)
