# SPDX-License-Identifier: Apache-2.0
"""What kvgated.service and its kin promise, one case each; runs as a service of the sandbox. /kvgate-test/wanted: names.

KEEPS says whether what is in memory outlives the daemon. Until it does, a client sees ECONNRESET, from then on ENOTCONN, and, after it has connected
again, a miss; then neither may happen: the old session, the old pin and the old bytes are there as if nothing had been.
"""
import os
import re
import signal
import sys
import time
import traceback

from machine import SOCKET, UNIT, Failed, check, client, equal, fresh, is_active, journal, logged, main_pid, replaced, run, \
    show, systemctl, until, write
from confined import case_confined, case_probe, case_store, case_units

KEEPS = True
DEB = "/kvgate-test/kvgate.deb"  # then nothing is installed but by case_package


def survived(c, seed):
    """After the daemon was exchanged: client c holds block `seed`, put by itself."""
    c.expect("held", "same")  # whatever becomes of the daemon
    if KEEPS:
        c.expect("ping", "there")
        c.expect(f"get {seed}", "same")
        c.expect(f"put {seed}", "EXISTS")
        return
    c.expect("ping", "ECONNRESET")
    c.expect(f"get {seed}", "ENOTCONN")
    c.expect("held", "same")
    c.expect("open", "open")
    c.expect(f"get {seed}", "miss")
    c.expect(f"put {seed}", "OK")
    c.expect(f"get {seed}", "same")


def attach(c, seed):
    c.expect("open", "open")
    c.expect(f"put {seed}", "OK")
    c.expect(f"hold {seed}", "same")


def case_activation():
    """The first client that connects starts the daemon, and is served; systemd knows its state."""
    check(not is_active(), "it runs before anybody asked for it")
    with client() as c:
        attach(c, 1)
        equal((show("ActiveState"), show("SubState"), show("Result")), ("active", "running", "success"), "state")
        until(lambda: re.match(r"1 sessions of 1 tenants", show("StatusText")), "STATUS= that names the session")
        equal(show("NRestarts"), "0", "restarts")
        equal(show("Slice"), "kvgate.slice", "slice")
        systemctl("is-active", "kvgated.socket")


def case_ready():
    """`systemctl start` comes back when it serves, and not before: a start that fails is told as such, with the reason."""
    systemctl("start", UNIT)
    check(is_active(), "not active after start")
    systemctl("stop", UNIT)
    write("/etc/kvgated/kvgated.conf", "[memory]\nhost_bytes = much\n")
    check(run("systemctl", "start", UNIT).returncode != 0, "start with a broken configuration succeeds")
    until(lambda: show("ActiveState") == "failed", "it gives up")
    check(logged("kvgated.conf:2:"), "the journal does not name the line")


def case_broken():
    """Who starts a daemon that cannot run is told soon, and does not wait for it until his time is up; mended, it serves."""
    write("/etc/kvgated/kvgated.conf", "[memory]\nhost_bytes = much\n")
    with client() as c:
        c.expect("open", "ECONNRESET")  # ETIMEDOUT would be his time
        equal(show("Result", "kvgated.socket"), "service-start-limit-hit", "the socket")
        c.expect("open", "ENOENT")
        fresh()
        attach(c, 1)


def case_watchdog():
    """A daemon that stands still is ended within the watchdog's time, and another one serves."""
    with client() as c:
        attach(c, 7)
        pid = main_pid()
        os.kill(pid, signal.SIGSTOP)
        replaced(pid)
        check("watchdog" in run("journalctl", "-u", UNIT, "-o", "cat").stdout.lower(), "systemd does not say it was the watchdog")
        equal(show("NRestarts"), "1", "restarts")
        survived(c, 7)


def case_fed():
    """One that works outlives its watchdog's time."""
    with client() as c:
        attach(c, 8)
        pid = main_pid()
        time.sleep(3.5)
        equal((main_pid(), show("NRestarts")), (pid, "0"), "pid, restarts")
        c.expect("ping", "there")


