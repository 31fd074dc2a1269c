"""``distill-rt``: find the command, run it, print what it hands back, end with the right exit code.

Exit codes: 0 done; 1 an error of ours; 2 usage; 3 artifact; 4 target; 5 resources; 6 gate; 129, 130, 141, 143 ended by
SIGHUP, SIGINT, SIGPIPE, SIGTERM.

Only the chosen command is imported, and this module imports next to nothing: starting up is part of every `generate`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from distill_rt.core.errors import DistillError, ResourceError, TargetError, UsageError

if TYPE_CHECKING:
    from distill_rt.cli.outcome import Outcome

COMMANDS = {
    "demo": "the whole walk on real data: teacher, student, engine, images, report",
    "recipes": "list the recipes of train, with the quality and time to expect",
    "train": "train a teacher by a recipe",
    "distill": "distil a teacher into a few-step student",
    "combine": "kept weights of one training run to a better student",
    "replan": "other times for a trained consistency student",
    "stitch": "two students to one: a smaller network for the first steps",
    "evaluate": "measure the quality of a student against its teacher and the data",
    "export": "a student to a bundle: ONNX graphs and golden outputs",
    "tune": "try lossy passes on a plan; one enters if it beats fewer steps",
    "compile": "a bundle to an engine for one target, checked against the student",
    "refit": "the weights of another bundle into a compiled engine, without a build",
    "generate": "images from an engine",
    "bench": "latency, throughput and memory of an engine",
    "inspect": "what a student, bundle or engine is",
    "verify": "check a student, bundle or engine: every file, the contract, the machine",
    "doctor": "what this machine has and which targets it can build and run",
}

TRACEBACK_VARIABLE = "DISTILL_RT_TRACEBACK"

_EPILOG = """\
Every command: --help; --json prints one object on stdout, errors too.
Exit codes: 0 done, 1 an error of ours, 2 usage, 3 artifact, 4 target, 5 resources, 6 gate,
129/130/141/143 ended by SIGHUP/SIGINT/SIGPIPE/SIGTERM.
"""


class _Ended(BaseException):
    """A signal asks us to end: unwinds like KeyboardInterrupt, so that half-written directories go."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code and raises nothing."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:
        with _signals_raise():
            return _print(_run(words), as_json)
    except SystemExit as exit_:  # argparse after --help
        return int(exit_.code or 0)
    except (KeyboardInterrupt, _Ended) as ended:
        number = ended.number if isinstance(ended, _Ended) else signal.SIGINT
        name = signal.Signals(number).name
        return _fail({"family": "signal", "code": name.lower(), "message": f"ended by {name}"}, 128 + number, as_json)
    except BrokenPipeError:
        _forget_stdout()
        return 128 + signal.SIGPIPE
    except DistillError as error:
        return _fail_with(error, as_json)
    except MemoryError:
        return _fail_with(
            ResourceError("out of memory", code="out-of-memory", hint="ask for fewer images at once"), as_json
        )
    except OSError as error:  # of the system: an unreadable file, too many open ones, a failing disk
        reason = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        hint = f"{TRACEBACK_VARIABLE}=1 shows where"
        return _fail_with(ResourceError(f"the system refused: {reason}", code="os-error", hint=hint), as_json)
    except Exception as error:  # the last line of defence: a bug of ours, said in one line
        _maybe_traceback()
        what = {
            "family": "internal",
            "code": "internal-error",
            "message": f"{type(error).__name__}: {error}",
            "hint": f"this is a bug of distill-rt; {TRACEBACK_VARIABLE}=1 shows where",
        }
        return _fail(what, 1, as_json)


