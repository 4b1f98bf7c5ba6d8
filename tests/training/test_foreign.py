"""A run directory from somebody else executes nothing, and writes nothing outside of itself."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import rooms
import yaml
from click.testing import CliRunner, Result
from fake_outputs import rewrite_config, update_json
from repro.cli.main import cli
from rooms import prepared
from torture import note, torture, tries

import repro
from repro.errors import UserError
from repro.planning import trust
from repro.records import files
from repro.records.study import Study

SHORT = ["paper=toy", "scale=smoke", "arm=sgd", "seed=0", "training.max_steps=1"]
EXECUTING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn",
             "socket.connect", "ctypes.dlopen")  # fmt: skip
CHANGING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link",
            "os.symlink", "shutil.rmtree", "shutil.copyfile", "shutil.move")  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

Mutation = Callable[[Study], object]


class Guard:
    """Notes what this process does outside of a folder, by Python's own account."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hear)  # for good: there is no way to take it away

    @contextmanager
    def watching(self, folder: Path) -> Iterator[list[str]]:
        self.folder, self.seen = str(folder.resolve()), []
        try:
            yield self.seen
        finally:
            self.folder = None

    def _hear(self, event: str, values: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        writes = event == "open" and isinstance(values[2], int) and values[2] & WRITING
        if event in EXECUTING:
            if values[0] not in ("git", "uname") and not is_libc(values[0]):
                self.seen.append(f"{event} {values}")
        elif writes or event in CHANGING:
            for place in values[: 2 if event in ("os.rename", "shutil.move") else 1]:
                if isinstance(place, str | bytes | os.PathLike) and self._outside(place):
                    self.seen.append(f"{event} {values}")

    def _outside(self, place: Any) -> bool:
        path = os.path.realpath(os.fsdecode(place))
        is_cache = "__pycache__" in Path(path).parts  # of what Python imports, anywhere
        return not is_cache and not path.startswith((f"{self.folder}", "/dev/", "/proc/"))


def is_libc(name: object) -> bool:
    return name is None or str(name).startswith("lib")


@pytest.fixture(scope="session")
def guard() -> Guard:
    return Guard()


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study that nobody has begun, to be copied."""
    config = Path(__file__).parents[1] / "support/toy_project/conf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_CONFIG_DIR", str(config))
        return prepared(tmp_path_factory.mktemp("pattern") / "outputs", *SHORT)


@pytest.fixture
def study(toy: Path, pattern: Study) -> Study:
    return copied(toy, pattern)


def copied(folder: Path, pattern: Study) -> Study:
    place = folder / "outputs" / "toy" / "smoke" / "theirs"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(pattern.folder, place)
    return Study(place)


def in_config(study: Study, place: str, value: Any) -> None:
    """Puts something into the run's config.yaml, at a dotted place."""
    file = study.runs[0].config_file
    config = yaml.safe_load(file.read_text())
    *path, last = place.split(".")
    node = config
    for part in path:
        node = node[part]
    node[last] = {**node[last], **value} if place == "dataset" else value
    rewrite_config(study.runs[0], yaml.safe_dump(config))


def resume(study: Study, *options: str) -> Result:
    return CliRunner().invoke(cli, ["resume", "-q", *options, str(study.folder)])


def refused(study: Study, guard: Guard) -> str:
    """What `resume` says to refuse a study, having done nothing."""
    with guard.watching(study.folder) as seen:
        result = resume(study)
    assert not seen, seen
    assert result.exit_code == 2, result.output
    assert "fault of repro" not in result.output
    assert not Path("CANARY").exists()
    return result.stderr


RUN = {"_target_": "torch.utils.collect_env.run", "command": "touch CANARY"}
OPEN = {"_target_": "repro.launching.queue.ask", "_args_": ["touch", "CANARY"]}


def test_what_nobody_changed_is_resumed(study: Study, guard: Guard) -> None:
    with guard.watching(study.folder) as seen:
        result = resume(study)
    assert result.exit_code == 0, result.output
    assert not seen, seen


@pytest.mark.parametrize("place", ["dataset", "module", "module.x", "model", "optimizer.x"])
@pytest.mark.parametrize(
    "target",
    [
        OPEN,
        RUN,
        {"_target_": "repro.launching.queue._ask_queue", "array": "touch CANARY"},
        {"_target_": "repro.records.files.write_text", "path": "CANARY", "text": "x"},
        {
            "_target_": "repro.records.study.Study.discard",
            "self": {
                "_target_": "repro.records.study.Study",
                "folder": {"_target_": "repro.data.base.files.data_root", "root": "/nowhere"},
            },
        },
        {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "CANARY"},
        {"_target_": "optuna.samplers.CmaEsSampler"},
        {"_target_": "torch.load", "f": "CANARY.pkl", "weights_only": False},
        {"_target_": 5},
    ],
)
def test_a_config_names_only_what_is_registered_for_the_purpose(
    study: Study, guard: Guard, place: str, target: dict[str, Any]
) -> None:
    in_config(study, place, target)
    assert "_target_" in (said := refused(study, guard)) or "The config names" in said


def test_a_data_set_is_no_model(study: Study, guard: Guard) -> None:
    in_config(study, "dataset", {"_target_": "torch.nn.Identity"})
    assert "which no installed config names for a dataset" in refused(study, guard)


def test_a_model_is_no_data_set(study: Study, guard: Guard) -> None:
    in_config(study, "model", {"_target_": "repro.data.tables.bundled.digits"})
    assert "which no installed config names for a module" in refused(study, guard)


@pytest.mark.parametrize(
    "launcher",
    [
        {"name": "basic", "extra": RUN},
        {"name": "joblib", "n_jobs": 1, "extra": RUN},
        {"name": "joblib", "_target_": "torch.utils.collect_env.run"},
        {"name": "joblib", "temp_folder": "/tmp/CANARY"},
        {"name": "submitit_local", "setup": ["touch CANARY"]},
        {"name": "submitit_slurm", "partition": "x\ntouch CANARY"},
        {"name": "submitit_slurm", "additional_parameters": {"output": "CANARY"}},
        {"name": "nothing"},
    ],
)
def test_a_launcher_only_shares_out_runs(
    study: Study, guard: Guard, launcher: dict[str, Any]
) -> None:
    in_config(study, "hardware.launcher", launcher)
    assert len(refused(study, guard).strip().splitlines()) == 1


@pytest.mark.parametrize(
    "texts",
    [
        [
            "hydra/launcher=joblib",
            "++hydra.launcher.extra={_target_:torch.utils.collect_env.run,command:'touch CANARY'}",
        ],
        ["hydra.searchpath=[file:///tmp]"],
        ["hydra/launcher@other=joblib"],
        ["hydra.launcher._target_=torch.utils.collect_env.run"],
        ["+hydra.callbacks.x={_target_:torch.utils.collect_env.run}"],
        ["hydra.sweep.dir=/tmp"],
    ],
)
def test_a_study_only_chooses_a_launcher(study: Study, guard: Guard, texts: list[str]) -> None:
    update_json(study.record_file, hydra=texts)
    refused(study, guard)


def test_harmless_choices_of_a_launcher_are_kept(study: Study) -> None:
    update_json(study.record_file, hydra=["hydra/launcher=basic"])
    assert resume(study).exit_code == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"tracking_uri": "sqlite:////tmp/CANARY.db", "experiment": "x"},
        {"tracking_uri": "http://localhost:9", "experiment": "{paper} {scale}"},
    ],
)
def test_a_logger_is_as_a_config_has_it(
    study: Study, guard: Guard, settings: dict[str, Any]
) -> None:
    mlflow = {"_target_": "repro.training.loggers.mlflow", "_partial_": True, **settings}
    in_config(study, "logger.loggers", {"mlflow": mlflow})
    assert "has settings that no logger config has" in refused(study, guard)


