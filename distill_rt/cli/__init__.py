"""The command line: one file per command, imported when its command is called.

A command module has `add_arguments(parser)` and `run(args) -> Outcome`; it prints nothing itself. What is wrong leaves it as an
exception, and `distill_rt.cli.main` turns that into one line (or one JSON object) and an exit code.
"""
