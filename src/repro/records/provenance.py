"""What a result rests on: versions and code."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

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
