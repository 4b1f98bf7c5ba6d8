"""The pages of the documentation site, laid out in build/pages; ``make docs`` builds it from them.

Pages keep their places in the checkout, so that the links between them hold as they are. Links to a
module lead to its page of the API, those to other files to a copy: no link leaves the site.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from repro.claims.outcomes import Verdict
from repro.records.papers import Paper, load_papers
from repro.records.recorded import recorded_verdicts
from repro.report.collect import recorded_pictures
from repro.report.record import project_readme

PAGES = ("*.md", "docs/*.md", "experiments/*/README.md")
ROOMS = ("methods", "toolbox", "models", "data", "claims", "training")  # what others may import
LINK = re.compile(r"(?<=\]\()([^)#\s]+)")


@dataclass(frozen=True)
class Site:
    """Where the pages come from and go to.

    Attributes:
        checkout: Folder of the project.
        pages: Folder that is written anew.
    """

    checkout: Path
    pages: Path

    def lay_out(self) -> None:
        """Writes all pages."""
        shutil.rmtree(self.pages, ignore_errors=True)
        for file in self._found(*PAGES):
            self.write(file, self.linked(file, (self.checkout / file).read_text(encoding="utf-8")))
        for file in self._found("experiments/*/results/*.png", "examples/*.py"):
            self.copy(file)
        for module in self.modules:
            self.write(api_page(module), f"# {module.removeprefix('repro.')}\n\n::: {module}\n")
        self.write(Path("api/index.md"), self.list_of_modules())
        self.write(Path("examples/index.md"), self.scripts())
        self.write(Path("gallery.md"), self.gallery())

    def write(self, page: Path, text: str) -> None:
        """Writes a page at its place below the pages."""
        file = self.pages / page
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def copy(self, file: Path) -> None:
        """Takes a file of the checkout over as it is."""
        target = self.pages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.checkout / file, target)

    def linked(self, page: Path, text: str) -> str:
        """The text of a page, with links that stay within the site."""
        up = "../" * len(page.parent.parts)

        def instead(match: re.Match[str]) -> str:
            link = match[0]
            if "://" in link or link.startswith("mailto:"):
                return link
            target = (self.checkout / page.parent / link).resolve().relative_to(self.checkout)
            return f"{up}{self._page_of(target).as_posix()}"

        return LINK.sub(instead, text)

    def _page_of(self, target: Path) -> Path:
        """What shows a file or folder of the checkout; a file that no page shows is copied."""
        module = dotted_name(target)
        if module in self.modules:
            return api_page(module)
        if (self.checkout / target).is_dir():
            return target / ("index.md" if target.name == "examples" else "README.md")
        if target.suffix != ".md":
            self.copy(target)
        return target

    @cached_property
    def modules(self) -> list[str]:
        """The public modules by their dotted names, room by room."""
        files = self._found(*(f"src/repro/{room}/**/*.py" for room in ROOMS))
        names = [dotted_name(file) for file in files]
        rooms = {f"repro.{room}" for room in ROOMS}
        return [name for name in names if name not in rooms and "._" not in name]

    def list_of_modules(self) -> str:
        """The index of the API."""
        parts = ["# API"]
        for room in ROOMS:
            parts.append(f"\n## {room}\n")
            for module in self.modules:
                if module.startswith(f"repro.{room}."):
                    page = api_page(module).relative_to("api").as_posix()
                    parts.append(f"* [{module.removeprefix(f'repro.{room}.')}]({page})")
        return "\n".join(parts) + "\n"

    def scripts(self) -> str:
        """The examples, whole."""
        parts = ["# Using a method in a loop of your own"]
        for file in self._found("examples/*.py"):
            code = (self.checkout / file).read_text(encoding="utf-8")
            parts.append(f"## {file.stem}\n\n```python\n{code}```")
        return "\n\n".join(parts) + "\n"

    def gallery(self) -> str:
        """The papers, each with its verdicts and a figure of its own study."""
        parts = ["# Papers"]
        for paper in load_papers():
            room = f"experiments/{paper.slug}/README.md"
            if not (self.checkout / room).is_file():
                continue  # a user's own paper
            parts += [f"## [{paper.title}]({room})", f"`repro run {paper.slug}`", verdicts(paper)]
            for file in recorded_pictures(paper, "mini")[:1]:
                figure = file.relative_to(self.checkout).as_posix()
                parts.append(f"[![{paper.slug}]({figure}){{ width=560 }}]({room})")
        return "\n\n".join(parts) + "\n"

    def _found(self, *patterns: str) -> list[Path]:
        """Files of the checkout, relative to it."""
        return [
            file.relative_to(self.checkout)
            for pattern in patterns
            for file in sorted(self.checkout.glob(pattern))
        ]


def dotted_name(file: Path) -> str:
    """The name by which a file or folder of a checkout's src is imported; "" elsewhere.

    >>> dotted_name(Path("src/repro/methods/dgc/__init__.py"))
    'repro.methods.dgc'
    """
    parts = file.with_suffix("").parts
    return ".".join(parts[1:]).removesuffix(".__init__") if parts[:1] == ("src",) else ""


def api_page(module: str) -> Path:
    """Where the page of a module lies.

    >>> api_page("repro.methods.dgc.selection").as_posix()
    'api/methods/dgc.selection.md'
    """
    _, room, name = module.split(".", 2)
    return Path("api", room, f"{name}.md")


def verdicts(paper: Paper) -> str:
    """How the recorded claims of a paper came out, scale by scale."""
    return "; ".join(_counted(paper)) or "Not recorded yet."


def _counted(paper: Paper) -> Iterator[str]:
    for scale, counts in recorded_verdicts(paper).items():
        said = (f"{counts[verdict]} {verdict}" for verdict in Verdict if verdict in counts)
        yield f"{scale}: {', '.join(said)}"


def main() -> int:
    """Lays out the site of this checkout."""
    checkout = project_readme().parent
    Site(checkout, checkout / "build" / "pages").lay_out()
    return 0


if __name__ == "__main__":
    sys.exit(main())