@pytest.mark.parametrize("name", ["os.system", "repro.training.watch.Watch", "toy_room.Evil"])
def test_a_callback_is_that_of_a_search(study: Study, guard: Guard, name: str) -> None:
    update_json(study.runs[0].record_file, callback=name)
    refused(study, guard)


def test_only_a_run_of_the_study_is_executed(study: Study, guard: Guard, toy: Path) -> None:
    shutil.copytree(study.runs[0].folder, toy / "mine")
    for path in ("../../../../mine", str(toy / "mine"), ""):
        update_json(study.record_file, layers=[[path]])
        assert "outside of its folder" in refused(study, guard)


@pytest.mark.parametrize("link", ["log.txt", "checkpoints", ".lock", "artifacts", "run"])
def test_links_lead_nowhere(study: Study, guard: Guard, toy: Path, link: str) -> None:
    outside = toy / "outside"
    outside.mkdir()
    place = study.runs[0].folder if link == "run" else study.runs[0].folder / link
    if link == "run":
        shutil.move(place, outside / "run")
        place.symlink_to(outside / "run")
    else:
        place.unlink(missing_ok=True)
        place.symlink_to(outside / ("new" if "." in link else ""))
    before = sorted(outside.rglob("*"))
    refused(study, guard)
    assert sorted(outside.rglob("*")) == before


def test_figures_and_verdicts_stay_in_the_study(study: Study, toy: Path) -> None:
    (toy / "outside").mkdir()
    study.figures_folder.symlink_to(toy / "outside")
    with study.confined(), pytest.raises(UserError, match="lies outside of"):
        files.write_text(study.figures_folder / "a.svg", "x")


@pytest.mark.parametrize("job", ["12\ntouch CANARY", "x", "", 5])
def test_a_job_is_a_number(study: Study, guard: Guard, job: Any) -> None:
    (study.runs[0].folder / "job.json").write_text(json.dumps({"job": job, "log": "x"}))
    assert "job.json cannot be read" in refused(study, guard)


def test_a_scale_is_no_path(study: Study) -> None:
    assert resume(study).exit_code == 0
    update_json(study.record_file, scale="../../CANARY")
    result = CliRunner().invoke(cli, ["record", "--study", str(study.folder)])
    assert result.exit_code == 2
    assert "has no scale" in result.stderr


