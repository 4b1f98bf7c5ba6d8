"""What must hold for a run that fails by its user's mistake."""

from __future__ import annotations

from repro.launching.local import run_study
from repro.records.study import Study


def fails_in_one_line(study: Study, complaint: str) -> None:
    """Runs a study whose first run must blame its user in one line that holds ``complaint``."""
    run_study(study)
    error = study.runs[0].record().error
    assert error.kind == "user", error.traceback
    assert complaint in error.message
    assert "\n" not in error.message
