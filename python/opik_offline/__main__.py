"""``python -m opik_offline``: the command ``opik-offline`` of this installation, even if it is not on the PATH."""

import os
import sys

from ._agent import ProtectionError, find_binary


def main():
    try:
        binary = find_binary()
    except ProtectionError as error:
        print("error: {}".format(error), file=sys.stderr)
        return 127
    os.execv(binary, [binary] + sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
