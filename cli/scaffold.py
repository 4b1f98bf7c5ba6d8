"""`repro new`: a paper's config, room and test, written from templates so that they run at once."""

from __future__ import annotations

import importlib.util
import json
import keyword
import re
from dataclasses import dataclass
from pathlib import Path

import click
import repro.conf
import repro.experiments
from jinja2 import Environment, PackageLoader, StrictUndefined

from repro.errors import UserError
from repro.records import files
from repro.records.papers import load_paper, paper_files
from repro.report.record import update_readmes

SLUG = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Place:
    """Where the files of a new paper go."""

    root: Path
    slug: str
    in_checkout: bool

    @property
    def templates(self) -> dict[Path, str]:
        """File to write -> template."""
        room = self.root / "experiments" / self.slug if self.in_checkout else self.root / self.slug
        found = {
            self.root / "conf" / "paper" / f"{self.slug}.yaml": "paper.yaml.j2",
            room / "__init__.py": "init.py.j2",
            room / "claims.yaml": "claims.yaml.j2",
            room / "README.md": "README.md.j2",
        }
        if not self.in_checkout:  # there the tests of all papers hold for this one
            found[self.root / "tests" / f"test_{self.slug}.py"] = "test.py.j2"
        return found

    @property
    def option(self) -> str:
        """What every command about the paper needs."""
        return "" if self.in_checkout else " --config-dir conf"


def create(slug: str, title: str, link: str, folder: Path) -> None:
    """Writes the files of a new paper and says what to do next.

    Args:
        slug: its name, a Python identifier in lower case.
        title: the paper's title.
        link: where it is.
        folder: where the user stands: the checkout, or any other folder.

    A `UserError` says so if the slug is not fit, or taken, or a file is already there.
    """
    checkout = _checkout()
    in_checkout = checkout is not None and folder.resolve().is_relative_to(checkout)
    place = Place(checkout if in_checkout and checkout else folder, slug, in_checkout)
    _check_slug(slug, place)
    environment = Environment(
        loader=PackageLoader("repro.cli"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)
    words = {"slug": slug, "title": " ".join(title.split()), "link": link}
    for path, template in place.templates.items():
        text = environment.get_template(template).render(
            **words, in_checkout=in_checkout, option=place.option
        )
        files.make_folder(path.parent)
        files.write_text(path, text)
        click.echo(f"written: {path.relative_to(place.root)}")
    if in_checkout:
        update_readmes(load_paper(slug))  # the project's README names all papers
    click.echo(f"\nIt runs already:  repro run paper={slug} scale=smoke{place.option}")
    tests = f"-k {slug} tests/experiments/test_rooms.py" if in_checkout else f"tests/test_{slug}.py"
    click.echo(f"So does its test: pytest {tests}")
    help_ = "CONTRIBUTING.md says what a paper needs" if in_checkout else f"examples: {_papers()}"
    click.echo(f"Next: fill in what says TODO; {help_}.")


def _papers() -> Path:
    """Where the configs of the papers are that come with the command."""
    return Path(repro.conf.__path__[0]) / "paper"


def _checkout() -> Path | None:
    """The project's own folder, if this is not an installed copy."""
    root = Path(repro.experiments.__path__[0]).resolve().parent
    return root if (root / "pyproject.toml").is_file() and (root / "conf").is_dir() else None


def _check_slug(slug: str, place: Place) -> None:
    if not SLUG.fullmatch(slug) or keyword.iskeyword(slug):
        fit = re.sub(r"\W+", "_", slug.lower()).strip("_")
        hint = f" Perhaps '{fit}'?" if SLUG.fullmatch(fit) and not keyword.iskeyword(fit) else ""
        raise UserError(
            f"'{slug}' cannot name a paper: use small letters, digits and _, a letter first.{hint}"
        )
    if slug in paper_files():
        raise UserError(f"There is already a paper '{slug}'. Look at it: repro show {slug}")
    taken = [path for path in place.templates if path.exists()]
    if taken:
        raise UserError(f"{taken[0]} exists already; choose another name or move it away.")
    if not place.in_checkout and importlib.util.find_spec(slug) is not None:
        raise UserError(f"'{slug}' is the name of an installed Python module; choose another.")
