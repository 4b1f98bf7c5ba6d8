"""The report as Markdown: the overview, and each paper's claims and arms."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from repro.claims.verdicts import Verdict
from repro.report import arms
from repro.report.collect import Collected


def render(collected: Collected) -> str:
    """The report's text; what comes from run directories is escaped."""
    environment = Environment(
        loader=PackageLoader("repro.report"),
        undefined=StrictUndefined,
        finalize=escape,  # for every value: Markdown has no autoescaping of its own
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.get_template("report.md.j2")
    return template.render(collected=collected, Verdict=Verdict, arms=arms)


def escape(value: Any) -> str:
    r"""A value as text that stays within its cell and its line, and means nothing to Markdown.

    Examples:
        >>> escape("a|b <i>")
        'a\\|b \\<i\\>'
    """
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*\[\]<>|&#])", r"\\\1", line)
