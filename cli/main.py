"""The `repro` command: its verbs, each a few lines that call the engine."""

from __future__ import annotations

import codecs
import gc
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click

from repro.errors import INTERRUPTED, ReproError, did_you_mean

from . import OUTPUT_LOST, complete, standing

SHOWN_STUDIES = 30  # by `status`, if not told otherwise
ASK_ABOVE_MB = 2000  # a larger download is not started unless somebody says so
SLUG = re.compile(r"[a-z]\w*")
SIMILAR = "repro.similar"  # the name of an error handler of codecs
ASCII = {
    "−": "-",
    "–": "-",
    "≥": ">=",
    "≤": "<=",
    "±": "+-",
    "×": "x",
    "✓": "+",
    "✗": "x",
    "∞": "inf",
    "†": "*",
}


class Verbs(click.Group):
    """A command group that suggests the verb that was probably meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds a verb, or fails with a suggestion.

        Raises:
            UsageError: there is no such verb.
        """
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            hint = did_you_mean(args[0], self.commands) or " See `repro --help`."
            raise click.UsageError(f"There is no command '{args[0]}'.{hint}", ctx)
        return super().resolve_command(ctx, args)


def people_readable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Ends a verb with a message and an exit code instead of a traceback."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            function(*args, **kwargs)
            _end(0)
        except SystemExit as ended:
            _end(ended.code)
        except ReproError as error:
            if _debug():
                raise
            _say_error(str(error))
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            _say_error("Stopped.")
            sys.exit(INTERRUPTED)
        except Exception as error:
            if _debug():
                raise
            for line in _explained(error):
                _say_error(line)
            sys.exit(1)

    return wrapper


def _end(code: Any) -> None:
    """Exits with a code, or with 1 if all went well but for what could not be printed."""
    lost = click.get_current_context().find_root().meta.get(OUTPUT_LOST, False)
    if code or lost:
        sys.exit(code or 1)


def _debug() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().params.get("debug"))


def _explained(error: Exception) -> list[str]:
    """What to say of an error that nobody foresaw: the machine's, or else a fault of ours."""
    words = ("failed to map segment", "cannot allocate memory", "can't start new thread")
    if isinstance(error, MemoryError) or any(word in str(error).lower() for word in words):
        return [f"There is not enough memory: {error}"]
    if isinstance(error, PermissionError) and error.filename is not None:
        return [f"{error.filename}: {error.strerror}."]
    return [
        f"{type(error).__name__}: {error}",
        "This is a fault of repro; --debug shows where it happened.",
    ]


def _say_error(text: str) -> None:
    with suppress(OSError):  # a terminal that is gone
        click.echo(f"repro: {text}", err=True)


def _use_config_dir(
    _context: click.Context, _parameter: click.Parameter, folder: Path | None
) -> None:
    if folder is not None:
        standing.use_config_dir(folder)


def _name_paper(
    _context: click.Context, _parameter: click.Parameter, overrides: tuple[str, ...]
) -> tuple[str, ...]:
    """`repro run dgc` means `repro run paper=dgc`, and `repro run dcg` is told so."""
    return tuple(f"paper={text}" if SLUG.fullmatch(text) else text for text in overrides)


overrides_argument = click.argument(
    "overrides", nargs=-1, callback=_name_paper, shell_complete=complete.overrides
)
config_dir_option = click.option(
    "--config-dir",
    is_eager=True,  # before papers are looked for
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    callback=_use_config_dir,
    expose_value=False,
    help="A folder with your own papers and configs, laid out like conf/.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Also every check of a claim, and the paper's numbers."
)
outputs_option = click.option(
    "--outputs",
    default="outputs",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder that holds the studies.",
)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="gradient-repro")
def cli(debug: bool) -> None:
    """Reproduce papers about gradients, and see which of their claims hold.

    \b
    repro list                      the papers, and which claims hold
    repro show dgc                  verdicts, claims, arms and knobs of one
    repro run dgc                   train the method and its baselines, judge
    repro run dgc arm=dgc seed=3    one run
    """  # noqa: D301