def _run(words: list[str]) -> Outcome:
    from distill_rt.cli.parser import Parser, add_json

    if not words or words[0].startswith("-"):
        return _top_level(words)
    name = words[0]
    if name not in COMMANDS:
        raise UsageError(
            f"there is no command {name!r}", code="command-unknown", hint=f"commands: {', '.join(COMMANDS)}"
        )
    command = importlib.import_module(f"distill_rt.cli.{name}")
    parser = Parser(f"distill-rt {name}", command.__doc__ or COMMANDS[name])
    command.add_arguments(parser)
    add_json(parser)
    args = parser.parse_args(words[1:])
    try:
        outcome: Outcome = command.run(args)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "distill_rt":
            raise
        raise TargetError(
            f"distill-rt {name} needs the package {package!r}, which is not installed",
            code="package-missing",
            hint=f"pip install 'distill-rt[{command.EXTRA}]'",
            details={"package": package, "extra": command.EXTRA},
        ) from error
    return outcome


def _top_level(words: list[str]) -> Outcome:
    from distill_rt.cli.outcome import Outcome, pairs
    from distill_rt.cli.parser import Parser, add_json

    epilog = f"commands:\n{_indent(pairs(COMMANDS))}\n\n{_EPILOG}"
    parser = Parser("distill-rt", "Distil a diffusion teacher into a few-step student and run it fast.", epilog)
    parser.add_argument("command", nargs="?", help="see below; distill-rt COMMAND --help says more")
    parser.add_argument("--version", action="store_true", help="print the version")
    add_json(parser)
    args = parser.parse_args(words)
    if not args.version:
        raise UsageError("no command was given first", code="command-missing", hint="distill-rt --help")
    from importlib.metadata import version

    number = version("distill-rt")
    return Outcome(data={"version": number}, text=f"distill-rt {number}")


def _print(outcome: Outcome, as_json: bool) -> int:
    try:
        print(_dump(outcome.data) if as_json else outcome.text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _forget_stdout()
        raise ResourceError(f"cannot write to stdout: {error.strerror}", code="stdout-not-writable") from error
    return outcome.exit_code


def _fail_with(error: DistillError, as_json: bool) -> int:
    _maybe_traceback()
    return _fail(error.to_json()["error"], error.exit_code, as_json)


def _fail(what: dict[str, Any], exit_code: int, as_json: bool) -> int:
    what = {"family": "", "code": "", "message": "", "hint": "", "details": {}} | what
    try:
        if as_json:
            print(_dump({"error": what, "exit_code": exit_code}), flush=True)
        else:
            line = f"{what['message']} ({what['hint']})" if what["hint"] else what["message"]
            print(f"distill-rt: {' '.join(line.split())}", file=sys.stderr, flush=True)
    except OSError:  # nobody to tell; the exit code still says it
        _forget_stdout()
    return exit_code


def _forget_stdout() -> None:
    """Nobody reads what is left in the buffer; Python would complain once more when it flushes it at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _maybe_traceback() -> None:
    if os.environ.get(TRACEBACK_VARIABLE):
        import traceback

        traceback.print_exc()


def _dump(data: Any) -> str:
    return json.dumps(data, allow_nan=False)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP unwind the command; outside of the main thread Python cannot set that up.

    Not while a module is being imported: an exception in the middle of an extension's start-up ends the process inside of
    C++ (pybind11 aborts), or is swallowed. Then a timer asks again until the import is done.
    """
    alarm: int | None = getattr(signal, "SIGALRM", None)
    pending: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if number != alarm:
            pending.append(number)
        if alarm is not None and _importing(frame):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
        elif pending:
            raise _Ended(pending[0])

    before: dict[int, Any] = {}
    defaults = (signal.SIG_DFL, signal.default_int_handler)  # an ignored signal (nohup) stays ignored
    try:
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None), alarm):
            if number is not None and signal.getsignal(number) in defaults:
                before[number] = signal.signal(number, end)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        if alarm in before:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    """Whether the command is in the middle of an import (not whether `main` itself was called by one)."""
    while frame is not None and frame.f_code is not main.__code__:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def entry() -> None:
    """The console script: `main`, and an end that nothing can change.

    After a signal the process leaves at once. Python would otherwise turn exit code 130 into a death by SIGINT if the
    exception had passed through code that a library ran from a string, and would wait for threads of libraries.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]  # None: closed by who started us
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    code = main()
    if code > 128:
        with contextlib.suppress(OSError, ValueError):
            for stream in streams:
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
