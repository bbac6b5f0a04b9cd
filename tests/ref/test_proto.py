#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The committed bytes are those that the specifications give today, and every number is written down."""
import os
import sys

import proto_golden


def committed(name):
    with open(os.path.join(proto_golden.TOP, "tests", "unit", name)) as f:
        return f.read()


def main():
    bad = 0
    if committed("golden_proto.hex") != proto_golden.render("bytes"):
        print("golden_proto.hex is not what proto_golden.py makes of kvgate.proto and the layouts")
        bad += 1
    missing = set(proto_golden.field_lines()) - set(committed("golden_fields.txt").splitlines())
    for line in sorted(missing):
        print(f"golden_fields.txt lacks: {line}")
    return 1 if bad or missing else 0


if __name__ == "__main__":
    sys.exit(main())
