"""A client of NFS 4 in user space, for the tests: python nfs_client.py PORT EXPORT, commands on standard input.
Without arguments it only says whether it could work here.

One session, one command a line, words parted by tabs; the first that fails ends it with status 1 and its reason.
  mkdir D | put LOCAL F | get F LOCAL | mv F G | rm F | cut F BYTES | forget (the server's kernel drops its names)
"""
import ctypes
import os
import sys



def load():
    # Later ones have other arguments.
    for name in ("libnfs.so.13", "libnfs.so.14"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            pass
    sys.exit("no libnfs.so.13 or .14")


lib = load()
if len(sys.argv) == 1:
    sys.exit(0)
lib.nfs_init_context.restype = ctypes.c_void_p
lib.nfs_get_error.restype = ctypes.c_char_p
lib.nfs_parse_url_dir.restype = ctypes.c_void_p
U64, P = ctypes.c_uint64, ctypes.c_void_p
lib.nfs_pwrite.argtypes = [P, P, U64, U64, ctypes.c_char_p]
lib.nfs_pread.argtypes = [P, P, U64, U64, ctypes.c_char_p]
lib.nfs_truncate.argtypes = [P, ctypes.c_char_p, U64]
# This version of the library fails for more in one request.
CHUNK = 1000

nfs = P(lib.nfs_init_context())


class Failed(Exception):
    pass


def check(result, what):
    if result < 0:
        raise Failed(f"{what}: {result}: {lib.nfs_get_error(nfs).decode()}")
    return result


def put(local, name):
    fh = P()
    check(lib.nfs_open2(nfs, name, os.O_CREAT | os.O_RDWR, 0o644, ctypes.byref(fh)), f"create {name}")
    data, at = open(local, "rb").read(), 0
    while at < len(data):
        part = data[at : at + CHUNK]
        at += check(lib.nfs_pwrite(nfs, fh, at, len(part), part), f"write {name} at {at}")
    check(lib.nfs_fsync(nfs, fh), f"commit {name}")
    check(lib.nfs_close(nfs, fh), f"close {name}")


def get(name, local):
    fh, buf, data = P(), ctypes.create_string_buffer(CHUNK), b""
    check(lib.nfs_open(nfs, name, os.O_RDONLY, ctypes.byref(fh)), f"open {name}")
    while n := check(lib.nfs_pread(nfs, fh, len(data), CHUNK, buf), f"read {name}"):
        data += buf.raw[:n]
    check(lib.nfs_close(nfs, fh), f"close {name}")
    open(local, "wb").write(data)


def forget():
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("2")


def run(words):
    verb, args = words[0], [w.encode() for w in words[1:]]
    if verb == "mkdir":
        check(lib.nfs_mkdir(nfs, *args), "mkdir")
    elif verb == "mv":
        check(lib.nfs_rename(nfs, *args), "rename")
    elif verb == "rm":
        check(lib.nfs_unlink(nfs, *args), "unlink")
    elif verb == "cut":
        check(lib.nfs_truncate(nfs, args[0], int(args[1])), "truncate")
    elif verb == "put":
        put(*args)
    elif verb == "get":
        get(*args)
    elif verb == "forget":
        forget()
    else:
        raise Failed(f"no such command: {verb}")


def main():
    port, export = sys.argv[1:]
    url = f"nfs://127.0.0.1{export}?version=4&nfsport={port}".encode()
    if not lib.nfs_parse_url_dir(nfs, url):
        raise Failed("url")
    check(lib.nfs_mount(nfs, b"127.0.0.1", export.encode()), "mount")
    for line in sys.stdin:
        try:
            run(line.rstrip("\n").split("\t"))
        except Failed as e:
            raise Failed(f"{line.strip()}: {e}")


try:
    main()
except Failed as e:
    sys.exit(str(e))
