# SPDX-License-Identifier: Apache-2.0
"""What the units forbid, and that they allow what the daemon needs."""
import glob
import json
import os
import re
import signal

from machine import SOCKET, UNIT, check, client, equal, main_pid, run, show, systemctl, until, write

EXPOSURE_MAX = 2.0
STORE = "kvgated@store.service"
STORED = 500


def case_units():
    """systemd has nothing to say against the units, and little against what they leave open; the drop-ins fit them."""
    units = ["kvgated.service", "kvgated.socket", "kvgated@a.service", "kvgated@a.socket", "kvgate.slice"]
    done = run("systemd-analyze", "verify", "--man=no", *units)
    equal((done.returncode, done.stdout + done.stderr), (0, ""), "systemd-analyze verify")
    for unit in ("kvgated.service", "kvgated@a.service"):
        text = run("systemd-analyze", "security", unit).stdout
        found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
        check(found, f"systemd-analyze security {unit}: {text}")
        check(float(found.group(1)) <= EXPOSURE_MAX, f"exposure of {unit} is {found.group(1)}")
    examples = glob.glob("/usr/share/doc/kvgate/examples/*.conf")
    equal(len(examples), 2, "drop-ins")
    for path in examples:
        with open(path, encoding="utf-8") as f:
            write("/etc/systemd/system/kvgated.service.d/" + os.path.basename(path), f.read())
        done = run("systemd-analyze", "verify", "--man=no", UNIT)
        os.unlink("/etc/systemd/system/kvgated.service.d/" + os.path.basename(path))
        equal((done.returncode, done.stdout + done.stderr), (0, ""), f"verify with {path}")


def read(pid, name):
    with open(f"/proc/{pid}/{name}", encoding="utf-8") as f:
        return f.read().strip()


def limits_of(pid):
    """{name: (soft, hard)}"""
    return {m[1]: (m[2], m[3]) for m in re.finditer(r"^(\S+(?: \S+)*) {2,}(\S+) +(\S+)", read(pid, "limits"), re.M)}


def status(pid):
    return dict(line.split(":\t", 1) for line in read(pid, "status").split("\n") if ":\t" in line)


def may_raise_limits():
    """Whether the sandbox's root has CAP_SYS_RESOURCE; without it, no unit gets more than what it inherits."""
    return bool(int(status(1)["CapEff"], 16) >> 24 & 1)


def case_confined():
    """What the daemon has is what the unit gives it."""
    with client() as c:
        c.expect("open", "open")
        pid = main_pid()
        s = status(pid)
        equal((s["NoNewPrivs"], s["Seccomp"]), ("1", "2"), "NoNewPrivs, Seccomp")
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            equal(int(s[name], 16), 0, name)
        limits, inherited = limits_of(pid), limits_of(1)
        equal((show("LimitMEMLOCK"), show("LimitNOFILE"), show("OOMScoreAdjust")), ("infinity", "524288", "-500"), "limits")
        if may_raise_limits():
            equal((limits["Max locked memory"][1], limits["Max open files"][1]), ("unlimited", "524288"), "hard limits")
            equal(read(pid, "oom_score_adj"), "-500", "OOM score")
        else:
            equal(limits["Max locked memory"][1], inherited["Max locked memory"][1], "LimitMEMLOCK as far as it goes here")
        equal(*limits["Max open files"], "open files: the daemon raises the limit as far as it may")
        equal(read(pid, "coredump_filter"), "00000011", "what a core holds")
        for name in ("net", "ipc", "mnt"):
            check(os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/1/ns/{name}"), f"namespace {name} is the machine's")
        equal((show("FileDescriptorStoreMax"), show("OOMPolicy")), ("16384", "continue"), "store, OOM policy")
        equal((show("MemorySwapMax", "kvgate.slice"), show("MemoryMax", "kvgate.slice") != "infinity"), ("0", True), "slice")
        check(os.path.exists(SOCKET), "socket")


def case_probe():
    """Another program under the very settings of the unit tries what must work, and what must not."""
    write("/etc/systemd/system/kvgated@probe.service.d/probe.conf",
          "[Service]\nType=oneshot\nRestart=no\nExecStart=\nExecStart=/usr/bin/python3 -B /usr/lib/kvgate-probe.py\n"
          f"Environment=MAY_RAISE={int(may_raise_limits())}\n")
    systemctl("daemon-reload")
    run("systemctl", "start", "kvgated@probe.service")
    until(lambda: show("ActiveState", "kvgated@probe.service") in ("inactive", "failed"), "the probe's end")
    path = "/var/lib/kvgated/probe/result"
    check(os.path.exists(path), "the probe has left nothing in its state folder")
    with open(path, encoding="utf-8") as f:
        seen = json.load(f)
    with open("/usr/lib/kvgate-probe.py", encoding="utf-8") as f:
        check(len(seen) == f.read().count("@probe("), "the probe did not try everything")
    wrong = {name: result for name, result in seen.items() if result["seen"] not in result["wanted"]}
    equal(wrong, {}, "probe")


def stored(pid):
    """What the program of case_store has found when it was started after `pid`."""
    path = "/var/lib/kvgated/store/result"

    def read_result():
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    until(lambda: os.path.exists(path) and read_result()["pid"] != pid and show("ActiveState", STORE) == "active", "the next one")
    return read_result()


def case_store():
    """The unit keeps file descriptors with what they hold, as many as it says, through kill -9 and a restart."""
    # fewer than the unit's own: systemd compares each with all that it has, which for those would take minutes
    write(f"/etc/systemd/system/{STORE}.d/store.conf", f"[Service]\nFileDescriptorStoreMax={STORED}\nExecStart=\n"
          f"ExecStart=/usr/bin/python3 -B /usr/lib/kvgate-store.py {STORED + 10}\n")
    systemctl("daemon-reload")
    systemctl("start", STORE)
    seen = stored(0)
    equal((seen["back"], seen["sockets"]), (0, 1), "the first start")
    for kill in (lambda: os.kill(main_pid(STORE), signal.SIGKILL), lambda: systemctl("restart", STORE)):
        kill()
        seen = stored(seen["pid"])
        equal((seen["back"], seen["right"], seen["sockets"]), (STORED, STORED, 1), "what came back")
    systemctl("stop", STORE)
