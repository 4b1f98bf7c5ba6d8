"""The verdicts of a study on the terminal: what came out first, what was claimed below it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repro.claims.outcomes import Verdict
from repro.claims.verdicts import CheckVerdict, ClaimVerdict
from repro.report.tables import (
    NOT_HERE,
    NOWHERE,
    answer,
    detail_of,
    effect_of,
    in_reach,
    is_divided,
    margin_reasons,
    out_of_reach,
    said_elsewhere,
    with_minus,
)

COLOURS = {"supported": "green", "not supported": "red", "inconclusive": "yellow"}


def verdict_table(
    verdicts: Iterable[ClaimVerdict],
    title: str = "Claims",
    verbose: bool = False,
    elsewhere: Mapping[str, str] = NOWHERE,
) -> Group:
    """What to print of verdicts, readable at 80 columns.

    Args:
        verdicts: of a study, or recorded.
        title: what they are.
        verbose: also every check, the paper's own numbers and why limits are what they are.
        elsewhere: other scales at which claims are judged, see `judged_at`.
    """
    return Group(*_parts(list(verdicts), title, verbose, elsewhere))


def _parts(
    verdicts: Sequence[ClaimVerdict], title: str, verbose: bool, elsewhere: Mapping[str, str]
) -> Iterator[RenderableType]:
    yield Text.assemble((title, "bold"), f": {answer(in_reach(verdicts))}")
    shown = Table.grid(padding=(0, 1))
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for claim in in_reach(verdicts):
        shown.add_row(Text(claim.id, "bold"), Group(*_lines(claim, verbose)))
    yield shown
    judged, left = said_elsewhere(verdicts, elsewhere), out_of_reach(verdicts, elsewhere)
    if judged:
        yield Text(f"– judged {judged}", "dim")
    if left and not verbose:
        yield Text(f"– {NOT_HERE}: {', '.join(claim.id for claim in left)}", "dim")
    for claim in left if verbose else ():
        yield Text(f"– {claim.id} {claim.statement} {NOT_HERE}: {claim.reason}", "dim")
    if verbose:
        for name, limit, because in margin_reasons(verdicts):
            yield Text(f"{name} {with_minus(limit)}, because {because}", "dim")


def _lines(claim: ClaimVerdict, verbose: bool) -> Iterator[RenderableType]:
    """The verdict and the effect; the statement; checks that do not agree; what is open."""
    listed = claim.checks if verbose or is_divided(claim) else ()
    marked = f"{claim.verdict.mark} {claim.verdict}", COLOURS.get(claim.verdict, "dim")
    yield Text.assemble(marked, "  ", _summary(claim.checks, bool(listed)))
    where = f" ({claim.where})" if verbose else ""
    yield Text(f"{claim.statement}{where}", "dim")
    if verbose:
        setting = f"; {claim.paper.setting}" if claim.paper.setting else ""
        yield Text(f"the paper: {claim.paper.text}{setting}", "dim")
    if listed:
        yield _checks(listed, verbose)
    reason = claim.reason if verbose or claim.verdict is not Verdict.SUPPORTED else ""
    notes = "; ".join(filter(None, (reason, claim.outlook)))
    if notes:
        yield Text(notes, "dim")
    if claim.recorded is not None:
        effect = with_minus(claim.checks[0].recorded_text) if claim.checks else ""
        yield Text(f"recorded: {claim.recorded.mark} {claim.recorded}  {effect}".rstrip(), "dim")


def _checks(checks: Sequence[CheckVerdict], verbose: bool) -> Table:
    """A line a check."""
    shown = Table.grid(padding=(0, 1))
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for check in checks:
        mark = Text(check.verdict.mark, COLOURS.get(check.verdict, "dim"))
        seeds = f", {_seeds([check])}" if verbose else ""
        detail = Text(f"  {detail_of(check)}{seeds}", "dim")
        shown.add_row(mark, Text(effect_of(check)) + detail)
    return shown


def _summary(checks: Sequence[CheckVerdict], listed: bool) -> Text:
    """The effect, or how many checks hold where each gets a line of its own."""
    if not checks:
        return Text()
    first, count = checks[0], len(checks)
    if listed and count > 1:
        held = sum(check.verdict is Verdict.SUPPORTED for check in checks)
        return Text(f"{held} of {count} checks hold, {_seeds(checks)}")
    more = "" if count == 1 else f", first of {count}"
    about = f"claimed {with_minus(first.claimed)}, {_seeds(checks)}{more}"
    return Text(effect_of(first)) + Text(f" ({about})", "dim")


def _seeds(checks: Sequence[CheckVerdict]) -> str:
    """How many seeds the effects rest on."""
    counts = sorted({check.seeds for check in checks})
    ends = dict.fromkeys((counts[0], counts[-1]))
    return f"{' to '.join(map(str, ends))} {'seed' if counts == [1] else 'seeds'}"
