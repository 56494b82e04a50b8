#!/usr/bin/env python3
"""Keeps the generated part of ARCHITECTURE.md equal to what the code prints.

usage: generated.py PRINT_TABLES ARCHITECTURE.md [--write]
"""

import subprocess
import sys
from pathlib import Path

BEGIN = "<!-- membership table: begin -->\n"
END = "<!-- membership table: end -->\n"


def main():
    program, page = sys.argv[1], Path(sys.argv[2])
    table = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        print(f"{page}: the marks of the generated part are missing")
        return 1
    head, rest = text.split(BEGIN)
    written, tail = rest.split(END)
    wanted = "\n" + table.strip() + "\n\n"
    if written == wanted:
        return 0
    if "--write" not in sys.argv[3:]:
        print(f"{page}: the table is not what the code does; run ./dev docs")
        return 1
    page.write_text(head + BEGIN + wanted + END + tail, encoding="utf-8")
    print(f"{page}: table written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
