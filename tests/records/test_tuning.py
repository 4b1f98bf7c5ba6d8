"""What arms were tuned over, as rooms keep it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from repro.errors import UserError
from repro.records.papers import Paper, load_papers
from repro.records.recorded import recorded_study
from repro.records.tuning import Try, Tuning, read_tuning

CONTENT: dict[str, Any] = {
    "judged": "val/loss; less is better",
    "seeds": [100, 101],
    "note": "tried once",
    "grids": [
        {
            "name": "sgd",
            "tries": [
                {"settings": {"lr": 0.1}, "values": {"100": 1.0, "101": 4.0}},
                {"settings": {"lr": 1.0}, "values": {"100": 1.0, "101": "diverged"}},
                {"settings": {"lr": 0.01, "widths": [16, 32]}, "mean": 0.5, "seeds": 3},
                {"settings": {"lr": 0.001}, "also": {"dead": {"100": 0.2}}, "chosen": True},
            ],
        }
    ],
}


def written(folder: Path, content: Any) -> Path:
    file = folder / "tuning.json"
    file.write_text(json.dumps(content))
    return file


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    tuning = read_tuning(written(tmp_path, CONTENT))
    assert tuning.content() == CONTENT
    (sgd,) = tuning.grids
    assert sgd.chosen is sgd.tries[3]


@pytest.mark.parametrize(("average", "mean"), [("arithmetic", 2.5), ("geometric", 2.0)])
def test_a_mean_is_that_of_numbers_alone(average: str, mean: float) -> None:
    tuning = Tuning.model_validate({**CONTENT, "average": average})
    tries = tuning.grids[0].tries
    assert [tuning.mean(tried) for tried in tries] == [pytest.approx(mean), None, 0.5, None]


def test_how_many_seeds_a_try_had() -> None:
    tuning = Tuning.model_validate(CONTENT)
    assert [tuning.seed_count(tried) for tried in tuning.grids[0].tries] == [2, 2, 3, 0]
    assert tuning.seed_count(Try(settings={}, mean=1.0)) == 2
    assert tuning.seed_count(Try(settings={}, mean=1.0, seeds=[7])) == 1


def of_one(**changes: Any) -> dict[str, Any]:
    return {"judged": "x", "grids": [{"name": "sgd", "tries": [{"settings": {}, **changes}]}]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"grids": []}, "judged: Field required"),
        ({"judged": "x", "grids": []}, "without grids, a note has to say why"),
        ({"judged": "x", "grids": [{"name": "sgd", "tries": []}]}, "there are no tries"),
        ({**CONTENT, "grids": CONTENT["grids"] * 2}, "there are two grids 'sgd'"),
        (of_one(value={"100": 1}), "grids.0.tries.0.value: Extra inputs are not permitted"),
        (of_one(values={"first": 1}), "grids.0.tries.0.values.first"),
        ({**of_one(values={"100": 0}), "average": "geometric"}, "grid 'sgd': "),
        (of_one(values={"100": 1}, mean=1.0), "neither a mean nor seeds"),
        (of_one(values={"100": 1}, seeds=[100]), "neither a mean nor seeds"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    content: Any, complaint: str, tmp_path: Path
) -> None:
    file = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_tuning(file)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(str(file))
    assert complaint in line


def test_one_setting_is_chosen(tmp_path: Path) -> None:
    tries = [{"settings": {"lr": lr}, "chosen": True} for lr in (0.1, 0.2)]
    content = {"judged": "x", "grids": [{"name": "sgd", "tries": tries}]}
    with pytest.raises(UserError, match="more than one try is chosen"):
        read_tuning(written(tmp_path, content))


@pytest.mark.parametrize(
    "paper", [each for each in load_papers() if each.recorded_scales], ids=lambda each: each.slug
)
def test_a_room_says_over_what_it_was_tuned_or_why_it_was_not(paper: Paper) -> None:
    tuning = read_tuning(paper.tuning_file)
    assert tuning.content() == json.loads(paper.tuning_file.read_text(encoding="utf-8"))
    assert tuning.note or any(grid.chosen for grid in tuning.grids)
    reported = {
        run["seed"]
        for scale in paper.recorded_scales
        for run in recorded_study(paper, scale)["runs"]
    }
    assert not reported & set(tuning.seeds), "tuned on seeds that are reported"
