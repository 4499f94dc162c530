"""Protects this process on import: ``import opik_offline.auto``.

``python -m opik_offline.auto app.py ...`` and ``python -m opik_offline.auto -m package ...`` run a program that is
protected from its first line on, without a change to it.
"""

import os
import runpy
import sys
from typing import List

from ._protection import protect

protect()


def _run(arguments: List[str]) -> int:
    if arguments[:1] == ["-m"] and len(arguments) > 1:
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments and not arguments[0].startswith("-"):
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.realpath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        print("usage: python -m opik_offline.auto (FILE | -m MODULE) [ARGUMENT]...", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1:]))
