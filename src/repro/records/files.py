"""Files that are whole or not there at all, and locks that die with their process."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

import yaml

from repro.errors import ReproError, UserError, first_line

TEMPORARY = ".tmp"
LOCK_ATTEMPTS = 20
YamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, if there
SEAL = b"sha256: "  # stands between a content and its checksum

_allowed: ContextVar[tuple[Path, ...] | None] = ContextVar("allowed", default=None)
_anchor: ContextVar[Path | None] = ContextVar("anchor", default=None)


@contextmanager
def confined(*folders: Path) -> Iterator[None]:
    """Meanwhile nothing is written outside of some folders, whatever links lead there."""
    token = _allowed.set(tuple(folder.resolve() for folder in folders))
    try:
        yield
    finally:
        _allowed.reset(token)


def check_allowed(path: Path) -> None:
    """Makes sure that ``path`` may be written, created or deleted; see `confined`.

    Raises:
        UserError: it leads to a place outside of the folders allowed.
    """
    allowed = _allowed.get()
    if allowed is None:
        return
    place = path.resolve()
    if not any(place.is_relative_to(folder) for folder in allowed):
        raise UserError(
            f"{path} lies outside of {allowed[0]}, and a study writes only below its own folder. "
            "If it is your own, say so: repro resume --trust."
        )


@contextmanager
def anchored(folder: Path) -> Iterator[None]:
    """Meanwhile no folder is made below ``folder`` if that was deleted: it stays deleted."""
    token = _anchor.set(folder)
    try:
        yield
    finally:
        _anchor.reset(token)


def parse_yaml(text: str) -> Any:
    """What safe YAML says; a `yaml.YAMLError` if it is none."""
    return yaml.load(text, Loader=YamlLoader)


def read_yaml(path: Path, loader: Any = YamlLoader) -> Any:
    """Reads a YAML file; null if it is empty.

    Args:
        path: the file.
        loader: a safe one.

    Raises:
        UserError: it cannot be read, or is not YAML; the message says where.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from error
    except (ValueError, RecursionError) as error:  # e.g. a date that does not exist
        raise UserError(f"{path}: not valid YAML: {error}") from error


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any], durable: bool = True) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, then renames it into place.

    Args:
        path: the file.
        write: given the open file.
        durable: whether it must outlive a power failure; waiting for the disk takes longest.

    A `ReproError` says so if the disk is full, a `UserError` if the folder cannot be written to.
    """
    check_allowed(path.parent)
    with explaining(path):
        descriptor, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_sealed(path: Path, write: Callable[[Any], Any]) -> None:
    """Writes a file as `write_atomically` does, and behind its content a checksum of it.

    Readers of zip archives, PyTorch among them, do not mind what follows an archive.
    """

    def write_both(file: IO[bytes]) -> None:
        sealed = _Summing(file)
        try:
            write(sealed)
        except Exception:
            if sealed.failure is not None:  # PyTorch says something else of it
                raise sealed.failure from None
            raise
        file.write(SEAL + sealed.sum.digest())

    write_atomically(path, write_both)


class _Summing:
    """A file to write to, which sums up what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sum = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            written = self.file.write(content)
        except OSError as error:
            self.failure = error
            raise
        self.sum.update(content)
        return written

    def flush(self) -> None:
        self.file.flush()


def keep_as(path: Path, name: str) -> None:
    """Keeps a file, if it is there, under another name beside it, whatever becomes of ``path``."""
    temporary = path.with_name(f".{name}{TEMPORARY}")
    check_allowed(path)
    with suppress(OSError):  # some file systems have no second names for a file
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
        os.replace(temporary, path.with_name(name))


