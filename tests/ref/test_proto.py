#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The committed bytes are those that the specifications give today, every number is written down, and PROTOCOL.md says so."""
import os
import sys

import proto_golden


def committed(*path):
    with open(os.path.join(proto_golden.TOP, *path)) as f:
        return f.read()


def findings():
    if committed("tests", "unit", "golden_proto.hex") != proto_golden.render("bytes"):
        yield "golden_proto.hex is not what proto_golden.py makes of kvgate.proto and the layouts"
    written = set(committed("tests", "unit", "golden_fields.txt").splitlines())
    for line in proto_golden.field_lines():
        if line not in written:
            yield f"golden_fields.txt lacks: {line}"
    protocol = committed("proto", "PROTOCOL.md")
    if not protocol.endswith("|---|---|---|\n" + proto_golden.render("errors")):
        yield "the table that ends PROTOCOL.md is not kvgate-errors.def: see proto_golden.py errors"
    for name in proto_golden.parse()[0]:
        if f"`{name}`" not in protocol and name not in ("Request", "Reply"):
            yield f"PROTOCOL.md does not explain {name}"


def main():
    found = list(findings())
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
