# SPDX-License-Identifier: Apache-2.0
"""Runs in place of the daemon, under the unit's settings; leaves {what: {seen, wanted}} in the state folder.

System calls are made with arguments that get no further than the first check, so the answer tells the filter's no (EPERM)
from the kernel's own.
"""
import ctypes
import errno
import json
import mmap
import os
import signal
import socket

libc = ctypes.CDLL(None, use_errno=True)
results = {}


def syscall(number, *args):
    r = libc.syscall(number, *[ctypes.c_long(a) for a in args])
    return "ok" if r >= 0 else errno.errorcode[ctypes.get_errno()]


def probe(name, *wanted):
    def run(fn):
        try:
            seen = fn() or "ok"
        except OSError as e:
            seen = errno.errorcode[e.errno]
        results[name] = {"seen": seen, "wanted": wanted}
    return run


# ---- what the daemon needs ----

# EPERM would be the filter's answer, and the kernel's where io_uring is switched off; then no unit can help
@probe("io_uring_setup", "EFAULT", *(["EPERM"] if os.access("/proc/sys/kernel/io_uring_disabled", os.R_OK) else []))
def _():
    return syscall(425, 1, 0)


@probe("io_uring_enter", "EBADF", "EOPNOTSUPP")
def _():
    return syscall(426, -1, 0, 0, 0, 0, 0)


@probe("io_uring_register", "EBADF", "EINVAL")
def _():
    return syscall(427, -1, 0, 0, 0)


@probe("mbind", "EINVAL")
def _():
    return syscall(237, 1, 1, 2, 0, 0, 0)


@probe("pidfd_open", "ok")
def _():
    os.close(os.pidfd_open(os.getpid()))


# ENOMEM: over the limit, which a root without CAP_SYS_RESOURCE cannot raise for the unit
@probe("64 MiB of locked memory", "ok", *([] if os.environ["MAY_RAISE"] == "1" else ["ENOMEM"]))
def _():
    page = mmap.mmap(-1, 64 << 20)
    return syscall(149, ctypes.addressof(ctypes.c_char.from_buffer(page)), 64 << 20)


@probe("a memfd with a mode, sealed, opened again to be read", "ok")
def _():
    fd = os.memfd_create("probe", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.fchmod(fd, 0o600)
    os.truncate(fd, 4096)
    import fcntl
    fcntl.fcntl(fd, 1033, 1)  # F_ADD_SEALS, F_SEAL_SEAL
    os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))


@probe("a file of the state folder, preallocated, O_DIRECT", "ok", "EINVAL")  # EINVAL: a file system without O_DIRECT
def _():
    fd = os.open(os.environ["STATE_DIRECTORY"] + "/disk", os.O_RDWR | os.O_CREAT, 0o600)
    os.posix_fallocate(fd, 0, 1 << 20)
    os.close(os.open(os.environ["STATE_DIRECTORY"] + "/disk", os.O_RDWR | os.O_DIRECT))


@probe("the configuration", "ok")
def _():
    open("/etc/kvgated/kvgated.conf", encoding="utf-8").close()


@probe("its control group", "ok")
def _():
    with open("/proc/self/cgroup", encoding="utf-8") as f:
        return "ok" if "/kvgate.slice/" in f.read() and os.path.exists("/sys/fs/cgroup/cgroup.procs") else "another"


# ---- what nobody who took it over may have ----

def writable(*paths):
    return " ".join(p for p in paths if not os.statvfs(p).f_flag & os.ST_RDONLY)


@probe("a file system that it could write to", "ok")
def _():
    return writable("/", "/usr", "/etc", "/etc/kvgated", "/run", "/var", "/var/lib", "/sys", "/sys/fs/cgroup")


@probe("the state folders of others", "ok")
def _():
    return writable("/var/lib/kvgated")


@probe("the configuration, to be written", "EACCES", "EROFS")
def _():
    open("/etc/kvgated/kvgated.conf", "a", encoding="utf-8").close()


@probe("the internet", "EAFNOSUPPORT")
def _():
    socket.socket(socket.AF_INET)


@probe("homes", "EACCES")
def _():
    os.listdir("/root")


@probe("other processes", "1")
def _():
    # its own, and none of another user's
    return str(len([p for p in os.listdir("/proc") if p.isdigit()]))


@probe("devices", "few")
def _():
    names = set(os.listdir("/dev"))
    return "few" if names <= {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "hugepages", "fd",
                              "stdin", "stdout", "stderr", "log", "core", "char", "block"} else " ".join(sorted(names))


@probe("memory that is written and executed", "EPERM")
def _():
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


@probe("a namespace", "EPERM")
def _():
    return syscall(272, 0x10000000)  # unshare, CLONE_NEWUSER


@probe("ptrace", "EPERM")
def _():
    return syscall(101, 0, 0, 0, 0)


@probe("mount", "EPERM")
def _():
    return syscall(165, 0, 0, 0, 0, 0)


@probe("bpf", "EPERM")
def _():
    return syscall(321, 0, 0, 0)


@probe("a priority", "EPERM")
def _():
    return syscall(141, 0, 0, -5)


@probe("chown", "EPERM")
def _():
    os.chown(os.environ["STATE_DIRECTORY"], os.getuid(), os.getgid())


@probe("a program of another user's rights", "EPERM")
def _():
    os.chmod(os.environ["STATE_DIRECTORY"], 0o4700)


@probe("a signal to init", "EPERM", "ESRCH")
def _():
    os.kill(1, signal.SIGTERM)


with open(os.environ["STATE_DIRECTORY"] + "/result", "w", encoding="utf-8") as f:
    json.dump(results, f)
