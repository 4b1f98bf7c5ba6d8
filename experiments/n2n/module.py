"""A teacher, a search for a smaller student of it, and what that student is worth in the end."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.knobs import Natural, Share, checked
from repro.methods.n2n import (
    DESIGNS,
    Architecture,
    Budget,
    Judge,
    Recipe,
    Reinforce,
    RemovalPolicy,
    Rollout,
    Search,
    accuracies,
    count_parameters,
    dump,
    fresh,
    load,
    of_size,
    prune_to_size,
    read,
    train,
)
from repro.methods.n2n.students import Batch
from repro.toolbox.method import Method
from repro.training.procedure import Procedure, model_weights

Design = Literal[
    "whole", "first_layer", "half_depth", "half_width", "same_size", "common_factor", "magnitude"
]
FINALS = ("accuracy", "plain_accuracy")  # imitating the teacher, and by labels alone
OTHER_ORDER = 10_000  # epochs between the orders in which repeated trainings see the data
DROP = 0.01  # of accuracy that search/compression_at_drop allows


class Compression(Procedure):
    """Trains a teacher, looks for a smaller student, and trains what it found from scratch.

    The teacher's training, each update of the search and each final training are a step.

    Args:
        model: the teacher.
        method: a search, or the plain method where a design is given.
        judge: makes the `Judge` of students: their training, and limits.
        teacher: how the teacher is trained, and the student that was selected in the end.
        budget: of the search.
        repeats: final trainings, each imitating the teacher and by labels alone.
        design: a student made by hand or rule, instead of a search. ``same_size`` is the teacher
            with all widths times a factor, ``common_factor`` likewise what the parent began with,
            ``magnitude`` the trained teacher without its units of least norm: all of them of the
            size of the parent's student.
        take: from the arm that this one starts from: its ``student`` (with its teacher), its
            ``policy``, or only the mean ``keep_rate`` of that.
        judged_on: the split that rewards are measured on; released: test.
        reference: ``teacher``, or, as released, the ``parent``: the student of stage 1 is the
            teacher of stage 2, for sizes, accuracies and logits.
        teacher_accuracy: in rewards; None: as measured. Older scripts type one in.
        seed: of students, their data's order, and proposals.

    Raises:
        UserError: neither a search nor a design is given, or both are.
    """

    METRICS: ClassVar = {
        "train/reward": "mean reward of the update's proposals",
        "train/best": "largest reward so far",
        "train/entropy": "of the policy, nat for an action that changes something",
        "search/reward": "of the selected student",
        "search/mean_reward": "over all updates",
        "search/late_reward": "mean over the last quarter of the updates",
        "search/updates": "updates that were made",
        "search/rollouts": "students that were proposed",
        "search/trainings": "students that were trained to be rewarded",
        "search/student_epochs": "passes over the data in these trainings",
        "search/invalid_share": "share of proposals that are no smaller or cannot be built",
        "search/within_share": "share of the last third of proposals within the limit",
        "search/entropy": "the last train/entropy",
        "search/keep_rate": "mean probability of keeping a layer at the end (stage 1)",
        "search/compression_at_drop": "largest compression within DROP of the teacher's accuracy",
        "test/accuracy": "of the selected student, trained to imitate the teacher, mean of repeats",
        "test/plain_accuracy": "likewise, trained by labels alone",
        "test/parameters": "of the selected student",
        "test/compression": "parameters of the original teacher over the student's",
        "test/teacher_accuracy": "of the teacher",
    }
    KEPT: ClassVar = (
        *("is_taught", "is_searched", "update", "teacher_shares", "best", "known", "rollouts"),
        *("entropy", "finals", "weights"),
    )

    @checked
    def __init__(
        self,
        model: nn.Module,
        method: Any,
        judge: partial[Judge],
        teacher: Recipe,
        budget: Budget,
        repeats: Natural = 3,
        design: Design | None = None,
        take: Literal["student", "policy", "keep_rate"] = "student",
        judged_on: Literal["val", "test"] = "val",
        reference: Literal["teacher", "parent"] = "teacher",
        teacher_accuracy: Share | None = None,
        seed: Natural = 0,
    ) -> None:
        super().__init__()
        searches = isinstance(method, Search)
        if searches == (design is not None) or not isinstance(method, Search | Method):
            raise UserError(
                "n2n takes method=n2n/removal, n2n/shrinkage or n2n/hill_climbing, or with "
                f"method=none a module.design; not {type(method).__name__} and {design}."
            )
        self.model = model
        self.search: Search | None = method if isinstance(method, Search) else None
        self.whole = read(model)
        self.make_judge, self.teacher, self.budget = judge, teacher, budget
        self.repeats, self.design, self.take, self.seed = repeats, design, take, seed
        self.judged_on, self.reference = judged_on, reference
        self.teacher_accuracy = teacher_accuracy
        self.parent: dict[str, Any] = {}
        self.is_taught, self.is_searched, self.update, self.entropy = False, False, 0, 0.0
        self.teacher_shares = {"val": 0.0, "test": 0.0}
        self.best: dict[str, Any] = {}
        self.known: dict[str, float] = {}
        self.rollouts: list[dict[str, Any]] = []
        self.finals: list[float] = []
        self.weights: dict[str, Tensor] = {}

    # -- Where it starts ---------------------------------------------------------------------------

    @override
    def start_from(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the parent's student and teacher, or its policy, or that one's keep rate.

        Raises:
            UserError: there is no policy on one of the sides.
        """
        if self.take == "student":
            self.parent = checkpoint["kept"]
            self.model.load_state_dict(model_weights(checkpoint))
            return
        prefix = "search.policy."
        policy = {
            name.removeprefix(prefix): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
        if not policy or not isinstance(self.search, Reinforce):
            raise UserError(f"module.take={self.take} takes over a policy, and one side has none.")
        self.search.policy.load_state_dict(policy)
        if self.take == "keep_rate":
            removal = self.search.policy
            assert isinstance(removal, RemovalPolicy)
            removal.keep_all_alike(removal.keep_rate(self.origin))

    @property
    def origin(self) -> Architecture:
        """What the search starts from: the teacher, or the student of stage 1."""
        return load(self.parent["best"]["student"]) if self.parent else self.whole

    def on_train_start(self) -> None:
        """Checks that there are enough steps.

        Raises:
            UserError: there are not.
        """
        super().on_train_start()
        updates = 1 if self.search is None else self.budget.updates
        needed = 1 + updates + 2 * self.repeats
        if (self.trainer.max_epochs or 0) * int(self.trainer.num_training_batches) < needed:
            raise UserError(
                f"n2n: the teacher, {updates} updates and the final trainings take {needed} steps:"
                f" set training.epochs={needed} or more."
            )

    # -- Steps -------------------------------------------------------------------------------------

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """The next piece of work; the batch is not used."""
        if not self.is_taught:
            self._teach()
        elif not self.is_searched:
            self._look_on()
        else:
            self._train_what_was_found()
        self.tick()
        if self.is_searched and len(self.finals) == 2 * self.repeats:
            self.trainer.should_stop = True
        return {"loss": torch.zeros(())}

    def _teach(self) -> None:
        """Trains the teacher, unless it is the parent's, and measures who is imitated.

        Raises:
            UserError: nothing can be relative to its accuracy.
        """
        if not self.parent:
            train([self.model], self._epochs(), self.teacher)
        guide = self._guide()
        self.teacher_shares = {
            split: accuracies([guide], self._batches(split))[0] for split in ("val", "test")
        }
        if not (self.teacher_accuracy or self.teacher_shares[self.judged_on]):
            raise UserError("n2n: the teacher is never right: raise module.teacher.epochs.")
        self.is_taught = True

    def _look_on(self) -> None:
        """One update of the search; a design is looked at once."""
        judge, origin = self._judge(), self.origin
        if self.search is None:
            proposals = [self._designed()]
            self._note(proposals, judge.rate(proposals))
            self.is_searched = True
            return
        generator = generator_for(self.seed, 1, self.update)
        actions = self.search.propose(origin, self.budget.rollouts, generator)
        proposals = [self.search.edit.apply(origin, each.cpu()) for each in actions]
        rollouts = judge.rate(proposals, judge.size(origin) or 0, self.update)
        self._note(proposals, rollouts)
        rewards = torch.tensor([each.reward for each in rollouts])
        measured = self.search.learn(origin, actions, rewards)
        self.update += 1
        if "entropy" in measured:
            self.entropy = measured["entropy"]
            self.log("train/entropy", self.entropy, on_step=False, on_epoch=True)
        self.is_searched = self.budget.is_spent(self.update, len(judge.known), **measured)

    def _note(self, proposals: Sequence[Architecture], rollouts: Sequence[Rollout]) -> None:
        """Keeps what came of proposals, and the best of all."""
        for proposal, rollout in zip(proposals, rollouts, strict=True):
            if not self.best or rollout.reward > self.best["reward"]:
                self.best = {"reward": rollout.reward, "student": dump(proposal)}
        self.rollouts = [*self.rollouts, *(vars(each) for each in rollouts)]
        found = {"train/reward": _mean_reward(rollouts), "train/best": self.best["reward"]}
        self.log_dict(found, on_step=False, on_epoch=True)  # an epoch is one update

    def _train_what_was_found(self) -> None:
        """Trains the selected student by the teacher's recipe: a repetition of one loss."""
        judge = self._judge()
        number, repeat = divmod(len(self.finals), self.repeats)
        recipe = replace(self.teacher, loss="labels")
        if FINALS[number] == "accuracy":
            recipe = replace(recipe, loss=judge.recipe.loss, weight=judge.recipe.weight)
        student = judge.student(load(self.best["student"]), repeat + 1)
        if self.design == "magnitude":
            student = self._pruned()
        train([student], self._epochs((repeat + 1) * OTHER_ORDER), recipe, judge.guide)
        self.finals = [*self.finals, *accuracies([student], self._batches("test"))]
        if not self.weights:
            self.weights = {name: value.cpu() for name, value in student.state_dict().items()}

    # -- Students ----------------------------------------------------------------------------------

    def _judge(self) -> Judge:
        parent = self.reference == "parent"
        return self.make_judge(
            guide=self._guide(),
            accuracy=self.teacher_accuracy or self.teacher_shares[self.judged_on],
            input_shape=self.data.input_shape,
            epochs=self._epochs(),
            held_out=lambda: self._batches(self.judged_on),
            parameters=None if parent else sum(each.numel() for each in self.model.parameters()),
            known=self.known,
        )

    def _guide(self) -> nn.Module:
        """The network that is imitated: the teacher, or as released the parent's student."""
        if self.reference == "teacher" or not self.parent:
            return self.model
        guide = fresh(self.origin, self.data.input_shape, self.seed)
        guide.load_state_dict(self.parent["weights"])
        return guide.to(self.device)

    def _designed(self) -> Architecture:
        """The student of a design.

        Raises:
            UserError: it depends on a parent's, and there is none.
        """
        if self.design in DESIGNS:
            return DESIGNS[self.design](self.whole)
        if not self.parent:
            raise UserError(f"module.design={self.design} takes the size of a student: say from=.")
        if self.design == "magnitude":
            return read(self._pruned())
        began = load(self.parent["origin"]) if self.design == "common_factor" else self.whole
        return of_size(began, self.data.input_shape, self._parents_size())

    def _pruned(self) -> nn.Module:
        return prune_to_size(self.model, self.data.input_shape, self._parents_size())

    def _parents_size(self) -> int:
        return count_parameters(self.origin, self.data.input_shape)

    # -- Data --------------------------------------------------------------------------------------

    def _epochs(self, first: int = 0) -> Callable[[int], Iterator[Batch]]:
        """The training batches of an epoch by its number."""
        loader = self.data.train_dataloader()
        return lambda epoch: self._here(loader.batches(first + epoch))

    def _batches(self, split: str) -> Iterator[Batch]:
        return self._here(getattr(self.data, f"{split}_dataloader")().batches(0))

    def _here(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for x, y in batches:
            yield x.to(self.device), y.to(self.device)

    # -- State and results -------------------------------------------------------------------------

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the search remembers, and where it started."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["kept"]["origin"] = dump(self.origin)
        checkpoint["search"] = {} if self.search is None else self.search.memory()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Gives it back to the search."""
        super().on_load_checkpoint(checkpoint)
        if self.search is not None:
            self.search.remember(checkpoint["search"])

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """There is nothing to validate."""

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """There is nothing to test but what was found."""

    def on_test_epoch_end(self) -> None:
        """Logs what was found."""
        self.log_dict(self.summary())

    def summary(self) -> dict[str, float]:
        """All results that there are."""
        if not self.best:
            return {}
        selected = load(self.best["student"])
        size = count_parameters(selected, self.data.input_shape)
        found = {
            "search/reward": self.best["reward"],
            "search/trainings": float(len(self.known)),
            "search/student_epochs": float(
                len(self.known) * self.make_judge.keywords["recipe"].epochs
            ),
            "test/parameters": float(size),
            "test/compression": sum(each.numel() for each in self.model.parameters()) / size,
            "test/teacher_accuracy": self.teacher_shares["test"],
        }
        for number, name in enumerate(FINALS):
            some = self.finals[number * self.repeats : (number + 1) * self.repeats]
            if some:
                found[f"test/{name}"] = statistics.fmean(some)
        if self.search is None:
            return found
        rollouts = [Rollout(**each) for each in self.rollouts]
        good = self.teacher_shares[self.judged_on] - DROP
        sizes = [each.parameters for each in rollouts if each.valid and each.accuracy >= good]
        whole = sum(each.numel() for each in self.model.parameters())
        found |= {
            "search/updates": float(self.update),
            "search/rollouts": float(len(rollouts)),
            "search/mean_reward": _mean_reward(rollouts),
            "search/late_reward": _mean_reward(_last(rollouts, 1 / 4)),
            "search/invalid_share": statistics.fmean(not each.valid for each in rollouts),
            "search/within_share": statistics.fmean(each.within for each in _last(rollouts, 1 / 3)),
            "search/compression_at_drop": whole / min(sizes, default=whole),
        }
        if isinstance(self.search, Reinforce):
            found["search/entropy"] = self.entropy
            if isinstance(self.search.policy, RemovalPolicy):
                found["search/keep_rate"] = self.search.policy.keep_rate(self.origin)
        return found


def _last(rollouts: Sequence[Rollout], share: float) -> list[Rollout]:
    """Those of the last share of the updates, and of one at least."""
    updates = rollouts[-1].update + 1
    return [each for each in rollouts if each.update >= updates - max(1, int(share * updates))]


def _mean_reward(rollouts: Sequence[Rollout]) -> float:
    return statistics.fmean(each.reward for each in rollouts)
