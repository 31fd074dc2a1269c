"""One section in this process: ``python -P -m acceptance.section speed --out speed.json --seconds 110``."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

from acceptance.report import Recorder, Skip
from acceptance.sections import SECTIONS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes in Triton's interpreter")
    args = parser.parse_args()
    recorder = Recorder(args.out, dry=args.cpu, seconds=args.seconds)
    section = SECTIONS[args.section]
    started = time.monotonic()
    try:
        importlib.import_module(f"acceptance.{section.module}").run(recorder, section.argument)
    except Skip as skip:
        recorder.finish("skipped", str(skip))
    except Exception as error:  # a section's failure is a result: the report holds it, and the others go on
        traceback.print_exc()
        recorder.finish("crashed", f"{type(error).__name__}: {error}"[:2000])
        return 1
    else:
        recorder.finish()
    finally:
        print(f"{args.section}: {recorder.content['status']} after {time.monotonic() - started:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
