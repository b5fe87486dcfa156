"""The sandbox: what a process needs after its start, and the loss of everything else.

The settings and the filters of a process declare its `Needs`. `confinement` then takes away what
was not declared, by the means of the operating system, before smtpd sends the first event.

Invariants
----------
*Refused, never killed*: whatever a policy tries, it gets an exception (PermissionError, or
MemoryError and OSError at a limit), and the process goes on.
*Degrades*: a missing part is returned for the log and costs the other parts nothing. Only
`--sandbox strict` requires all of them.
*Lazy*: with `--sandbox off` nothing of this is imported, and only one system's modules otherwise.

`confinement` sets the limits of the process, and calls the kernel, through `libc`: on Linux
`landlock` for files and ports and `seccomp` for system calls, on the others `openbsd` and
`freebsd`. `audit` explains refusals, and checks files and hosts more exactly than a kernel can.
"""

from __future__ import annotations

from .needs import Needs

__all__ = ["Needs"]
