#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The bytes of every message and shared layout, worked out from the specifications and from nothing in C.

    proto_golden.py bytes > tests/unit/golden_proto.hex      `name hex` lines: messages, layouts, keys
    proto_golden.py fields > tests/unit/golden_fields.txt    every number that was ever given out
    proto_golden.py errors                                   the table that ends proto/PROTOCOL.md

An example message has every field set, from its number n: u32 300+n, u64 2^40+n, i32 -n, bool 1, float n+.5,
double n+.25, string its name, bytes (n, i, 255), enum 1, sub-messages alike. Repeated fields have two elements
(i = 0, 1, numbers +i). A oneof is empty inside another message and has one example a member at the top.
Run `fields` by hand only to add: a line that stands in the file is never changed; a field that is retired
becomes `reserved` with its number.
"""
import hashlib
import os
import re
import struct
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCALARS = ("uint32", "uint64", "int32", "bool", "float", "double", "string", "bytes")


# ---- kvgate.proto ----

def parse():
    """messages: name -> [(number, name, type, repeated, oneof)], enums: name -> [(number, name)]"""
    with open(os.path.join(TOP, "proto", "kvgate.proto")) as f:
        text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", f.read(), flags=re.S)
    messages, enums = {}, {}
    for kind, name, body in re.findall(r"\b(message|enum)\s+(\w+)\s*\{((?:[^{}]|\{[^{}]*\})*)\}", text):
        if kind == "enum":
            enums[name] = [(int(n), v) for v, n in re.findall(r"(\w+)\s*=\s*(\d+)", body)]
            continue
        inside = re.search(r"oneof\s+\w+\s*\{([^{}]*)\}", body)
        members = set(re.findall(r"(\w+)\s*=", inside.group(1))) if inside else set()
        messages[name] = sorted(
            (int(n), field, kind, bool(repeated), field in members)
            for repeated, kind, field, n in re.findall(r"(repeated\s+)?(?<!oneof )\b(\w+)\s+(\w+)\s*=\s*(\d+)\s*;", body))
    return messages, enums


def varint(v):
    v &= (1 << 64) - 1
    out = b""
    while v > 127:
        out += bytes([v & 127 | 128])
        v >>= 7
    return out + bytes([v])


def block(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def scalar(kind, number, i):
    if kind in ("float", "double"):
        return struct.pack("<f", number + .5 + i) if kind == "float" else struct.pack("<d", number + .25 + i)
    return varint({"uint32": 300 + number + i, "uint64": (1 << 40) + number + i, "int32": -number - i, "bool": 1}.get(kind, 1))


def encode(messages, enums, name, member=None):
    out = b""
    for number, field, kind, repeated, oneof in messages[name]:
        if oneof and field != member:
            continue
        count = 2 if repeated else 1
        if kind == "string":
            out += b"".join(block(number, field.encode()) for _ in range(count))
        elif kind == "bytes":
            out += b"".join(block(number, bytes([number, i, 255])) for i in range(count))
        elif kind in messages:
            out += b"".join(block(number, encode(messages, enums, kind)) for _ in range(count))
        elif repeated:      # numbers are packed in proto3
            out += block(number, b"".join(scalar(kind, number, i) for i in range(count)))
        else:
            out += varint(number << 3 | {"float": 5, "double": 1}.get(kind, 0)) + scalar(kind, number, 0)
    return out


def message_lines():
    messages, enums = parse()
    for name, fields in messages.items():
        members = [field for _, field, _, _, oneof in fields if oneof]
        for member in members or [None]:
            yield f"message.{name}" + (f".{member}" if member else ""), encode(messages, enums, name, member)


# ---- shared layouts ----

def crc32c(data, crc=0):
    crc = ~crc & 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return ~crc & 0xffffffff


KEY = bytes(range(32))
FINGERPRINT = bytes(range(100, 132))
GENERATION = 7


def plane_ref(plane, tier=1):
    """bytes, segment, page, pairs, tier, page_shift, check"""
    fields = struct.pack("<QIIIBB", 0x123456789a + plane, 3, 0x10 + plane, 1000 + plane, tier, 16)
    crc = crc32c(fields + struct.pack("<II", plane, GENERATION))
    return fields + struct.pack("<H", (crc ^ crc >> 16) & 0xffff)


def entry():
    """word | key | layout parent tokens depth n_planes | crc | 8 plane refs"""
    word = GENERATION << 32 | 1 << 16 | 0x7f << 8 | 0x1f
    body = KEY + struct.pack("<5I", 2, 0xffffffff, 256, 0, 7)
    crc = crc32c(struct.pack("<I", GENERATION) + body)
    refs = b"".join(plane_ref(p) for p in range(7)) + bytes(24)
    return struct.pack("<Q", word) + body + struct.pack("<I", crc) + refs


def index():
    head = b"KVGINDEX" + struct.pack("<IIQQQQQ", 2, 256, 1024, 4096, 4096, 69632, 1118208) + bytes(range(16))
    return head + struct.pack("<II", crc32c(head), 3)


def replicas():
    head = b"KVGREPLI" + struct.pack("<IIQQQ", 2, 256, 1024, 4096, 266240) + bytes(range(16)) + bytes(range(200, 216))
    return head + struct.pack("<II", crc32c(head), 9)


def replica():
    """word | 7 reserved | 8 plane refs, tier 2"""
    word = GENERATION << 32 | 1 << 16 | 0x03
    refs = b"".join(plane_ref(p, 2) for p in range(2)) + bytes(6 * 24)
    return struct.pack("<Q", word) + bytes(56) + refs


def bucket():
    slots = [0, 41, 4095, 0, 0, 0, 0]
    tag = struct.unpack("<I", KEY[8:12])[0]
    return struct.pack("<7Q", *[tag << 32 | s + 1 if s else 0 for s in slots]) + struct.pack("<Q", 5)


def pins():
    return b"KVGPINPG" + struct.pack("<7I", 2, 1024, 256, 128, 8320, 10368, 17) + bytes(28) + struct.pack("<Q", 99) + bytes(56)


def align(data):
    return data + bytes(-len(data) % 64)


def plane(opaque):
    """2 runs of a block of 5 tokens, rows of 4 and 2 bytes; or 100 opaque bytes."""
    if opaque:
        sections = [b"", struct.pack("<5I", *range(5)), b"", b"", bytes(range(100)), b""]
        runs, pairs, k_row, v_row = 0, 0, 100, 0
    else:
        sections = [struct.pack("<3I", 0, 2, 3), struct.pack("<5I", *range(10, 15)), struct.pack("<3H", 4, 0, 2),
                    struct.pack("<3H", 0x7c00, 0x3800, 0x3400), bytes(range(12)), bytes(range(50, 56))]
        runs, pairs, k_row, v_row = 2, 3, 4, 2
    body = b"".join(align(s) for s in sections)
    head = b"KVGPLANE" + struct.pack("<4H", 2, 0, 1 if opaque else 7, 1 if opaque else 0) + FINGERPRINT + KEY
    head += struct.pack("<6IQIfI", runs, 5, pairs, 5, k_row, v_row, 128 + len(body), crc32c(body), .5, 0)
    return head + struct.pack("<I", crc32c(head)) + body


# ---- identity ----

def key(parent, fingerprint, tokens):
    return hashlib.sha256(parent + fingerprint + struct.pack(f"<{len(tokens)}I", *tokens)).digest()


def fingerprint():
    """One field: tag u32, length u32, bytes; numbers as u64."""
    numbers = {3: 36, 4: 8, 5: 128, 6: 64, 7: 1, 8: 256, 9: 0, 10: 1, 11: 2}
    strings = {1: b"Qwen/Qwen3-8B", 2: b"r1", 12: b"theta=1e6", 13: b"", 14: b"engine", 15: bytes(range(32)),
               16: struct.pack("<2f", .5, .25)}
    fields = {**{t: struct.pack("<Q", v) for t, v in numbers.items()}, **strings}
    return hashlib.sha256(b"kvgate.v1 layout" + b"".join(
        struct.pack("<II", tag, len(fields[tag])) + fields[tag] for tag in sorted(fields))).digest()


def other_lines():
    yield "shm.index", index()
    yield "shm.bucket", bucket()
    yield "shm.replicas", replicas()
    yield "shm.replica", replica()
    yield "shm.plane_ref", plane_ref(3)
    yield "shm.entry", entry()
    yield "shm.pins", pins()
    yield "shm.plane", plane(False)
    yield "shm.plane_opaque", plane(True)
    parent = bytes(32)
    for i, n in enumerate((1, 16, 256, 0)):
        parent = key(parent, FINGERPRINT, [(i * 1000 + t * 7919) & 0xffffffff for t in range(n)])
        yield f"key.chain{i}", parent
    yield "key.fingerprint", fingerprint()


# ---- numbers that were given out ----

def errors():
    with open(os.path.join(TOP, "proto", "kvgate-errors.def")) as f:
        return re.findall(r'^KVG_ERROR\((\d+), (\w+), "(.*)"\)$', f.read(), re.M)


def field_lines():
    messages, enums = parse()
    for name, fields in messages.items():
        for number, field, kind, repeated, _ in fields:
            yield f"{name} {number} {field} {'repeated-' if repeated else ''}{kind}"
    for name, values in enums.items():
        for number, value in values:
            yield f"{name} {number} {value} value"
    for number, name, _ in errors():
        yield f"error {number} {name} code"


def render(what):
    if what == "bytes":
        return "".join(f"{name} {data.hex() or '-'}\n" for lines in (message_lines(), other_lines()) for name, data in lines)
    if what == "fields":
        return "# SPDX-License-Identifier: Apache-2.0\n# message or enum, number, name, type. Lines are added, never changed; " \
            "`reserved` as type: retired.\n" + "".join(line + "\n" for line in field_lines())
    if what == "errors":
        return "".join(f"| {number} | {name} | {prose} |\n" for number, name, prose in errors())
    sys.exit(__doc__)


if __name__ == "__main__":
    sys.stdout.write(render(sys.argv[1] if len(sys.argv) > 1 else ""))
