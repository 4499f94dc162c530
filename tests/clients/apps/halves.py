"""How an application lets the test do something in the middle of its work."""

import sys


def halfway():
    print("halfway", flush=True)
    sys.stdin.readline()
