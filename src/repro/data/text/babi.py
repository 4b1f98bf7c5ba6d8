"""Question answering over short stories: the bAbI tasks, generated here or read from their files.

The generator follows the published descriptions of the tasks (Weston et al. 2015, arXiv
1502.05698): people walk between places, pick things up and put them down, and a question asks about
the state of that little world. Task numbers are bAbI's:

1 one supporting fact, 2 two supporting facts, 6 yes/no questions, 7 counting, 8 lists (here: what
somebody carries, when it is one thing or none), 11 basic coreference, 12 conjunction.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from repro.data.base.files import data_root, sha256_of
from repro.data.base.modules import SPLIT_NAMES, Split, Splits, TensorData, check_fact
from repro.errors import UserError
from repro.knobs import Count, checked

PEOPLE = ("daniel", "john", "mary", "sandra")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
NUMBERS = ("none", "one", "two", "three")
PRONOUNS = {"daniel": "he", "john": "he", "mary": "she", "sandra": "she"}
GOES = ("went to", "moved to", "journeyed to", "travelled to")


class Question(NamedTuple):
    """What was told, from old to new, what is asked, and the one-word answer."""

    story: tuple[tuple[str, ...], ...]
    question: tuple[str, ...]
    answer: str


class World:
    """Who is where and who has what, told sentence by sentence.

    Args:
        draw: source of randomness.
    """

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.place: dict[str, str] = {}  # of a person
        self.owner: dict[str, str] = {}  # of a thing
        self.left_at: dict[str, str] = {}  # place of a thing that nobody holds
        self.story: list[tuple[str, ...]] = []

    def tell(self, text: str) -> None:
        """Adds a sentence."""
        self.story.append(tuple(text.split()))

    def walk(self) -> str:
        """Somebody goes somewhere else; returns who."""
        who = self.draw.choice(PEOPLE)
        self._arrive((who,))
        self.tell(f"{who} {self.draw.choice(GOES)} the {self.place[who]}")
        return who

    def walk_together(self) -> None:
        """Two people go to one place."""
        pair = tuple(self.draw.sample(PEOPLE, 2))
        self._arrive(pair)
        self.tell(f"{pair[0]} and {pair[1]} {self.draw.choice(GOES)} the {self.place[pair[0]]}")

    def walk_twice(self) -> None:
        """Somebody goes somewhere, and then, named by a pronoun, elsewhere."""
        who = self.walk()
        self._arrive((who,))
        self.tell(f"then {PRONOUNS[who]} {self.draw.choice(GOES)} the {self.place[who]}")

    def handle(self) -> None:
        """Somebody who is somewhere takes a thing that is free, or drops one of theirs."""
        free = [
            (who, thing)
            for who in self.place
            for thing in THINGS
            if thing not in self.owner and self.left_at.get(thing) in (None, self.place[who])
        ]
        held = list(self.owner.items())
        if held and (not free or self.draw.random() < 0.4):
            thing, who = self.draw.choice(held)
            del self.owner[thing]
            self.left_at[thing] = self.place[who]
            self.tell(f"{who} dropped the {thing}")
        elif free:
            who, thing = self.draw.choice(free)
            self.owner[thing] = who
            self.left_at.pop(thing, None)
            self.tell(f"{who} took the {thing}")
        else:
            self.walk()

    def act(self) -> None:
        """A step, or something is taken or dropped."""
        if self.place and self.draw.random() < 0.5:
            self.handle()
        else:
            self.walk()

    def where_is(self, thing: str) -> str | None:
        """The place of a thing, if anybody ever touched it."""
        return self.place[self.owner[thing]] if thing in self.owner else self.left_at.get(thing)

    def _arrive(self, people: Sequence[str]) -> None:
        target = self.draw.choice([p for p in PLACES if p != self.place.get(people[0])])
        for who in people:
            self.place[who] = target


def _ask_person(world: World) -> tuple[str, str] | None:
    who = world.draw.choice(sorted(world.place))
    return f"where is {who}", world.place[who]


def _ask_thing(world: World) -> tuple[str, str] | None:
    known = [thing for thing in THINGS if world.where_is(thing)]
    if not known:
        return None
    thing = world.draw.choice(known)
    return f"where is the {thing}", str(world.where_is(thing))


def _ask_yes_no(world: World) -> tuple[str, str] | None:
    who = world.draw.choice(sorted(world.place))
    truth = world.draw.random() < 0.5  # half of the answers are yes
    others = [place for place in PLACES if place != world.place[who]]
    place = world.place[who] if truth else world.draw.choice(others)
    return f"is {who} in the {place}", "yes" if truth else "no"


def _held_by(world: World, who: str) -> list[str]:
    return [thing for thing, owner in world.owner.items() if owner == who]


def _ask_count(world: World) -> tuple[str, str] | None:
    who = world.draw.choice(sorted(world.place))
    return f"how many objects is {who} carrying", NUMBERS[len(_held_by(world, who))]


def _ask_list(world: World) -> tuple[str, str] | None:
    who = world.draw.choice(sorted(world.place))
    held = _held_by(world, who)
    return (f"what is {who} carrying", held[0] if held else "nothing") if len(held) < 2 else None


Ask = Callable[[World], "tuple[str, str] | None"]
TASKS: Mapping[int, tuple[Callable[[World], Any], Ask]] = {
    1: (World.walk, _ask_person),
    2: (World.act, _ask_thing),
    6: (World.walk, _ask_yes_no),
    7: (World.act, _ask_count),
    8: (World.act, _ask_list),
    11: (World.walk_twice, _ask_person),
    12: (World.walk_together, _ask_person),
}


def questions(task: int, sentences: int, draw: random.Random) -> Iterator[Question]:
    """Yields questions of a task for ever, each after a story of its own.

    Args:
        task: a key of `TASKS`.
        sentences: length of a story.
        draw: source of randomness.
    """
    tell, ask = TASKS[task]
    while True:
        world = World(draw)
        while len(world.story) < sentences:
            tell(world)
        asked = ask(world)
        # The last sentence of a pair may not fit; nothing else depends on it being told.
        if asked is not None and len(world.story) == sentences:
            yield Question(tuple(world.story), tuple(asked[0].split()), asked[1])


def read_questions(lines: Sequence[str]) -> list[Question]:
    r"""Reads the published text format.

    Lines are numbered; number 1 starts a new story. A question holds tabs: text, answer, numbers of
    the supporting facts. Answers of several words (``milk,apple``) count as one word.

    Args:
        lines: of one file.

    Raises:
        ValueError: a line has no number; the message names it.

    Examples:
        >>> read_questions(["1 Mary went home.", "2 Where is Mary? \thome\t1"])[0].answer
        'home'
    """
    found: list[Question] = []
    story: list[tuple[str, ...]] = []
    for line in filter(None, (line.strip() for line in lines)):
        number, _, text = line.partition(" ")
        if not number.isdigit() or not text:
            raise ValueError(f"no numbered sentence: {line[:40]!r}")
        if number == "1":
            story = []
        asked, *answer = text.split("\t")
        words = tuple(re.findall(r"[a-z0-9,'-]+", asked.lower()))
        if answer:
            found.append(Question(tuple(story), words, answer[0].strip().lower()))
        else:
            story.append(words)
    return found


def encode(
    splits: Mapping[str, Sequence[Question]], memory: int, vocabulary: Sequence[str]
) -> Splits:
    """Turns questions into word numbers.

    Args:
        splits: questions of each split.
        memory: sentences that are kept, the latest ones.
        vocabulary: words from 1 on; 0 is padding.

    Returns:
        x (N, memory + 1, words) int16 and y (N,) int64 of each split: rows are sentences from old
        to new (absent ones first), the last row is the question.
    """
    number = {word: index for index, word in enumerate(vocabulary, start=1)}
    kept = {
        split: [[*item.story[-memory:], item.question] for item in items]
        for split, items in splits.items()
    }
    width = max(len(row) for rows in kept.values() for item in rows for row in item)

    def tensors(split: str) -> Split:
        x = torch.zeros(len(kept[split]), memory + 1, width, dtype=torch.int16)
        for example, rows in zip(x, kept[split], strict=True):
            for place, row in zip(example[-len(rows) :], rows, strict=True):
                place[: len(row)] = torch.tensor([number[word] for word in row])
        return x, torch.tensor([number[item.answer] for item in splits[split]])

    return {split: tensors(split) for split in splits}


def generated_vocabulary(tasks: Sequence[int]) -> list[str]:
    """All words that the generator can use in some tasks, sorted."""
    words = {*PEOPLE, *PLACES, *(word for phrase in GOES for word in phrase.split()), "the", "is"}
    extra: dict[int, set[str]] = {
        1: {"where"},
        2: {"where", "took", "dropped", *THINGS},
        6: {"in", "yes", "no"},
        7: {"how", "many", "objects", "carrying", "took", "dropped", *NUMBERS, *THINGS},
        8: {"what", "carrying", "nothing", "took", "dropped", *THINGS},
        11: {"where", "then", "he", "she"},
        12: {"where", "and"},
    }
    return sorted(words.union(*(extra[task] for task in tasks)))


@checked
def babi_like(
    name: str,
    *,
    tasks: Sequence[int],
    input_shape: Sequence[int],
    classes: int,
    sentences: int,
    train_size: Count,
    val_size: Count,
    test_size: Count,
    data_seed: int = 0,
    **facts: Any,
) -> TensorData:
    """Generated questions of some bAbI task types, in equal parts.

    Args:
        name: of the data set.
        tasks: keys of `TASKS`.
        input_shape: (sentences + 1, words of the longest sentence), checked.
        classes: size of the vocabulary with padding, checked: answers are words.
        sentences: length of a story; even for task 11.
        train_size: questions of the training split.
        val_size: of the validation split.
        test_size: of the test split.
        data_seed: decides every story.
        facts: see `TensorData`.

    Raises:
        UserError: an unknown task, or a size that makes no story.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise UserError(
            f"Data set '{name}': tasks={list(tasks)}; generated are {', '.join(map(str, TASKS))}."
        )
    if sentences < 2 or (11 in tasks and sentences % 2):
        raise UserError(
            f"Data set '{name}': sentences={sentences}. Choose at least 2, and an even number for"
            " task 11, whose sentences come in pairs."
        )

    def load() -> Splits:
        splits: dict[str, list[Question]] = {}
        for split, size in zip(SPLIT_NAMES, (train_size, val_size, test_size), strict=True):
            # Text seeds of `random` are hashed by SHA-512: neighbouring keys are unrelated.
            sources = [
                questions(task, sentences, random.Random(f"{data_seed} {split} {task}"))
                for task in tasks
            ]
            splits[split] = [next(sources[i % len(tasks)]) for i in range(size)]
        return encode(splits, sentences, generated_vocabulary(tasks))

    check_fact(name, "classes", classes, len(generated_vocabulary(tasks)) + 1)
    return TensorData(name, load, input_shape=input_shape, **facts)


