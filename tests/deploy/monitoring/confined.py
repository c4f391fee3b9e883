"""confined.py UNIT COMMAND...: runs a command under the system call filter of a systemd unit, without systemd.

What systemd does with SystemCallFilter= is done here with the same library: every system call that the unit does not name fails
with EPERM. What the groups such as @system-service hold is asked of systemd-analyze.
"""

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

ALLOW = 0x7FFF0000
FAIL = 0x00050000 | errno.EPERM
NO_NEW_PRIVS = 38


def groups() -> dict[str, list[str]]:
    """The groups of system calls, by name."""
    environment = os.environ | {"SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    said = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True, env=environment).stdout
    found: dict[str, list[str]] = {}
    members: list[str] = []
    for line in said.splitlines():
        word = line.strip()
        if line.startswith("@"):
            members = found.setdefault(word, [])
        elif line.startswith(" ") and word and not word.startswith("#"):
            members.append(word)
    return found


def allowed(unit: Path) -> set[str]:
    """The system calls that a unit lets pass; its first filter must be a list of what is allowed."""
    known = groups()

    def members(name: str) -> set[str]:
        return set().union(*map(members, known[name])) if name.startswith("@") else {name}

    calls: set[str] = set()
    filters = [line.split("=", 1)[1].split() for line in unit.read_text().splitlines() if line.startswith("SystemCallFilter=")]
    if not filters or filters[0][0].startswith("~"):
        raise SystemExit(f"{unit} does not list the system calls that it allows")
    for words in filters:
        named = set().union(*(members(word.removeprefix("~")) for word in words))
        calls = calls - named if words[0].startswith("~") else calls | named
    return calls


def confine(calls: set[str]) -> None:
    seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_init.argtypes = [ctypes.c_uint32]
    seccomp.seccomp_rule_add_array.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
    seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
    seccomp.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    rules = seccomp.seccomp_init(FAIL)
    for call in calls:
        number = seccomp.seccomp_syscall_resolve_name(call.encode())
        # Some are of other architectures only.
        if number >= 0 and seccomp.seccomp_rule_add_array(rules, ALLOW, number, 0, None) != 0:
            raise SystemExit(f"cannot allow {call}")
    if ctypes.CDLL(None).prctl(NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or seccomp.seccomp_load(rules) != 0:
        raise SystemExit("cannot load the filter")


if __name__ == "__main__":
    confine(allowed(Path(sys.argv[1])))
    os.execvp(sys.argv[2], sys.argv[2:])