def check_sealed(path: Path) -> None:
    """Makes sure that a zip archive is as `write_sealed` left it, or as others did.

    Raises:
        ValueError: it is not.
    """
    with path.open("rb") as file:
        inside = max(0, os.path.getsize(path) - len(SEAL) - hashlib.sha256().digest_size)
        file.seek(inside)
        seal, expected = file.read(len(SEAL)), file.read()
        file.seek(0)
        if seal == SEAL:
            if _sum_of(file, inside) != expected:
                raise ValueError("its checksum is wrong")
        elif zipfile.ZipFile(file).testzip() is not None:  # of an earlier version
            raise ValueError("a checksum in it is wrong")


def _sum_of(file: IO[bytes], size: int) -> bytes:
    found = hashlib.sha256()
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        found.update(part)
        size -= len(part)
    return found.digest()


def version_of(file: Path) -> tuple[int, int, int]:
    """What tells a file from itself after it was written again: inode, time of change, bytes."""
    found = file.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def checksum(content: bytes) -> str:
    """What tells a file's content from a damaged one."""
    return hashlib.sha256(content).hexdigest()[:32]


def remove_leftovers(folder: Path, pattern: str = "**/.*") -> None:
    """Removes the temporary files that a process left in ``folder`` when it was killed.

    Args:
        folder: where to look.
        pattern: of their paths in it, without the end that they have in common.
    """
    check_allowed(folder)
    for file in folder.glob(pattern + TEMPORARY):
        file.unlink(missing_ok=True)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Writes a text file atomically, see `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()), durable)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically."""
    write_atomically(path, lambda file: file.write(content))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, keys in the given order; NaN and infinities stay readable."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: it is missing, or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def make_folder(path: Path, exist_ok: bool = True) -> None:
    """Creates a folder and its parents.

    Raises:
        FileExistsError: it exists and ``exist_ok`` is false.
        UserError: it cannot be created there, or was deleted with all around it; see `anchored`.
    """
    check_allowed(path)
    anchor = _anchor.get()
    if anchor is not None and path.is_relative_to(anchor) and not anchor.is_dir():
        raise UserError(f"{anchor} was deleted while it was being written.")
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if not exist_ok:
            raise
        raise UserError(f"{path} is a file, and a folder is needed there.") from None
    except OSError as error:
        explained = explain_os_error(error, path)
        raise explained from error


def explain_os_error(error: OSError, path: Path) -> ReproError:
    """Turns an operating-system error about ``path`` into one line with a way out."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ReproError(
            f"No space left on the disk of {path.parent}. What was written stays valid: "
            "free some space, then `repro resume`."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return UserError(
            f"Cannot write to {path}: {error.strerror}. Choose another folder, "
            "for studies with outputs=DIR."
        )
    return ReproError(f"{path}: {error.strerror or error}")


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turns what the system says about ``path`` into a line; see `explain_os_error`."""
    try:
        yield
    except OSError as error:
        explained = explain_os_error(error, path)
        raise explained from error


def try_lock(file: IO[Any]) -> bool:
    """Takes the exclusive lock on an open file, unless another process holds it."""
    for _ in range(LOCK_ATTEMPTS):  # `is_locked` holds it for an instant: one refusal means little
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.01)
    return False


@contextmanager
def exclusive_lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds an exclusive lock on ``path``; the system frees it when the process dies.

    Args:
        path: of the lock file; it stays there.
        wait: until whoever else holds it lets go, however long that takes.

    Raises:
        UserError: another process holds it and ``wait`` is false, or the file cannot be written.
    """
    check_allowed(path)
    with explaining(path):
        file = path.open("a", encoding="utf-8")
    with file:
        if wait:
            fcntl.flock(file, fcntl.LOCK_EX)
        elif not try_lock(file):
            raise UserError(f"{path.parent} is being executed by another process.")
        yield


@contextmanager
def replacing(path: Path) -> Iterator[None]:
    """Holds the right to replace a file that `write_atomically` writes; others wait for it.

    A `UserError` says so if the file is missing or cannot be written.
    """
    while True:
        with explaining(path):
            file = path.open("r+b")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held it before may have put another file in its place.
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                yield
                return


def is_locked(path: Path) -> bool:
    """True while some process holds the lock on ``path``."""
    try:
        with path.open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
