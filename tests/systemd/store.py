# SPDX-License-Identifier: Apache-2.0
"""Runs in place of the daemon, under the unit's settings: parks N memfds in systemd's store, and says in the state folder
how many of them came back from the last run with what was in them. N is the argument."""
import array
import json
import os
import signal
import socket
import sys

N = int(sys.argv[1])
names = os.environ.get("LISTEN_FDNAMES", "").split(":")
back = {name: os.pread(3 + i, 64, 0).decode() for i, name in enumerate(names) if name.startswith("kvg-")}
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])


def park(name, content):
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(fd, content.encode())
    notify.sendmsg([f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}".encode()],
                   [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    os.close(fd)


if not back:
    for n in range(N):
        park(f"kvg-{n}", f"what {n} holds")
with open(os.environ["STATE_DIRECTORY"] + "/result.new", "w", encoding="utf-8") as f:
    right = sum(back.get(f"kvg-{n}") == f"what {n} holds" for n in range(N))
    json.dump({"pid": os.getpid(), "back": len(back), "right": right, "sockets": len(names) - len(back)}, f)
os.rename(f.name, os.environ["STATE_DIRECTORY"] + "/result")
notify.send(b"READY=1")
signal.pause()