@cli.command()
@overrides_argument
@click.option("-m", "--multirun", is_flag=True, help="Run the grid that a=1,2 b=x,y spans.")
@click.option("--cfg", is_flag=True, help="Print the composed config of the first run, and stop.")
@click.option("--dry-run", is_flag=True, help="Print the runs and their expected cost, and stop.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the result.")
@verbose_option
@click.option("--detach", is_flag=True, help="Leave the study to the cluster's jobs, and return.")
@click.option("--rehearse", is_flag=True, help="Only a few steps, on made-up data: does it fit?")
@click.option(
    "--steps", type=click.IntRange(1), metavar="N", help="Steps that a rehearsed run takes."
)
@click.option(
    "--minutes",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="N",
    help="The most that a rehearsed run takes.",
)
@json_option
@config_dir_option
@people_readable
def run(
    overrides: tuple[str, ...],
    multirun: bool,
    cfg: bool,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
    detach: bool,
    rehearse: bool,
    steps: int | None,
    minutes: float,
    as_json: bool,
) -> None:
    """Run a study: every arm and seed of a paper, then the verdicts.

    \b
    repro run dgc                                   at scale=mini
    repro run dgc scale=full hardware=gpu           at the paper's size
    repro run dgc hardware=slurm_gpu --detach       as jobs of a Slurm cluster
    repro run dgc scale=full --rehearse             what would it take?
    repro run dgc arm=dgc seed=3 method.ratio=0.01  one run
    repro run -m dgc arm=dgc method.ratio=0.1,0.01  a grid
    """  # noqa: D301
    from . import render

    quiet = quiet or as_json
    with render.sign_of_life("planning", quiet):
        from repro.planning.plan import plan_study

        plan = plan_study(overrides, grid=multirun)
    outputs = Path(plan.runs[0].config.outputs)
    if rehearse:
        from . import rehearsal

        plan = rehearsal.planned(plan, steps, minutes)
    if cfg:
        render.config(plan.runs[0].config)
        return
    from repro.launching import local, needs

    if dry_run:
        from repro.records.study import typical_seconds

        local.check_launchers(plan)
        render.plan(plan, typical_seconds(plan.paper, plan.scale, outputs), outputs, as_json)
        lacking = needs.lacking(plan)
        if lacking is not None:
            render.message(lacking)
        return
    with render.sign_of_life("checking data and packages", quiet):
        from repro.planning import trust

        from . import workflow

        workflow.check_claims(plan)
        needs.check(plan)
        local.check(plan, detach)
    if rehearse:
        sys.exit(rehearsal.run(plan, outputs, quiet=quiet, as_json=as_json))
    study = workflow.prepared(plan, outputs)
    with workflow.discarded_if_refused(study), trust.trusted():
        if detach:
            sys.exit(workflow.submit(study, as_json))
        sys.exit(workflow.run_and_judge(study, quiet, as_json, verbose))