def case_restart():
    """systemctl restart, twice, under two clients that stay attached."""
    with client() as a, client() as b:
        attach(a, 20)
        attach(b, 21)
        for _ in range(2):
            pid = main_pid()
            systemctl("restart", UNIT)
            check(is_active() and main_pid() != pid, "not another daemon")
            survived(a, 20)
            survived(b, 21)
            a.expect("hold 20", "same")
            b.expect("hold 21", "same")
        a.expect("get 21", "same")


def case_killed():
    """kill -9, twice."""
    with client() as a, client() as b:
        attach(a, 30)
        attach(b, 31)
        for _ in range(2):
            pid = main_pid()
            os.kill(pid, signal.SIGKILL)
            replaced(pid)
            survived(a, 30)
            survived(b, 31)
            a.expect("hold 30", "same")
            b.expect("hold 31", "same")


def case_stop():
    """Stop is clean and leaves the socket: who connects next starts it again, empty. Without the socket nobody is there."""
    with client() as c, client() as late:
        attach(c, 40)
        systemctl("stop", UNIT)
        equal((show("ActiveState"), show("Result"), show("ExecMainStatus")), ("inactive", "success", "0"), "after stop")
        check(logged("going down"), "the journal does not say that it goes down")
        c.expect("held", "same")
        c.expect("ping", "ECONNRESET")
        late.expect("open", "open")
        check(is_active(), "not started again by a client")
        late.expect("get 40", "miss")
        systemctl("stop", "kvgated.socket", UNIT)
        check(not os.path.exists(SOCKET), "the socket is there still")
        late.expect("open", "ENOENT")


def case_reload():
    """systemctl reload takes over what is right, and refuses what is wrong as a whole; sessions do not notice."""
    with client() as c:
        attach(c, 50)
        pid = main_pid()
        with open("/etc/kvgated/kvgated.conf", "a", encoding="utf-8") as f:
            f.write("floor = 0.5\n")
        systemctl("reload", UNIT)
        until(lambda: logged("parameter changed name=floor"), "the parameter")
        write("/etc/kvgated/kvgated.conf", "[memory]\nfloor = deep\n")
        systemctl("reload", UNIT)
        until(lambda: logged("configuration not taken over"), "the refusal")
        until(is_active, "active")
        equal(main_pid(), pid, "pid")
        c.expect("get 50", "same")


def case_instance():
    """kvgated@NAME: a socket, a configuration, folders and blocks of its own; it stops and dies alone."""
    unit, sock = "kvgated@two.service", "/run/kvgated/two/kvgated.sock"
    write("/etc/kvgated/two/kvgated.conf", "[memory]\nhost_bytes = 32MiB\nsegment_bytes = 4MiB\nindex_slots = 65536\n")
    systemctl("start", "kvgated@two.socket")
    with client() as first, client(socket=sock) as second:
        attach(first, 60)
        second.expect("open", "open")
        second.expect("get 60", "miss")
        attach(second, 61)
        first.expect("get 61", "miss")
        check(logged('host_bytes=32MiB config="/etc/kvgated/two/kvgated.conf"', unit), "not its own configuration")
        check(logged("host_bytes=64MiB"), "the first one has not its own configuration")
        equal((show("Slice", unit), show("WatchdogUSec", unit)), ("kvgate.slice", "30s"), "slice, watchdog (not the tests' own)")
        pid = main_pid(unit)
        os.kill(pid, signal.SIGKILL)
        replaced(pid, unit)
        survived(second, 61)
        first.expect("ping", "there")
        systemctl("stop", "kvgated@two.socket", unit)
        second.expect("open", "ENOENT")
        first.expect("get 60", "same")
    for path, mode in (("/var/lib/kvgated", 0o700), ("/var/lib/kvgated/two", 0o700)):
        equal(os.stat(path).st_mode & 0o777, mode, path)


