# SPDX-License-Identifier: Apache-2.0
"""What the cases do to the sandbox's systemd, and ask of it."""
import contextlib
import json
import os
import subprocess
import time

CONFIG = "[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 65536\n"
PATIENCE = 20  # seconds, for anything that has to come; the machine may be busy
SOCKET = "/run/kvgated/kvgated.sock"
UNIT = "kvgated.service"


class Failed(Exception):
    pass


def check(truth, text):
    if not truth:
        raise Failed(text)


def equal(seen, wanted, what):
    check(seen == wanted, f"{what}: {seen!r}, not {wanted!r}")


def run(*argv, **kwargs):
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE * 2, **kwargs)


def systemctl(*argv):
    done = run("systemctl", *argv)
    check(done.returncode == 0, f"systemctl {' '.join(argv)}: {done.stderr.strip()}")


def show(name, unit=UNIT):
    return run("systemctl", "show", "-P", name, unit).stdout.strip()


def main_pid(unit=UNIT):
    return int(show("MainPID", unit))


def until(condition, what):
    """Returns what the condition gives once it is true."""
    end = time.monotonic() + PATIENCE
    while not (result := condition()):
        check(time.monotonic() < end, f"waited {PATIENCE} s for {what}")
        time.sleep(0.02)
    return result


def is_active(unit=UNIT):
    return show("ActiveState", unit) == "active"


def replaced(pid, unit=UNIT):
    """Waits until another daemon serves; its pid."""
    until(lambda: is_active(unit) and main_pid(unit) not in (0, pid), f"another daemon than {pid}")
    return main_pid(unit)


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def journal(unit=UNIT):
    """Lines of the daemon itself as dictionaries, of this boot."""
    run("journalctl", "--sync")
    lines = run("journalctl", "-o", "json", f"_SYSTEMD_UNIT={unit}").stdout.splitlines()
    return [json.loads(line) for line in lines]


def logged(text, unit=UNIT):
    return [line for line in journal(unit) if text in line["MESSAGE"]]


class Client:
    """One `kvgate-attached`, as a user of its own."""

    def __init__(self, user="kvgate-member", socket=SOCKET):
        self.process = subprocess.Popen(
            ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "kvgate-attached"], text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "KVGATE_SOCKET": socket})

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        answer = self.process.stdout.readline().strip()
        check(answer, f"the client ended at `{command}`: a wrong byte, or a crash")
        return answer

    def expect(self, command, wanted):
        equal(self.ask(command), wanted, command)

    def end(self):
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        self.process.kill()


@contextlib.contextmanager
def client(*args, **kwargs):
    c = Client(*args, **kwargs)
    try:
        yield c
    finally:
        c.end()


def fresh():
    """Sockets listening, nothing running, no failure counted, the configuration of the tests."""
    run("systemctl", "stop", "kvgated*.service", "kvgated*.socket")
    run("systemctl", "reset-failed")
    write("/etc/kvgated/kvgated.conf", CONFIG)
    # the unit's 30 s would be most of the time that all cases take
    write("/etc/systemd/system/kvgated.service.d/watchdog.conf", "[Service]\nWatchdogSec=2\n")
    systemctl("daemon-reload")
    systemctl("start", "kvgated.socket")
