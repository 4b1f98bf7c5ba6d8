"""Generated stories keep their word, real files are read, products are right."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from repro.data.text.arithmetic import PADDING, TIMES, ZERO, multiplication_problems
from repro.data.text.babi import (
    NUMBERS,
    PLACES,
    TASKS,
    generated_vocabulary,
    questions,
    read_questions,
)
from repro.errors import UserError

REAL = [
    "1 Mary moved to the bathroom.",
    "2 John went to the hallway.",
    "3 Where is Mary? \tbathroom\t1",
    "4 Daniel took the milk.",
    "5 What is Daniel carrying? \tmilk,apple\t4",
    "1 Sandra went home.",
    "2 Is Sandra home?\tyes\t1",
]


def drawn(task: int, count: int = 300) -> list:
    source = questions(task, 6, random.Random(0))
    return [next(source) for _ in range(count)]


def final_places(story) -> dict[str, str]:
    """Where people are, from the words alone."""
    places: dict[str, str] = {}
    last = None
    for sentence in story:
        who = [w for w in sentence if w in ("daniel", "john", "mary", "sandra")]
        if sentence[-1] in PLACES:
            for name in who or [last]:
                places[name] = sentence[-1]
        last = who[0] if who else last
    return places


@pytest.mark.parametrize("task", [1, 11, 12])
def test_answers_about_people_follow_from_the_story(task: int) -> None:
    for item in drawn(task):
        assert final_places(item.story)[item.question[-1]] == item.answer


def test_yes_no_answers_follow_and_are_balanced() -> None:
    items = drawn(6)
    for item in items:
        there = final_places(item.story)[item.question[1]] == item.question[-1]
        assert item.answer == ("yes" if there else "no")
    assert 100 < Counter(item.answer for item in items)["yes"] < 200


def test_answers_about_things_follow_from_the_story() -> None:
    for item in drawn(2) + drawn(7) + drawn(8):
        place: dict[str, str] = {}
        owner: dict[str, str] = {}
        for sentence in item.story:
            who, verb, thing = sentence[0], sentence[1], sentence[-1]
            if verb == "took":
                owner[thing] = who
            elif verb == "dropped":
                place[thing] = final_places(item.story[: item.story.index(sentence) + 1])[who]
                del owner[thing]
        asked = item.question
        if asked[0] == "where" and asked[-1] in owner:
            assert item.answer == final_places(item.story)[owner[asked[-1]]]
        elif asked[0] == "how":
            assert item.answer == NUMBERS[sum(o == asked[4] for o in owner.values())]
        elif asked[0] == "what":
            assert owner.get(item.answer) == (None if item.answer == "nothing" else asked[2])


@pytest.mark.parametrize("task", TASKS)
def test_the_vocabulary_covers_every_word(task: int) -> None:
    known = set(generated_vocabulary([task]))
    for item in drawn(task, 100):
        assert {item.answer, *item.question, *(w for row in item.story for w in row)} <= known


def test_a_generated_set_is_a_pure_function_of_its_seed(dataset) -> None:
    first, second = dataset("babi_like"), dataset("babi_like")
    assert first.fingerprint() == second.fingerprint()
    assert dataset("babi_like", data_seed=1).fingerprint() != first.fingerprint()
    x, _ = first.splits["train"]
    assert x.shape == (1000, 11, 5)


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("babi_like", {"tasks": [3]}, "generated are"),
        ("babi_like", {"tasks": [2]}, "classes=19, the data have classes=24"),
        ("babi_like", {"sentences": 1}, "at least 2"),
        ("babi_like", {"tasks": [11], "classes": 22, "sentences": 7}, "even number"),
        ("binary_multiplication", {"max_bits": 21}, "max_bits <= 20"),
        ("binary_multiplication", {"max_bits": 2}, r"input_shape=\[7\], the data have"),
    ],
)
def test_bad_knobs_are_one_line(dataset, name: str, knobs, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataset(name, **knobs).setup()


def test_the_published_format_is_read() -> None:
    items = read_questions(REAL)
    assert [item.answer for item in items] == ["bathroom", "milk,apple", "yes"]
    assert [len(item.story) for item in items] == [2, 3, 1]
    assert items[0].question == ("where", "is", "mary")
    with pytest.raises(ValueError, match="no numbered sentence"):
        read_questions(["Mary went home."])


def babi_files(folder: Path, copies: int = 4) -> Path:
    place = folder / "babi" / "tasks_1-20_v1-2" / "en"
    place.mkdir(parents=True)
    for split in ("train", "test"):
        (place / f"qa1_single_{split}.txt").write_text("\n".join(REAL * copies))
    return folder / "hf"


def test_published_files_become_tensors(dataset, tmp_path: Path) -> None:
    knobs = {"tasks": [1], "memory": 2, "input_shape": [3, 5], "classes": 20, "val_size": 0.25}
    root = babi_files(tmp_path)
    data = dataset("babi", root, **knobs)
    data.setup()
    x, y = data.splits["train"]
    assert x.shape == (9, 3, 5)
    assert len(data.splits["val"][1]) == 3
    assert x[2, 0].count_nonzero() == 0  # the story of the third question has one sentence
    assert y.dtype == torch.int64
    with pytest.raises(UserError, match=r"missing: no .*qa2_"):
        dataset("babi", root, **knobs | {"tasks": [2]}).setup()
    with pytest.raises(UserError, match="the data have classes=20"):
        dataset("babi", root, **knobs | {"classes": 30}).setup()


def test_products_are_products() -> None:
    bits = torch.arange(200) % 20 + 1
    x, y = multiplication_problems(bits, 41, torch.Generator().manual_seed(0))
    for n, row, product in zip(bits.tolist(), x.tolist(), y.tolist(), strict=True):
        number = [sum((d - ZERO) << i for i, d in enumerate(row[s : s + n])) for s in (0, n + 1)]
        assert row[n] == TIMES
        assert sum((d - ZERO) << i for i, d in enumerate(product[: 2 * n])) == number[0] * number[1]
        assert set(row[2 * n + 1 :]) | set(product[2 * n :]) <= {PADDING}