def test_code_in_the_current_folder_is_not_imported(toy: Path, pattern: Study) -> None:
    evil = "open('CANARY', 'w')"
    for name in ("joblib", "torch", "numpy"):
        (toy / name).mkdir()
        (toy / name / "__init__.py").write_text(evil)
    installed = [sys.executable, "-P", "-m", "repro.cli.main"]  # as the command itself is started
    typed = ["run", *SHORT[:3], "seeds=[0,1]", *SHORT[4:], "n_jobs=2", "-q"]
    environment = {**os.environ, "PYTHONPATH": str(Path(rooms.__file__).parent)}
    done = subprocess.run([*installed, *typed], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (toy / "CANARY").exists()


def test_what_is_ones_own_is_free(study: Study) -> None:
    in_config(study, "model", {"_target_": "torch.nn.Sequential"})
    said = resume(study).stderr
    assert "repro resume --trust" in said
    assert "repro resume --trust" not in resume(study, "--trust").stderr
    assert not trust.is_trusted()


# -- What nobody thought of ------------------------------------------------------------------------

PLACES = ("dataset", "module", "model", "method", "optimizer", "schedule", "module.x", "dataset.x",
          "optimizer.lr", "training.x", "logger.loggers", "hardware.launcher")  # fmt: skip
STRANGERS = ("os.system", "os.remove", "subprocess.run", "subprocess.Popen", "builtins.exec",
             "builtins.open", "shutil.rmtree", "torch.load", "torch.save", "pathlib.Path.unlink",
             "torch.utils.collect_env.run", "hydra.utils.call", "importlib.import_module",
             "torch.nn.Module.load_state_dict", "torch.hub.load")  # fmt: skip


def callables() -> list[str]:
    """Every function and class in the project, private ones too."""
    found = set(STRANGERS)
    for module in pkgutil.walk_packages(repro.__path__, "repro."):
        if ".experiments." in module.name or ".cli" in module.name:
            continue
        try:
            content = vars(importlib.import_module(module.name))
        except ImportError:
            continue
        for name, value in content.items():
            if inspect.isfunction(value) or inspect.isclass(value):
                found.add(f"{module.name}.{name}")
                found |= {
                    f"{module.name}.{name}.{inner}"
                    for inner, each in vars(value).items()
                    if inspect.isfunction(each) and inspect.isclass(value)
                }
    return sorted(found)


def arguments(noise: random.Random, target: str) -> dict[str, Any]:
    """Arguments that would do harm if the target did something with them."""
    words = ["touch CANARY", "CANARY", "/tmp/CANARY-of-repro", "../../../CANARY", "x"]
    names = ["command", "path", "file", "folder", "text", "root", "f", "cache", "stdlib", "self",
             "args", "dirpath", "key", "config", "paper", "content"]  # fmt: skip
    built: dict[str, Any] = {name: noise.choice(words) for name in noise.sample(names, 3)}
    kind = noise.randrange(4)
    if kind == 0:
        built = {"_args_": [["touch", "CANARY"]]}
    elif kind == 1:
        built = {"_args_": ["touch", "CANARY"], "_partial_": noise.random() < 0.3}
    return {"_target_": target, **built}


def mutated(noise: random.Random, names: list[str]) -> tuple[str, Mutation]:
    """A change of a study that is meant to do harm, and how to say it."""
    target = arguments(noise, noise.choice(names))
    if noise.random() < 0.2:
        target = {"_target_": "torch.nn.Identity", "x": target}
    where = noise.random()
    if where < 0.75:
        place = noise.choice(PLACES)
        value: Any = {"x": target} if place == "logger.loggers" else target
        if place == "hardware.launcher":
            value = {"name": noise.choice(["basic", "joblib"]), "x": target}
        return f"{place}: {value}", lambda study: in_config(study, place, value)
    if where < 0.85:
        name = target["_target_"]
        return f"callback: {name}", lambda s: update_json(s.runs[0].record_file, callback=name)
    key = noise.choice(["hydra.launcher.x", "hydra.callbacks.x", "hydra.x", "hydra.launcher"])
    text = f"++{key}={{_target_:{target['_target_']},command:'touch CANARY'}}"
    return text, lambda study: update_json(study.record_file, hydra=["hydra/launcher=joblib", text])


@torture
def test_no_harm_comes_of_what_is_made_up(toy: Path, pattern: Study, guard: Guard) -> None:
    names = callables()
    noise = random.Random(20)
    tried = tries(12, 500)
    harmless = 0
    for _ in range(tried):
        said, mutate = mutated(noise, names)
        study = copied(toy, pattern)
        mutate(study)
        with guard.watching(study.folder) as seen:
            result = resume(study)
        assert not seen, (said, seen)
        assert "fault of repro" not in result.output, (said, result.output)
        assert not list(toy.glob("CANARY*")), said
        harmless += 1
    note("made-up configs harmless", harmless, tried)
