"""What a result rests on: versions and code."""

from __future__ import annotations

import functools
import hashlib
import platform
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

from repro.records.papers import OF_REPORTS, OF_STUDIES, Paper, config_folders

_UNREAD = tuple(f"{key}:".encode() for key in ("paper", *OF_REPORTS, *OF_STUDIES))  # by runs
_COMMENT = re.compile(rb"(^|[ \t]+)#.*$", re.MULTILINE)
_SEEDS = re.compile(rb"\s*(- ['\"]?seeds=.*)?$")  # of a scale; or nothing at all

PACKAGES = ("gradient-repro", "torch", "lightning", "torchmetrics", "hydra-core", "numpy", "scipy")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def code_fingerprint() -> dict[str, Any]:
    """A hash over the project's sources, and the git commit where there is one."""
    library = Path(__file__).parents[1]
    roots = [library, *(Path(str(files(name))) for name in ("repro.conf", "repro.experiments"))]
    digest = hashlib.sha256()
    for root in roots:
        for file in sorted((*root.rglob("*.py"), *root.rglob("*.yaml"))):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return {"sha256": digest.hexdigest()[:16], "commit": _git_commit(library)}


def paper_fingerprint(paper: Paper) -> str:
    """A hash over what is a paper's own: its room, its method, and the configs that name either.

    Unlike `code_fingerprint` it stays the same while the engine and other papers change. Claims are
    left out: recorded runs are judged again when they change. So is what no run reads of a config:
    comments, the seeds of a study that is asked for none (a record has its own), figures, columns.
    """
    digest = hashlib.sha256()
    for name, content in sorted(_own_sources(paper)):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:16]


def _own_sources(paper: Paper) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files."""
    room, method = paper.room_folder, Path(__file__).parents[1] / "methods" / paper.slug
    for file in (*room.rglob("*.py"), *method.rglob("*.py")):
        yield f"{file.parent.name}/{file.name}", file.read_bytes()
    if method.with_suffix(".py").is_file():
        yield "", method.with_suffix(".py").read_bytes()
    names = [name.encode() for name in (f"repro.methods.{paper.slug}", paper.room)]
    target = re.compile(rb"\b(" + b"|".join(map(re.escape, names)) + rb")\b")
    for name, parts, content in _configs(config_folders()):
        # Most hold neither name, which is found out much faster than the other.
        is_named = any(each in content for each in names) and target.search(content)
        if paper.slug in parts or is_named:
            yield name, _read_by_runs(content)


def _read_by_runs(config: bytes) -> bytes:
    """The lines of a config file that some run may read."""
    sections = re.split(rb"^(?=\w)", _COMMENT.sub(b"", config), flags=re.MULTILINE)
    kept = b"".join(section for section in sections if not section.startswith(_UNREAD))
    return b"\n".join(line for line in kept.splitlines() if not _SEEDS.match(line))


@functools.cache
def _configs(folders: tuple[Path, ...]) -> list[tuple[str, tuple[str, ...], bytes]]:
    """The config files: path within their folder, the same in parts without suffix, content."""
    found = {
        file.relative_to(folder): file.read_bytes()
        for folder in folders
        for file in folder.rglob("*.yaml")
    }
    return [(path.as_posix(), path.with_suffix("").parts, found[path]) for path in found]


def _git_commit(folder: Path) -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", "-C", str(folder), *arguments), capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # an installed copy belongs to no commit
        dirty = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None
