"""What combines with what: every method tried on every paper's model and data, and on others.

``python -m repro.report.combinations`` tries them all and writes the tables between the markers of
``docs/combinations.md``. Trying means: build what ``repro run paper=… method=…`` builds, attach the
method to the model, and make one update. What cannot work says so in one line.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from repro.errors import UserError
from repro.planning import compose
from repro.planning.instantiate import instantiate
from repro.planning.plan import plan_study
from repro.records import files
from repro.records.papers import Paper, load_paper, load_papers
from repro.report import record, tables
from repro.toolbox.method import Batch, Method
from repro.training.execute import build_module
from repro.training.supervised import Supervised

EXAMPLES = 16  # of the batch that a combination is tried on
# Models on data of their kind, in supervised training without a paper: small, nothing to fetch.
MODELS = {
    "mlp on digits": ["model=mlp", "dataset=digits"],
    "mlp on diabetes": ["model=mlp", "dataset=diabetes"],
    "small_cnn on digits": ["model=small_cnn", "dataset=digits"],
    "resnet20 on digits": ["model=resnet20", "model.depth=8", "model.width=4", "dataset=digits"],
    "lstm on stdlib_text": ["model=lstm", "dataset=stdlib_text", "dataset.sequence_length=8"],
}
WORKS = "✓"


@dataclass
class Combinations:
    """The outcome of trying.

    Attributes:
        reasons: column of the table -> method -> why not, "" where it works.
        without: papers that take no method, and how they train instead.
    """

    reasons: dict[str, dict[str, str]] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)


def method_configs() -> dict[str, DictConfig]:
    """Every choice of ``conf/method``, with interpolations that wait for the config around them."""
    with compose.hydra_ready():
        return {
            name: compose.compose_config([f"+method={name}"], config_name=None).method
            for name in compose.choices("method")
        }


def own_arm(paper: Paper) -> str:
    """The first arm that keeps the paper's own module, model and data set."""
    others = ("module._target_=", "procedure=", "model=", "dataset=")
    arms = [name for name, texts in paper.arms.items() if not any(_starts(texts, others))]
    return next(iter([*arms, *paper.arms]))


def config_of(slug: str, typed: Sequence[str] = ()) -> DictConfig:
    """The config of a paper's `own_arm`, or of the arm that ``typed`` names, at scale=mini."""
    chosen = list(typed) if any(_starts(typed, ("arm=",))) else [f"arm={own_arm(load_paper(slug))}"]
    # The last run, because an arm comes after those that it starts from.
    plan = plan_study([f"paper={slug}", "seed=0", *dict.fromkeys([*chosen, *typed])])
    return plan.runs[-1].config


def places(paper: Paper) -> dict[str, list[str]]:
    """The columns of a paper, each with what is typed for it: as it is, and as `Paper.combines`."""
    own = f"`{paper.slug}`"
    typed = " ".join(f"`{text}`" for text in paper.combines)
    return {own: []} | ({f"{own} {typed}": paper.combines} if typed else {})


def try_paper(methods: Mapping[str, DictConfig], paper: Paper) -> Combinations:
    """Tries the methods on a paper: its own module, models and data."""
    found = Combinations()
    for place, typed in places(paper).items():
        config = config_of(paper.slug, typed)
        module: Any = build_module(config)
        if not isinstance(getattr(module, "method", None), Method):
            found.without[paper.slug] = f"`{type(module).__name__}`: {_first_line(module)}"
            break
        found.reasons[place] = try_methods(config, methods)
    return found


def try_model(methods: Mapping[str, DictConfig], name: str) -> dict[str, str]:
    """Tries the methods on one of `MODELS`, in plain supervised training."""
    with compose.hydra_ready():
        config = compose.compose_config(["~paper", "seed=0", *MODELS[name]])
    return try_methods(config, methods)