def case_stranger():
    """Who is not in the group does not get in, by the socket's mode; and does not start the daemon either."""
    with client("kvgate-stranger") as stranger:
        stranger.expect("open", "EACCES")
        check(not is_active(), "a stranger has started it")
        with client() as c:
            attach(c, 70)
            stranger.expect("open", "EACCES")
    equal(os.stat(SOCKET).st_mode & 0o777, 0o660, "mode of the socket")


def case_journal():
    """Each event is one entry: its level in PRIORITY, the rest as key=value, under the unit's name."""
    with client() as c:
        attach(c, 80)
    write("/etc/kvgated/kvgated.conf", "[memory]\nfloor = deep\n")
    systemctl("reload", UNIT)
    until(lambda: logged("configuration not taken over"), "the error")
    lines = journal()
    for line in lines:
        equal(line["SYSLOG_IDENTIFIER"], "kvgated", line["MESSAGE"])
        check(re.fullmatch(r'(error|warning|info|debug) [^=]+( [a-z_]+=("[^"]*"|[^ "]+))*', line["MESSAGE"]),
              f"not `level text key=value ...`: {line['MESSAGE']}")
        level = line["MESSAGE"].split()[0]
        equal(line["PRIORITY"], {"error": "3", "warning": "4", "info": "6", "debug": "7"}[level], line["MESSAGE"])
    equal({line["MESSAGE"].split()[0] for line in lines} >= {"error", "info"}, True, "levels seen")


def dpkg(*argv):
    done = run("dpkg", "--no-triggers", *argv)  # those of other packages, such as man-db's, would take most of the time
    check(done.returncode == 0, f"dpkg {argv}: {done.stdout}{done.stderr}")


def case_package():
    """Installed, it serves who connects; upgraded, another daemon does; removed, nobody is there; purged, nothing is left."""
    dpkg("-i", DEB)
    equal(run("systemctl", "is-enabled", "kvgated.socket").stdout.strip(), "enabled", "the socket")
    check(not is_active(), "it runs before anybody asked for it")
    with client() as c:
        attach(c, 90)
        pid = main_pid()
        systemctl("disable", "kvgated.socket")
        dpkg("-i", DEB)
        check(replaced(pid) != pid, "the old daemon serves still")
        equal(run("systemctl", "is-enabled", "kvgated.socket").stdout.strip(), "disabled", "what the administrator decided")
        survived(c, 90)
        c.expect("hold 90", "same")
        dpkg("-r", "kvgate")
        check(not is_active() and not os.path.exists(SOCKET), "it serves still")
        c.expect("held", "same")
        check(os.path.exists("/etc/kvgated/kvgated.conf") and os.path.exists("/var/lib/kvgated"), "more is gone than the program")
        dpkg("-P", "kvgate")
        check(not os.path.exists("/var/lib/kvgated") and not os.path.exists("/etc/kvgated/kvgated.conf"), "left behind")


def main():
    with open("/kvgate-test/wanted", encoding="utf-8") as f:
        wanted = f.read().split()
    passed = failed = 0
    for name, case in list(globals().items()):
        if not name.startswith("case_") or wanted and name[5:] not in wanted:
            continue
        if (case is case_package) != os.path.exists(DEB):
            continue
        start, why = time.monotonic(), None
        try:
            if case is not case_package:
                fresh()
            case()
        except Failed as e:
            why = f"{e} (line {traceback.extract_tb(e.__traceback__)[1].lineno})"
        except Exception:  # pylint: disable=broad-except
            why = traceback.format_exc()
        passed, failed = passed + (not why), failed + bool(why)
        print(f"{'FAIL' if why else 'ok':5} {name[5:]:12} {time.monotonic() - start:5.1f}s {why or ''}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return failed > 0 or not passed


sys.exit(main())
