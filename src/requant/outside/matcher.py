"""The process that matches foreign patterns: JSON on stdin, a line a pattern; see `patterns`.

Of the standard library alone, and run by its path, so that it begins in hundredths of a second.
"""

import json
import re
import resource
import sys


def main() -> None:
    """Match each pattern against each name; print its number before, and why it is none."""
    asked = json.load(sys.stdin)
    # Of processor time: on a busy machine everything takes long.
    resource.setrlimit(resource.RLIMIT_CPU, (asked["seconds"], asked["seconds"]))
    for number, pattern in enumerate(asked["patterns"]):
        print(number, flush=True)
        try:
            compiled = re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            print(number, " ".join(str(error).split()), flush=True)
            return
        for name in asked["names"]:
            compiled.match(name)
            compiled.fullmatch(name)
    print("done", flush=True)


if __name__ == "__main__":
    main()