@cli.command()
@overrides_argument
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the result.")
@json_option
@config_dir_option
@people_readable
def sweep(overrides: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Search hyper-parameters on validation data.

    The same command continues a search that was stopped.

    \b
    repro sweep dgc 'method.ratio=interval(1e-4,1e-1)' trials=20
    repro sweep dgc arm=dense 'optimizer.lr=tag(log, interval(0.01,1))'
    repro sweep dgc 'method.momentum=choice(0.8,0.9)' sweep=hyperband n_jobs=4
    """  # noqa: D301
    from . import render

    quiet = quiet or as_json
    with render.sign_of_life("planning", quiet):
        from repro.search import request as search_request

        from . import workflow

        request, plan = search_request.read_request(overrides)
    outputs = Path(plan.runs[0].config.outputs)
    sys.exit(workflow.start_search(request, plan, outputs, quiet=quiet, as_json=as_json))


@cli.command(name="list")
@json_option
@config_dir_option
@people_readable
def list_(as_json: bool) -> None:
    """List the papers and what has been measured of them."""
    from repro.records.papers import load_papers

    from . import render

    render.papers(load_papers(), as_json)


@cli.command()
@click.argument("slug", shell_complete=complete.papers)
@verbose_option
@click.option("--power", is_flag=True, help="Which effects the recorded studies could have found.")
@click.option("--tuning", is_flag=True, help="What arms were tuned over, and what was chosen.")
@json_option
@config_dir_option
@people_readable
def show(slug: str, verbose: bool, power: bool, tuning: bool, as_json: bool) -> None:
    """Show a paper: its verdicts, claims, arms, scales and knobs."""
    from repro.records.papers import load_paper

    from . import render

    paper = load_paper(slug)
    with render.paged(as_json):
        if power:
            from .power import show as show_power

            show_power(paper, as_json)
        elif tuning:
            from .tuning import show as show_tuning

            show_tuning(paper, as_json)
        else:
            render.paper(paper, as_json, verbose)


@cli.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@outputs_option
@click.option(
    "--all", "show_all", is_flag=True, help=f"All studies, not only the newest {SHOWN_STUDIES}."
)
@verbose_option
@json_option
@config_dir_option
@people_readable
def status(
    folder: Path | None, outputs: Path, show_all: bool, verbose: bool, as_json: bool
) -> None:
    """Show where studies stand, or the runs of one."""
    from repro.records.study import Study, find_studies

    from . import render

    if folder is not None:
        render.study_status(Study.open(folder), as_json, verbose)
    else:
        found = find_studies(outputs)
        shown = found if show_all or as_json else found[-SHOWN_STUDIES:]
        render.studies(shown, as_json)
        if len(shown) < len(found):
            click.echo(f"… and {len(found) - len(shown)} older studies: repro status --all")


@cli.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@outputs_option
@click.option(
    "--trust", "trusted", is_flag=True, help="The folder is my own: its configs may name any class."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the result.")
@verbose_option
@json_option
@config_dir_option
@people_readable
def resume(
    folder: Path | None, outputs: Path, trusted: bool, quiet: bool, verbose: bool, as_json: bool
) -> None:
    """Continue a study or a run where it stopped.

    Without FOLDER that is the latest study.
    """
    from . import render

    quiet = quiet or as_json
    with render.sign_of_life("opening the study", quiet):
        from repro.planning import trust
        from repro.records.run import Run
        from repro.records.study import Study

        from . import workflow

    if folder is None:
        folder = workflow.latest_study(outputs)
    with trust.trusted(trusted):
        if Run(folder).record_file.is_file():
            sys.exit(workflow.continue_run(folder, as_json))
        study = Study.open(folder.absolute())
        with workflow.confined(study):
            if study.about.search is not None:
                sys.exit(workflow.search(study, quiet, as_json))
            sys.exit(workflow.run_and_judge(study, quiet, as_json, verbose))


@cli.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@json_option
@config_dir_option
@people_readable
def compare(folders: tuple[Path, ...], as_json: bool) -> None:
    """Show what differs between runs, or between studies.

    Settings, results and verdicts of two or more folders of the same kind.
    """
    from . import render

    render.comparison(folders, as_json)


@cli.command()
@outputs_option
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write one self-contained page."
)
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write Markdown.")
@click.option(
    "--recorded", is_flag=True, help="The recorded results, which need no run, instead of studies."
)
@click.option("--paper", "papers", multiple=True, help="Only this paper; may be repeated.")
@click.option("--scale", "scales", multiple=True, help="Only this scale; may be repeated.")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M"]),
    metavar="DATE",
    help="Only studies from then on, e.g. 2026-01-31.",
)
@json_option
@config_dir_option
@people_readable
def report(
    outputs: Path,
    html: Path | None,
    markdown: Path | None,
    recorded: bool,
    papers: tuple[str, ...],
    scales: tuple[str, ...],
    since: datetime | None,
    as_json: bool,
) -> None:
    """Report on all studies, here, in Markdown or as a web page.

    \b
    repro report --html report.html              the studies in outputs
    repro report --recorded --html report.html   the records, without a run
    """  # noqa: D301
    from repro.report.collect import Filters

    from . import report as reports

    filters = Filters(papers, scales, since)
    command = shlex.join(["repro", *sys.argv[1:]])
    reports.report(outputs, filters, html, markdown, as_json, command, recorded)


@cli.command()
@click.argument("slug")
@click.option("--title", help="The paper's title.")
@click.option("--link", help="Where the paper is, e.g. 'arXiv 1712.01887'.")
@people_readable
def new(slug: str, title: str | None, link: str | None) -> None:
    """Start a paper: a config, claims and a test that run at once.

    In a checkout they go where the other papers are, whose tests hold for it, too; anywhere else
    into the current folder, to be used with --config-dir.
    """
    from . import scaffold

    scaffold.create(slug, title or f"The paper {slug}", link or "", Path.cwd())


@cli.command()
@overrides_argument
@outputs_option
@click.option("--study", type=click.Path(path_type=Path), help="Which study; the latest if absent.")
@click.option(
    "--rejudge", is_flag=True, help="Judge and draw what is recorded again, as the paper now says."
)
@config_dir_option
@people_readable
def record(overrides: tuple[str, ...], outputs: Path, study: Path | None, rejudge: bool) -> None:
    """Record a finished study, as JSON and as tables in the README.

    \b
    repro record dgc
    repro record dgc scale=full
    repro record dgc --rejudge    after a change of its claims or figures
    """  # noqa: D301
    from repro.report import record as records

    typed = dict(o.split("=", 1) for o in overrides if "=" in o)
    path = records.rejudge(typed) if rejudge else records.record(typed, outputs, study)
    click.echo(f"Recorded in {path}")


@cli.command()
@click.argument("slug", metavar="SLUG|BUNDLE", shell_complete=complete.papers)
@click.argument("study", required=False, type=click.Path(path_type=Path))
@click.option("--scale", default="mini", show_default=True, help="Which record to run again.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the result.")
@json_option
@config_dir_option
@people_readable
def verify(slug: str, study: Path | None, scale: str, quiet: bool, as_json: bool) -> None:
    """Check a record: does a fresh or a given study agree with it?

    A claim agrees if it has the recorded verdict and its effects lie in their recorded intervals.
    The exit code is 1 if one does not; times, which are those of a machine, do not count. Of a
    bundle (see publish) it also says whether its verdicts follow from its runs.
    """
    from repro.records.papers import load_paper
    from repro.records.study import Study

    from . import verify as verifying

    if study is None and (os.sep in slug or Path(slug).is_dir()):
        sys.exit(verifying.verify_bundle(Study.open(Path(slug).absolute()), as_json))
    chosen = None if study is None else Study.open(study.absolute())
    code = verifying.verify(load_paper(slug), chosen, scale, quiet or as_json, as_json)
    sys.exit(code)


@cli.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--to", "target", required=True, help="A new folder, or hub:OWNER/NAME.")
@click.option("--checkpoints", is_flag=True, help="Also the weights in which the runs ended.")
@config_dir_option
@people_readable
def publish(study: Path, target: str, checkpoints: bool) -> None:
    """Bundle a finished study, to send it or put it on the hub.

    Results, configs, curves, figures and a card, in a folder that stands by itself.

    \b
    repro publish outputs/dgc/mini/2026-01-01_12-00-00 --to bundle
    repro publish STUDY --to hub:me/dgc-mini    on the Hugging Face hub
    repro verify bundle                         do its verdicts follow from it?
    """  # noqa: D301
    from repro.records.study import Study
    from repro.report import publish as publishing

    place = publishing.publish(Study.open(study.absolute()), target, checkpoints)
    click.echo(f"Published: {place}")


@cli.command()
@json_option
@config_dir_option
@people_readable
def doctor(as_json: bool) -> None:
    """Check this installation: versions, hardware, folders, papers."""
    from . import doctor as checks

    sys.exit(checks.report(as_json))


@cli.group()
def data() -> None:
    """List, fetch and check data sets."""


root_option = click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder of data sets, laid out as on the hub; $REPRO_DATA_ROOT if absent.",
)


@data.command(name="list")
@root_option
@json_option
@config_dir_option
@people_readable
def data_list(root: Path | None, as_json: bool) -> None:
    """List the data sets, and which of them are here."""
    from repro.data.base import catalog

    from . import render

    render.data_sets(catalog.describe(root), as_json)


@data.command()
@click.argument("name", shell_complete=complete.data_sets)
@click.option("--yes", is_flag=True, help=f"Even if it is more than {ASK_ABOVE_MB / 1000:.0f} GB.")
@root_option
@config_dir_option
@people_readable
def fetch(name: str, yes: bool, root: Path | None) -> None:
    """Download a benchmark data set from the Hugging Face hub."""
    from repro.data.base import catalog

    click.echo(catalog.fetch(name, root, None if yes else ASK_ABOVE_MB))


@data.command()
@click.argument("name", shell_complete=complete.data_sets)
@root_option
@json_option
@config_dir_option
@people_readable
def check(name: str, root: Path | None, as_json: bool) -> None:
    """Check a data set's files: every split is there and can be read."""
    from repro.data.base import catalog

    from . import render

    rows = catalog.check(name, root)
    if as_json:
        render.emit(rows)
    else:
        counts = ", ".join(f"{split}: {count} rows" for split, count in rows.items())
        render.console.print(counts or f"{name} has no files of its own: nothing to check.")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script: eval "$(repro completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "repro", "_REPRO_COMPLETE").source())


def _similar(error: UnicodeError) -> tuple[str, int]:
    """What to print for signs that a terminal cannot show, such as a true minus."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(ASCII.get(sign, "?") for sign in signs), error.end


codecs.register_error(SIMILAR, _similar)


def main() -> None:
    """Entry point of the `repro` command; SIGTERM and a closed terminal end it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup asks for
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is no error
            stream.reconfigure(errors=SIMILAR)
    try:
        standing.use_settings()
    except ReproError as error:
        _say_error(str(error))
        sys.exit(error.exit_code)
    # What was imported stays: looking for garbage in it takes a tenth of the time of `repro list`.
    gc.freeze()
    # Workers are `python -m …`, which would import what lies in the current folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    cli(prog_name="repro")


if __name__ == "__main__":
    main()
