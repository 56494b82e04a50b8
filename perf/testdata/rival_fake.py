#!/usr/bin/env python3
"""A rival that fails as it is told: rival_fake.py DIRECTORY never|dies|garbage|cannot. Whatever it
does, it does from its second size on; `never` does not even start."""

import json
import os
import signal
import sys


def main():
    directory, how = sys.argv[1:]
    if how == "never":
        return 3
    with open(f"{directory}/command.0", encoding="utf-8") as commands, open(
        f"{directory}/result", "w", encoding="utf-8"
    ) as result:

        def say(answer):
            print(answer, file=result, flush=True)

        say(json.dumps({"ready": f"fake on {len(os.sched_getaffinity(0))} cores"}))
        for line in iter(commands.readline, "end\n"):
            words = line.split()
            if int(words[5]) <= 2:
                checked = int(words[10])
                say(json.dumps({"us": [3.0], "cpu_s": 0, "wrong": 0, "checked": checked}))
            elif how == "dies":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif how == "garbage":
                say('{"us":"soon"}')
            else:
                say(json.dumps({"error": "it has no such operation"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
