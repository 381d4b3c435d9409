"""What a governed process does in the kernel tests: waits for a line on stdin, connects, and prints what it saw."""

import ctypes
import errno
import os
import socket
import struct
import sys
import threading
import time

TIMEOUT_S = 20


def opened(ip, protocol=0):
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, protocol)
    sock.settimeout(TIMEOUT_S)
    return sock


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def talk(sock, ip, port):
    """Prints the peer's name as we see it, our own port, and the one line that the proxy says."""
    try:
        sock.connect((ip, int(port)))
        peer, own = sock.getpeername(), sock.getsockname()
        line = sock.makefile().readline().strip()
        print(f"peer={peer[0]},{peer[1]} own={own[1]} {line}", flush=True)
    except OSError as error:
        name = "TIMEOUT" if isinstance(error, TimeoutError) else errno.errorcode.get(error.errno, "?")
        # A reset that came before we asked for the peer's name.
        name = "ECONNRESET" if name == "ENOTCONN" else name
        print(f"error={name}", flush=True)
    finally:
        sock.close()


def connect(ip, port):
    talk(opened(ip), ip, port)


def each(port, *hosts):
    """A line for each."""
    for host in hosts:
        talk(opened(host), host, port)


def held(ip, port):
    """Says something and, at the next line of stdin, goes away without waiting for an answer."""
    sock = opened(ip)
    sock.connect((ip, int(port)))
    sock.sendall(b"never to arrive")
    sys.stdin.readline()
    reset(sock)
    print("reset", flush=True)


def again(ip, port, other_ip, other_port):
    """One socket, two connects: what the first left behind must not show in the second."""
    sock = opened(ip)
    sock.connect((ip, int(port)))
    sock.makefile().readline()
    # A connect to AF_UNSPEC dissolves the association; Python has no way to say it.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16) != 0:
        raise OSError(ctypes.get_errno(), "dissolve")
    talk(sock, other_ip, other_port)


def bound(ip, port, source, source_port):
    sock = opened(ip)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((source, int(source_port)))
    talk(sock, ip, port)


def bound_alone(ip, port, source, source_port):
    """Does not let anybody else have its port."""
    sock = opened(ip)
    sock.bind((source, int(source_port)))
    talk(sock, ip, port)


def connect_exec(ip, port):
    """Goes on as another program as soon as it is connected, on the connection."""
    sock = opened(ip)
    sock.settimeout(None)
    sock.connect((ip, int(port)))
    os.dup2(sock.fileno(), 0)
    os.execvp("cat", ["cat"])


def scoped(ip, port, name, bound=None):
    """A link-local address, with or without (-) its interface; the socket bound to another one, or not."""
    sock = opened(ip)
    if bound:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bound.encode())
    try:
        sock.connect((ip, int(port), 0, 0 if name == "-" else socket.if_nametoindex(name)))
        print(sock.makefile().readline().strip(), flush=True)
    except OSError as error:
        print(f"error={errno.errorcode.get(error.errno, error)}", flush=True)


def device(ip, port, name):
    sock = opened(ip)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
    talk(sock, ip, port)


def mptcp(ip, port):
    talk(opened(ip, 262), ip, port)


def fastopen(ip, port):
    """The first bytes go with the SYN, and connect() is never called."""
    sock = opened(ip)
    sock.settimeout(None)
    sock.sendto(b"first words", socket.MSG_FASTOPEN, (ip, int(port)))
    peer = sock.getpeername()
    print(f"peer={peer[0]},{peer[1]} {sock.makefile().readline().strip()}", flush=True)


def udp(ip, port):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((ip, int(port)))
    peer = sock.getpeername()
    print(f"peer={peer[0]},{peer[1]}", flush=True)


def thread(ip, port):
    worker = threading.Thread(target=connect, args=(ip, port))
    worker.start()
    worker.join()


def thread_exec(ip, port):
    """A thread that is not the main one replaces the whole process."""
    again = [sys.executable, __file__, "now", "connect", ip, port]
    threading.Thread(target=os.execv, args=(sys.executable, again)).start()
    threading.Event().wait()


def storm(count, ip, port):
    """Many children at once, some of which have children; then a connection."""
    for number in range(int(count)):
        if os.fork() == 0:
            if number % 5 == 0 and os.fork() == 0:
                os._exit(0)
            os._exit(0)
    try:
        while True:
            os.wait()
    except ChildProcessError:
        connect(ip, port)


def leaderless(ip, port):
    """The main thread ends, another goes on."""
    leader = threading.get_native_id()

    def outlive():
        while True:
            with open(f"/proc/self/task/{leader}/stat") as stat:
                if stat.read().rsplit(") ", 1)[1].startswith("Z"):
                    break
        connect(ip, port)
        os._exit(0)

    threading.Thread(target=outlive).start()
    ctypes.CDLL(None).pthread_exit(None)


def orphan(ip, port, cgroup):
    """A grandchild in a session of its own, whose parents have ended, in another cgroup."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    while os.getppid() != 1 and os.path.exists(f"/proc/{os.getppid()}") and "orphan" in open(f"/proc/{os.getppid()}/cmdline").read():
        pass
    with open(f"{cgroup}/cgroup.procs", "w") as procs:
        procs.write("0")
    os.execv(sys.executable, [sys.executable, __file__, "now", "connect", ip, port])


def many(first, count, manner):
    """`count` connections, each to a destination of its own. Prints those it made, with its own port."""
    made = []
    for number in range(int(first), int(first) + int(count)):
        ip, port = f"198.18.{number >> 8 & 255}.{number & 255}", 1024 + number % 60000
        kind = number % 3
        host = (ip, f"::ffff:{ip}", f"2001:db8::{number:x}")[kind]
        sock = opened(host)
        try:
            sock.connect((host, port))
            own = sock.getsockname()[1]
            if manner == "reset":
                reset(sock)
                made.append(f"{host},{port},{own},-")
                continue
            line = sock.makefile().readline().strip()
            made.append(f"{host},{port},{own},{line}")
        except OSError as error:
            made.append(f"{host},{port},0,error={errno.errorcode.get(error.errno, error)}")
            # A refusal is quick: without a pause there would be nothing but refusals.
            time.sleep(0.01)
        sock.close()
    print("\n".join(made), flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0] == "now":
        arguments = arguments[1:]
    else:
        sys.stdin.readline()
    globals()[arguments[0]](*arguments[1:])
