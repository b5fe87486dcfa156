"""Count the connections that a listener has not accepted yet, by Linux's sock_diag(7).

/proc/net/tcp has the number, too. But it lists all connections after the listeners, and on a
machine with much memory the kernel takes milliseconds to search its table for them, even if it is
empty.
"""

from __future__ import annotations

import socket
import struct

#: The family, type and protocol of a socket for `count_waiting`, which asks about the network that
#: the socket was made in: Linux's AF_NETLINK, which the socket module of other systems lacks, and
#: NETLINK_SOCK_DIAG of linux/netlink.h.
DIAGNOSIS = (16, socket.SOCK_RAW, 4)

_SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
_REQUEST_ALL = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_LISTEN = 10  # TCP_LISTEN of include/net/tcp_states.h

#: nlmsghdr: length, type, flags, sequence, port.
_HEADER = struct.Struct("=IHHII")
#: inet_diag_req_v2: family, protocol, extensions, states; any addresses.
_REQUEST = struct.Struct("=BBBxI48x")
#: inet_diag_msg: family, state, timer, retransmissions, own port (in network order), the other
#: port, addresses and more, and, of a listener, the connections that wait.
_LISTENER = struct.Struct("=4B2s50xI")
_RECEIVED = 1 << 16


def count_waiting(diagnosis: socket.socket, family: int, port: int) -> int:
    """Return the most connections that wait at a TCP listener of this family on this port.

    0 without such a listener, or where the kernel can't tell.
    """
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _LISTEN)
    size = _HEADER.size + len(request)
    diagnosis.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _REQUEST_ALL, 0, 0) + request)
    number = port.to_bytes(2, "big")
    most = 0
    while True:
        received = memoryview(diagnosis.recv(_RECEIVED))
        while received:
            length, kind, *_ = _HEADER.unpack_from(received)
            if kind in {_ERROR, _DONE}:
                return most
            *_, own, waiting = _LISTENER.unpack_from(received, _HEADER.size)
            if own == number:
                most = max(most, waiting)
            received = received[length + 3 & ~3 :]  # NLMSG_ALIGN
