"""Command line: arguments → config → experiment. No numerics."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

EPILOG_RUN = """examples:
  chordflow run
  chordflow run data.samples=50 flows=straight,adapted rtol=1e-6
  chordflow run config.toml data.name=diabetes 'model.widths=[64, 64]' out=runs/diabetes
  chordflow run model.name=mine:network loss=mine:huber 'flows=adapted,along(mine:path,10)'

mine:network(input_shape, num_outputs, seed) -> (apply, params), mine:huber(x, y) -> scalar for one sample and
mine:path(t, x0, y) -> outputs are functions of a module mine.py in this folder or on PYTHONPATH.

keys: {keys}
"""
EPILOG_RESUME = """examples:
  chordflow resume runs/digits-20260101-120000
  chordflow resume runs/* --quiet

A run that was stopped with Ctrl-C, killed, or stopped by a full disk goes on from its last checkpoint and ends as if it
had never stopped. Files that were damaged are named, set aside and made again. What is finished is left as it is.
"""
EPILOG_VERIFY = """examples:
  chordflow verify
  chordflow verify data.samples=10 model.widths=32 rtol=1e-9
  chordflow verify runs/digits/config.toml data.samples=20
  chordflow verify runs/digits

keys: {keys}
The rest of a configuration file is for `chordflow run` and changes nothing here. A run folder stands for the problem of
its configuration; the outcomes are kept in it, where `chordflow report` finds them.
"""
EPILOG_REPORT = """examples:
  chordflow report runs/digits
  chordflow report runs/tanh runs/gelu --out comparison.html

The page is one file, needs no network, and is written into the first run folder as report.html unless --out says
where. A run that still goes on, or was stopped, is shown as far as it came.
"""
EPILOG_GRAM = """examples:
  chordflow gram
  chordflow gram data.samples=500 'model.widths=[256, 256]' out=runs/kernel
  chordflow gram runs/digits/config.toml eps=1e-4

keys: {keys}
The rest of a configuration file is for `chordflow run` and changes nothing here.
"""
EPILOG_BENCH = """examples:
  chordflow bench
  chordflow bench seeds=3 seconds=20 out=bench.json

keys: {keys}
Seconds are wall-clock without compilation: compare them with one another, not with other machines.
"""
VERIFY_SAMPLES = 20
RUN_FILES = ("config.toml", "SHA256SUMS")
"""What tells a run folder."""
MISTAKES = (ValueError, MemoryError, ImportError, OSError)
"""What is told in one line: the user's, and what the disk refuses."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 on success; 1 if a flow ended early, a statement does not hold, or the disk refuses; 2 for a user's mistake; 128
    and the number of the signal if it was stopped, which is 130 for Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    _look_for_modules_here(Path(word).resolve() for word in arguments.words if Path(word).is_dir())
    import jax

    # Flows need float64, and this process is ours: the library itself changes no flag.
    jax.config.update("jax_enable_x64", True)
    try:
        return arguments.command(arguments)
    except BrokenPipeError:
        # As after `| head`: what is still in the buffer would be refused once more as the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("chordflow: stopped: nobody reads what it prints any more", file=sys.stderr)
        return 128 + signal.SIGPIPE
    except MISTAKES as error:
        return _told(error, arguments)
    except KeyboardInterrupt as stop:
        print(f"chordflow: {stop if str(stop) else 'stopped'}", file=sys.stderr)
        return 128 + getattr(stop, "signal_number", signal.SIGINT)


def _look_for_modules_here(named: Iterable[Path]) -> None:
    """Let model.name = mymodule:network be found in the current folder, as with `python -m`, but in no run folder.

    A folder is one by what is in it, or because it is ``named`` on the command line, whatever is left in it.
    """
    here, named = Path.cwd(), set(named)
    if any(folder in named or all((folder / name).is_file() for name in RUN_FILES) for folder in (here, *here.parents)):
        sys.path[:] = [path for path in sys.path if path not in ("", str(here))]
    elif str(here) not in sys.path:
        sys.path.append(str(here))


def _told(error: Exception, arguments: argparse.Namespace) -> int:
    """The exit status of a mistake, which is told in one line."""
    from chordflow.record import StorageError

    if arguments.traceback:
        raise error
    print(f"chordflow: {str(error).splitlines()[0] if str(error) else type(error).__name__}", file=sys.stderr)
    return 1 if isinstance(error, StorageError | OSError) else 2


def _parser() -> argparse.ArgumentParser:
    from chordflow import __version__
    from chordflow.config import NOT_FOR_GRAM, RUN_ONLY, keys

    parser = argparse.ArgumentParser(prog="chordflow", description="Train so that outputs travel a known path.")
    parser.add_argument("--version", action="version", version=f"chordflow {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, summary: str, epilog: str, *, folders: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if folders:
            sub.add_argument("words", nargs="+", metavar="RUN", help="run folder")
        else:
            what = "configuration and overrides"
            sub.add_argument("words", nargs="*", metavar="[CONFIG.toml] [key=value ...]", help=what)
        sub.add_argument("--traceback", action="store_true", help="show where a mistake was noticed")
        sub.set_defaults(command=command)
        return sub

    listed, fewer = ", ".join(keys()), ", ".join(keys(RUN_ONLY))
    run = add("run", _run, "Integrate flows and compare them with the theory.", EPILOG_RUN.format(keys=listed))
    run.add_argument("--overwrite", action="store_true", help="start over where out is a run folder")
    _add_watching(run)
    summary = "Go on with a run that was stopped or killed, from its last checkpoint."
    _add_watching(add("resume", _resume, summary, EPILOG_RESUME, folders=True))
    add("verify", _verify, "Check the statements of the theory on a problem.", EPILOG_VERIFY.format(keys=fewer))
    summary = "Write one self-contained HTML page about run folders, on the same axes."
    report = add("report", _report, summary, EPILOG_REPORT, folders=True)
    report.add_argument("--out", metavar="PAGE.html", help="the page (default: report.html in the first run folder)")
    summary = "Compute the Gram matrix DDᵀ (the tangent kernel) of a problem, its spectrum, and keep it."
    gram = add("gram", _gram, summary, EPILOG_GRAM.format(keys=", ".join(keys(NOT_FOR_GRAM))))
    gram.add_argument("--quiet", action="store_true", help="say nothing but mistakes")
    summary = "Measure cf.fit beside Adam and L-BFGS on two small problems, in about two minutes."
    known = "seeds, seconds, target, samples, width, points, steps, out"
    bench = add("bench", _bench, summary, EPILOG_BENCH.format(keys=known))
    bench.add_argument("--quiet", action="store_true", help="say nothing but mistakes")
    return parser


def _add_watching(parser: argparse.ArgumentParser) -> None:
    """Ways to follow a run beside the live table of a terminal, and the plain lines elsewhere."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quiet", action="store_true", help="say nothing but mistakes")
    how.add_argument("--json", action="store_true", help="say everything as JSON, one object a line")
    parser.add_argument("--tensorboard", metavar="FOLDER", help="log to TensorBoard too")
    parser.add_argument("--wandb", metavar="PROJECT", help="log to Weights & Biases too (WANDB_MODE=offline works)")


def _sorted(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The configuration file, if there is one, and the overrides."""
    from chordflow.config import ConfigError

    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise ConfigError(f"expected one config file, got {' and '.join(files)}")
    return (files[0] if files else None), [word for word in words if "=" in word]


def _run(arguments: argparse.Namespace) -> int:
    from chordflow import experiment
    from chordflow.config import load_config

    config = load_config(*_sorted(arguments.words))
    with _watched(arguments) as (say, watchers, ended):
        experiment.run(config, say=say, watchers=watchers, overwrite=arguments.overwrite)
    return _outcome(ended)


def _resume(arguments: argparse.Namespace) -> int:
    from chordflow import experiment

    outcomes = []
    for word in arguments.words:
        try:
            with _watched(arguments) as (say, watchers, ended):
                experiment.resume(word, say=say, watchers=watchers)
            outcomes.append(_outcome(ended))
        except BrokenPipeError:
            raise
        except MISTAKES as error:  # one folder does not keep the others from going on
            outcomes.append(_told(error, arguments))
    return max(outcomes)


def _outcome(results: Mapping[str, str]) -> int:
    """1, and a line that says so, if a flow that came to its end now ended early; by name of the flow."""
    failed = [f"{name} ({result})" for name, result in results.items() if result != "successful"]
    if failed:
        print(f"chordflow: ended early: {', '.join(failed)}; what was reached is kept", file=sys.stderr)
    return 1 if failed else 0


@contextlib.contextmanager
def _watched(arguments: argparse.Namespace) -> Iterator[tuple[Any, list[Any], dict[str, str]]]:
    """What prints the lines of a run, what follows its events, and the results by flow, once there are some."""
    from chordflow import watch

    say, watchers, ended = _voice(arguments), [], {}
    try:
        if arguments.tensorboard is not None:
            watchers.append(watch.Isolated(watch.TensorBoard(arguments.tensorboard)))
        if arguments.wandb is not None:
            watchers.append(watch.Isolated(watch.WeightsAndBiases(arguments.wandb)))
        if arguments.json:
            watchers.append(watch.JsonLines())
        elif not arguments.quiet:
            if watch.in_terminal():
                watchers.append(table := watch.LiveTable())
                say = table.say
            else:
                watchers.append(watch.PlainLines(say))
        yield say, [*watchers, lambda event: ended.update(event.get("results", {}))], ended
    finally:
        for watcher in reversed(watchers):
            watcher.close()


def _gram(arguments: argparse.Namespace) -> int:
    from chordflow import kernel_run
    from chordflow.config import NOT_FOR_GRAM, Config, read_table, refuse_run_only

    file, overrides = _sorted(arguments.words)
    refuse_run_only(read_table(None, overrides), NOT_FOR_GRAM, "gram")
    config = Config.from_dict(read_table(file, overrides))
    kernel_run.run(config, say=_voice(arguments), progress=_shows_bars(arguments))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from chordflow import bench
    from chordflow.config import ConfigError

    file, overrides = _sorted(arguments.words)
    if file is not None:
        raise ConfigError(f"{file!r}: chordflow bench takes key=value only, as in seeds=1")
    bench.run(bench.BenchConfig.from_words(overrides), say=_voice(arguments))
    return 0


def _voice(arguments: argparse.Namespace) -> Any:
    """What prints the lines of a command."""

    def quiet(line: str) -> None:
        del line

    def say(line: str) -> None:
        print(line, flush=True)

    return quiet if arguments.quiet or getattr(arguments, "json", False) else say


def _shows_bars(arguments: argparse.Namespace) -> bool:
    return sys.stderr.isatty() and not arguments.quiet


def _report(arguments: argparse.Namespace) -> int:
    from chordflow.report import write_report

    print(write_report(arguments.words, arguments.out), flush=True)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from chordflow import record, verification
    from chordflow.config import Config, read_table, refuse_run_only
    from chordflow.setting import Setting
    from chordflow.verification.kept import keep

    file, overrides = _sorted(arguments.words)
    refuse_run_only(given := read_table(None, overrides))
    run = record.open_run(file) if file is not None and os.path.isdir(os.path.expanduser(file)) else None
    # Dense Jacobians and projections: the main job's 200 samples would take minutes.
    if run is not None:
        most = [flow["samples"] for flow in run.summary.get("flows", {}).values()]
        overrides = [f"data.samples={min([VERIFY_SAMPLES, *most])}", *overrides]
    elif file is None and not any(word.startswith("data.name") for word in overrides):
        overrides = [f"data.samples={VERIFY_SAMPLES}", *overrides]
    table = read_table(file if run is None else run.path / "config.toml", overrides)
    if run is not None:
        # A run's configuration spells out the tolerances of its flows, which nobody chose for a verification.
        table = {key: value for key, value in table.items() if key in given or key not in ("rtol", "eps")}
    config = Config.from_dict(table)
    setting = Setting.build(config)
    # Tolerances that nobody gave are the verification's own, which look at the rank of the problem.
    chosen = {key: getattr(config, key) for key in ("rtol", "eps") if key in table}
    evidence = verification.Evidence(setting.problem(), setting.params, **chosen)
    count, samples = len(verification.STATEMENTS), len(setting.dataset.targets)
    print(
        f"checking {count} statements on {samples} samples of {setting.dataset.name} ...", file=sys.stderr, flush=True
    )
    checks = list(verification.examine(evidence))
    for line in verification.lines(checks):
        print(line, flush=True)
    if run is not None:
        print(f"kept for the report: {keep(run.path, checks, samples)}", flush=True)
    return 0 if all(check.outcome != "does not hold" for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
