#!/usr/bin/env python3
"""Makes digits.txt from scikit-learn's digits.csv.gz: convert.py digits.csv.gz > digits.txt

A line is one image: 64 pixels 0..16 as the characters 0-9a-g, row by row, then a space and the
digit.
"""

import csv
import gzip
import sys

PIXELS = 64
LEVELS = "0123456789abcdefg"


def main():
    with gzip.open(sys.argv[1], "rt", newline="") as rows:
        for row in csv.reader(rows):
            values = [int(float(cell)) for cell in row]
            if len(values) != PIXELS + 1:
                raise SystemExit(f"a row has {len(values)} columns, not {PIXELS + 1}")
            print("".join(LEVELS[value] for value in values[:PIXELS]), values[PIXELS])


if __name__ == "__main__":
    main()