def try_methods(config: DictConfig, methods: Mapping[str, DictConfig]) -> dict[str, str]:
    """Why each method cannot train what ``config`` describes; "" for those that can."""
    data: Any = None
    batch: Batch = ()
    reasons = {}
    for name, method in methods.items():
        config.method = method
        try:
            with compose.explained(config):
                config.method = OmegaConf.to_container(config.method, resolve=True)
            torch.manual_seed(0)
            module = build_module(config)
            if isinstance(module, Supervised):  # the others' own tests run them
                if data is None:
                    data = instantiate(config.dataset)
                    batch = first_examples(data)
                module.data = data
                update_once(module, batch)
            reason = ""
        except UserError as error:
            reason = str(error)
        except Exception as error:  # it should have been refused: say so instead of hiding it
            reason = f"Not refused, but fails: {type(error).__name__}: {error}".partition("\n")[0]
        # Reasons that differ only in who is refused are one.
        refused = str(method._target_).rpartition(".")[2]
        reasons[name] = re.sub(rf"\b{refused}\b", "this method", reason)
    return reasons


def first_examples(data: Any) -> Batch:
    """The first training batch, cut to a few examples where it is a plain tuple of tensors."""
    batch: Batch = next(iter(data.train_dataloader()))
    return tuple(each[:EXAMPLES] for each in batch) if type(batch) is tuple else batch


def update_once(module: Supervised, batch: Batch) -> None:
    """One update, as in the plain loop that `repro.toolbox.method.Method` shows."""
    method, model = module.method, module.model
    method.attach(model)
    optimizer = method.optimizer(model, module.optimizer_factory)
    method.start_epoch(0)
    optimizer.zero_grad()
    method.backward(module.loss, batch, Tensor.backward)
    method.clip(model.parameters(), module.clip_norm)
    method.before_step(model)
    optimizer.step()
    method.after_step(model)


def to_markdown(
    papers: Mapping[str, Mapping[str, str]],
    models: Mapping[str, Mapping[str, str]],
    without: Mapping[str, str],
) -> str:
    """The tables of papers and of models, the reasons, and the papers that take no method."""
    numbers: dict[str, int] = {}
    for place in (*papers.values(), *models.values()):
        for reason in filter(None, place.values()):
            numbers.setdefault(reason, len(numbers) + 1)

    def table(title: str, places: Mapping[str, Mapping[str, str]]) -> list[str]:
        rows = [
            (f"`{method}`", *(numbers.get(place[method], WORKS) for place in places.values()))
            for method in next(iter(places.values()))
        ]
        return tables.markdown_table((title, *places), rows)

    lines = [*table("method \\ paper", papers), ""]
    lines += [*table("method \\ model", models), "", "Why not:", ""]
    lines += [f"{number}. {reason}" for reason, number in numbers.items()]
    if without:
        lines += ["", "Papers that train in a way of their own, and so take no `method`:", ""]
        lines += [f"* `{slug}`, {why}" for slug, why in without.items()]
    return "\n".join(lines) + "\n"


def document() -> Path:
    """The page that the tables stand on, in a checkout."""
    return record.project_readme().parent / "docs" / "combinations.md"


def generate() -> str:
    """Tries everything and returns the page's generated block."""
    methods = method_configs()
    found = Combinations()
    for paper in load_papers():
        tried = try_paper(methods, paper)
        found.reasons |= tried.reasons
        found.without |= tried.without
    models = {name: try_model(methods, name) for name in MODELS}
    return to_markdown(found.reasons, models, found.without)


def main() -> int:
    """Rewrites the page."""
    page = document()
    text = page.read_text(encoding="utf-8")
    files.write_text(page, record.fill(text, "combinations", generate()))
    print(f"Wrote {page}")
    return 0


def _starts(texts: Iterable[str], beginnings: tuple[str, ...]) -> Iterator[bool]:
    return (str(text).startswith(beginnings) for text in texts)


def _first_line(module: Any) -> str:
    return (inspect.getdoc(type(module)) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
