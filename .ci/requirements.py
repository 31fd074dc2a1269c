"""Print the requirements of the package and of some of its extras, for `pip install -r`: `make` installs them first.

python .ci/requirements.py dev
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def requirements(extra: str) -> list[str]:
    """Requirements of one extra, references to our own extras followed."""
    found = []
    for line in project["optional-dependencies"][extra]:
        own = re.fullmatch(r"distill-rt\[([\w,-]+)\]", line)
        found += [r for name in own[1].split(",") for r in requirements(name)] if own else [line]
    return found


wanted = [*project["dependencies"], *(r for extra in sys.argv[1:] for r in requirements(extra))]
print("\n".join(dict.fromkeys(wanted)))
