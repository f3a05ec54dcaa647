"""Compares pairs of formulas read from standard input, one JSON list a line; runs on its own.

A formula may take arbitrarily long or much memory, so this runs as a process of limited memory
which the kernel kills when one comparison takes too much processor time.
It imports nothing of the package: it is started by path, in isolated mode.
"""

import json
import math
import resource
import sys
import time

MEMORY_BYTES = 2 << 30


def main() -> None:
    """Answer each line ``[reference, answer, seconds]`` with ``true``, ``false`` or a reason."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from math_verify import parse, verify

    print('"ready"', flush=True)
    for line in sys.stdin:
        reference, answer, seconds = json.loads(line)
        until = math.ceil(time.process_time() + seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
        try:
            gold = parse(f"${reference}$", parsing_timeout=0)
            said = parse(f"${answer}$", parsing_timeout=0)
            reply = bool(verify(gold, said, timeout_seconds=None)) if gold else "no formula"
        except Exception as error:  # sympy raises almost anything on what a model writes
            reply = False if not isinstance(error, MemoryError) else "out of memory"
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