def babi_files(
    name: str,
    *,
    tasks: Sequence[int],
    input_shape: Sequence[int],
    classes: int,
    memory: int,
    language: str,
    val_size: float,
    root: str | None = None,
    info: Mapping[str, Any],
    **facts: Any,
) -> TensorData:
    """The published bAbI files, ``<root>/../babi/tasks_1-20_v1-2/<language>/qa<k>_*_train.txt``.

    Args:
        name: of the data set.
        tasks: 1 to 20; several are trained jointly.
        input_shape: (memory + 1, words of the longest sentence), checked.
        classes: size of the vocabulary with padding, checked: answers are words.
        memory: latest sentences that are kept; 50 in the memory network paper.
        language: folder of the files: ``en`` (1,000 questions a task), ``en-10k``, …
        val_size: share of the training questions set aside for validation; they are the last ones
            of each task, so that no story is on both sides but for one.
        root: folder of benchmark sets.
        info: where the files come from.
        facts: see `TensorData`.

    A `UserError` says so if files are missing or damaged, or a fact is wrong (in
    `TensorData.setup`).
    """
    folder = data_root(root).parent / "babi" / "tasks_1-20_v1-2" / language

    def file_of(task: int, split: str) -> Path:
        found = sorted(folder.glob(f"qa{task}_*_{split}.txt"))
        if not found:
            raise UserError(
                f"Data set '{name}' is missing: no {folder}/qa{task}_*_{split}.txt. Unpack"
                f" {info['source']} ({info['megabytes']:g} MB) there, or point `data.root=` at the"
                " folder beside it."
            )
        return found[0]

    def read(task: int, split: str) -> list[Question]:
        file = file_of(task, split)
        try:
            return read_questions(file.read_text(encoding="utf-8").splitlines())
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}.") from error

    def digest() -> str:
        return sha256_of([file_of(task, split) for task in tasks for split in ("train", "test")])

    def load() -> Splits:
        splits: dict[str, list[Question]] = {split: [] for split in SPLIT_NAMES}
        for task in tasks:
            known = read(task, "train")
            cut = round(len(known) * (1 - val_size))
            splits["train"] += known[:cut]
            splits["val"] += known[cut:]
            splits["test"] += read(task, "test")
        words = {
            word
            for items in splits.values()
            for item in items
            for row in (*item.story, item.question, (item.answer,))
            for word in row
        }
        check_fact(name, "classes", classes, len(words) + 1)
        return encode(splits, memory, sorted(words))

    return TensorData(name, load, input_shape=input_shape, source_digest=digest, **facts)
