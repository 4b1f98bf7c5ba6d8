"""What tests of rooms share: a paper's study at scale=smoke, run once for all that look at it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repro.launching.local import run_study
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.planning.trust import TRUST_VARIABLE
from repro.records.study import Study


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for studies that share what they train or compute only once."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module", autouse=True)  # so that tests elsewhere are spared
def own_cache(outputs: Path) -> Iterator[None]:
    """Keeps what rooms compute out of the user's cache; they may share it across studies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRUST_VARIABLE, "1")
        patch.setenv("REPRO_CACHE", str(outputs / "cache"))
        yield


@pytest.fixture(scope="session")
def smoke(outputs: Path) -> Callable[[str], Study]:
    """Runs one seed of a paper's study at scale=smoke, the first time that it is asked for."""

    @functools.cache
    def run(slug: str) -> Study:
        typed = [f"paper={slug}", "scale=smoke", "seed=0", "n_jobs=1", f"outputs={outputs}"]
        study = create_study(plan_study(typed), outputs)
        run_study(study)
        return study

    return run


@pytest.fixture
def study(smoke: Callable[[str], Study], request: pytest.FixtureRequest) -> Study:
    """The study of the paper that the test's module is about: its ``PAPER``."""
    return smoke(request.module.PAPER.slug)
