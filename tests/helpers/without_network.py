"""Run a command where no network can be reached: `python tests/helpers/without_network.py COMMAND ...`.

The command gets a network namespace of its own (Linux), in which only the loopback device exists; notebooks need it to
talk to their kernels.
"""

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
PREFIX = ["unshare", "--map-root-user", "--net", sys.executable, __file__]


def possible() -> bool:
    """Whether this system lets us make a network namespace."""
    if sys.platform != "linux" or not shutil.which("unshare"):
        return False
    return subprocess.run([*PREFIX, "true"], capture_output=True, check=False).returncode == 0


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        request = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(device, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(device, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))


if __name__ == "__main__":
    raise_loopback()
    os.execvp(sys.argv[1], sys.argv[1:])
