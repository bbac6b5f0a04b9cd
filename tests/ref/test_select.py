#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Selection against NumPy on fresh random cases. KVGATE_SEED repeats a run; KVGATE_BUILD_DIR has test_select."""
import os
import subprocess
import sys
import tempfile

try:
    import select_reference
except ModuleNotFoundError as missing:
    print(f"SKIPPED: {missing}")
    sys.exit(77)

CASES = 3000


def main():
    seed = int(os.environ.get("KVGATE_SEED") or int.from_bytes(os.urandom(4), "little"))
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    build = os.environ.get("KVGATE_BUILD_DIR") or os.path.join(top, "build", "gcc")
    print(f"KVGATE_SEED={seed}, {CASES} cases")
    with tempfile.TemporaryDirectory() as folder:
        cases = os.path.join(folder, "cases.bin")
        select_reference.write(cases, seed, CASES)
        return subprocess.run([os.path.join(build, "tests", "unit", "test_select"), cases]).returncode


if __name__ == "__main__":
    sys.exit(main())
