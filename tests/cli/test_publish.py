"""`repro publish`: bundles in folders and on a hub, and `repro verify BUNDLE`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from repro.cli.main import cli

from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.study import Study
from repro.report import publish as publishing

TYPED = ["paper=toy", "scale=smoke", "arm=[sgd,tuned]", "training.epochs=1", "n_jobs=1"]


def repro(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.fixture
def study(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A finished study that nobody had to run."""
    monkeypatch.setattr(publishing, "draw_study", lambda _: [])
    made = create_study(plan_study(TYPED), toy / "outputs")
    for run, accuracy in zip(made.runs, (0.90, 0.91, 0.92, 0.91), strict=True):
        run.update(status="finished", seconds=1.0)
        run.summary_file.write_text(json.dumps({"test/accuracy": accuracy}))
        run.last_checkpoint.parent.mkdir(parents=True)
        run.last_checkpoint.write_bytes(b"weights")
        (run.folder / "log.txt").write_text("of this machine")
    return made


def test_a_bundle_is_a_study_that_stands_by_itself(study: Study, toy: Path) -> None:
    result = repro("publish", study.folder, "--to", toy / "bundle")
    assert result.exit_code == 0, result.output
    bundle = Study.open(toy / "bundle")
    assert [run.summary() for run in bundle.runs] == [run.summary() for run in study.runs]
    names = {file.name for file in bundle.folder.rglob("*") if file.is_file()}
    assert names == {
        *("study.json", "results.json", "README.md"),
        *("run.json", "config.yaml", "overrides.yaml", "summary.json"),
    }
    card = (bundle.folder / "README.md").read_text()
    _, facts, text = card.split("---\n", 2)
    assert yaml.safe_load(facts)["tags"] == ["repro", "toy", "smoke"]
    assert "4 finished" in text
    assert repro("report", "--outputs", bundle.folder).exit_code == 0


def test_checkpoints_come_along_on_wish(study: Study, toy: Path) -> None:
    assert repro("publish", study.folder, "--to", toy / "b", "--checkpoints").exit_code == 0
    assert {run.last_checkpoint.read_bytes() for run in Study.open(toy / "b").runs} == {b"weights"}


def test_verdicts_of_a_bundle_must_follow_from_its_runs(study: Study, toy: Path) -> None:
    repro("publish", study.folder, "--to", toy / "bundle")
    sound = repro("verify", toy / "bundle", "--json")
    assert sound.exit_code == 0, sound.output
    (claim,) = json.loads(sound.stdout)["what it states"]
    assert claim["outcome"] == "agrees"

    results = toy / "bundle" / "results.json"
    content = json.loads(results.read_text())
    was = content["claims"][0]["verdict"]
    content["claims"][0]["verdict"] = "supported" if was != "supported" else "not supported"
    results.write_text(json.dumps(content))
    forged = repro("verify", toy / "bundle")
    assert forged.exit_code == 1
    assert "differs" in forged.output
    assert f"The runs of {toy / 'bundle'} beside what it states\n" in forged.output


def test_what_cannot_be_bundled_is_said_in_a_line(study: Study, toy: Path) -> None:
    (toy / "full").mkdir()
    (toy / "full" / "mine").touch()
    result = repro("publish", study.folder, "--to", toy / "full")
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "is not empty" in result.output
    result = repro("publish", study.folder, "--to", toy / "full" / "mine")
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "is a file" in result.output
    assert "is no bundle" in repro("verify", study.folder).output
    study.runs[0].update(status="interrupted")
    result = repro("publish", study.folder, "--to", toy / "new")
    assert result.exit_code == 2
    assert "is not finished" in result.output
    assert not (toy / "new").exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as an upload needs; what was committed lies in `committed`."""

    committed: dict[str, bytes]
    refuses = False

    def do_GET(self) -> None:
        self.answer({"id": "me/toy", "sha": "0" * 40, "siblings": [], "private": False})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.refuses:
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path.endswith("/create"):
            self.answer({"url": f"{self.root}/me/toy", "name": "me/toy", "id": "me/toy"})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self.answer({"files": [{"path": path, **regular} for path in paths]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.committed[line["value"]["path"]] = line["value"]["content"]
            self.answer({"commitUrl": f"{self.root}/me/toy/commit/1", "commitOid": "1" * 40})
        else:
            self.answer({})

    @property
    def root(self) -> str:
        return f"http://{self.headers['Host']}"

    def answer(self, content: dict[str, Any], code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine."""
    from huggingface_hub import constants

    kind = type("Hub", (Hub,), {"committed": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    yield kind
    server.shutdown()
    server.server_close()


def test_a_bundle_goes_to_a_hub(study: Study, hub: type[Hub]) -> None:
    result = repro("publish", study.folder, "--to", "hub:me/toy")
    assert result.exit_code == 0, result.output
    assert "/me/toy/commit/1" in result.output
    assert {"README.md", "results.json", "study.json"} <= hub.committed.keys()
    assert sum(path.endswith("summary.json") for path in hub.committed) == 4


def test_a_hub_that_refuses_is_said_in_a_line(study: Study, hub: type[Hub]) -> None:
    hub.refuses = True
    result = repro("publish", study.folder, "--to", "hub:me/toy")
    assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
    assert "The hub did not take me/toy" in result.output
