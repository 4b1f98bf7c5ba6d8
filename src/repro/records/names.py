"""What the files of a study and of its runs are called, and which names are numbers."""

from __future__ import annotations

# A run directory
RUN_RECORD = "run.json"
RUN_CONFIG = "config.yaml"
OVERRIDES = "overrides.yaml"
JOB = "job.json"
SERIES = "metrics.csv"
SUMMARY = "summary.json"
LOG = "log.txt"
CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
PREVIOUS_CHECKPOINT = "previous.ckpt"  # while the run is not done
BEST_CHECKPOINT = "best.ckpt"
ARTIFACTS = "artifacts"
REHEARSAL = "rehearsal.json"  # of a run that was rehearsed
LOCK = ".lock"  # held by the process that executes the run, or the study

# A study's folder
STUDY_RECORD = "study.json"
VERDICTS = "verdicts.json"
SEARCH = "search.json"
FIGURES = "figures"
JOBS = "jobs"  # Slurm's logs and submitit's files

# A folder of studies
REHEARSALS = "rehearsal"  # in a paper's folder, where no study is looked for
SHARED = (".cache", "mlflow.db", ".mlflow.lock", "mlflow", "wandb")  # what its studies share


def is_number(text: str) -> bool:
    """Whether a name or value is nothing but a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
