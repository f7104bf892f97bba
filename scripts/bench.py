#!/usr/bin/env python3
"""Measures a mounted volume against the filesystem below it, and against bindfs and mergerfs where they are installed.

    bench.py [--rounds N] [--scale F] [--disk MIB] [--sites 2|3] [--also NAME=KAGAMI ...] [--out FILE] [KAGAMI]

All targets take turns within each round, in an order that rotates, so that a machine busy with something else hits all alike.
The table has medians over the rounds, and ratios of the same round: 1.00 is as fast as the filesystem below. CPU time is that
of all nodes together, for one operation; of the program that writes and of the kernel's own threads it says nothing.
--disk: as root, on an ext4 filesystem of so many MiB of its own, on a loop device; else in the directory for temporary files.
All sites share it, so what is written twice is written twice to one disk. --also: a second kagami to compare with (the
last columns are ratios to KAGAMI). Nothing is left behind.
"""
import argparse, glob, os, random, shutil, signal, statistics, subprocess, sys, tempfile, time

BLOCK, MIB = os.urandom(4096), os.urandom(1 << 20)
LARGE_MIB = 16  # the file that is written to in small pieces


def create(d, n):
    for i in range(n):
        fd = os.open(f"{d}/f{i}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(fd, BLOCK)
        os.close(fd)
    return n


def stat_once(d, n):
    for i in range(n):
        os.stat(f"{d}/f{i}")
    return n


def stat_again(d, n):
    return sum(stat_once(d, n) for _ in range(3))


def write_fsync(d, n):
    return scattered(d, n // 2, sync=True)


def write_cached(d, n):
    return scattered(d, n * 12, sync=False)


def scattered(d, n, sync):
    fd = os.open(f"{d}/large", os.O_RDWR)
    places = random.Random(n)
    for _ in range(n):
        os.pwrite(fd, BLOCK, places.randrange(LARGE_MIB << 8) << 12)
        if sync:
            os.fsync(fd)
    os.fsync(fd)
    os.close(fd)
    return n


def write_seq(d, n):
    fd = os.open(f"{d}/seq", os.O_RDWR | os.O_CREAT)
    blocks = max(8, n // 6)
    for i in range(blocks):
        os.pwrite(fd, MIB, i << 20)
    os.fsync(fd)
    os.close(fd)
    return blocks


def read_seq(d, n):
    fd = os.open(f"{d}/seq", os.O_RDONLY)
    size = os.fstat(fd).st_size >> 20
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    for i in range(size):
        os.pread(fd, 1 << 20, i << 20)
    os.close(fd)
    return size


def unlink(d, n):
    for i in range(n):
        os.unlink(f"{d}/f{i}")
    return n


WORKLOADS = [
    ("create, write 4 KiB, close", create),
    ("stat, first", stat_once),
    ("stat, again", stat_again),
    ("4 KiB write + fsync", write_fsync),
    ("4 KiB writes, one fsync", write_cached),
    ("1 MiB writes, one fsync", write_seq),
    ("1 MiB reads", read_seq),
    ("unlink", unlink),
]


def cpu_us(pids):
    """CPU time of all threads of some processes, microseconds."""
    total = 0
    for f in (f for p in pids for f in glob.glob(f"/proc/{p}/task/*/schedstat")):
        try:
            with open(f) as s:
                total += int(s.read().split()[0])
        except OSError:
            pass
    return total / 1e3


class Bed:
    """The targets, by name: their directory and their processes. Taken down whatever happens."""

    def __init__(self):
        self.work = work = tempfile.mkdtemp(prefix="kagami-bench-")
        self.dirs, self.pids = {}, {}
        self.undo = [lambda: shutil.rmtree(work, ignore_errors=True)]

    def up(self, a):
        if a.disk:
            self.disk(a.disk)
        self.dirs["native"], self.pids["native"] = self.made("native"), []
        for name, argv in (("bindfs", ["bindfs"]), ("mergerfs", ["mergerfs", "-o", "cache.files=auto-full,minfreespace=16M"])):
            if shutil.which(name):
                self.peer(name, argv)
        for name, program in [("kagami", a.kagami)] + [s.split("=", 1) for s in a.also]:
            self.lab(name, program, a.sites)

    def made(self, name):
        path = f"{self.work}/{name}"
        os.mkdir(path)
        return path

    def disk(self, mib):
        image = f"{self.work}/image"
        with open(image, "wb") as f:
            os.posix_fallocate(f.fileno(), 0, mib << 20)
        subprocess.run(["mkfs.ext4", "-qF", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True)
        disk = self.made("disk")
        subprocess.run(["mount", "-o", "loop", image, disk], check=True)
        self.undo.append(lambda: subprocess.run(["umount", "-l", disk], check=False))
        self.work = disk

    def peer(self, name, argv):
        below, at = self.made(f"{name}-below"), self.made(name)
        p = subprocess.Popen([*argv[:1], "-f", *argv[1:], below, at], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.undo.append(lambda: (subprocess.run(["umount", "-l", at], check=False), p.terminate(), p.wait()))
        until = time.monotonic() + 10
        while not os.path.ismount(at) and p.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        if os.path.ismount(at):
            self.dirs[name], self.pids[name] = at, [p.pid]
        else:
            print(f"{name} does not mount here and is left out", file=sys.stderr)

    def lab(self, name, program, sites):
        lab = f"{self.work}/lab-{name}"
        self.undo.append(lambda: subprocess.run([program, "lab", "down", lab, "--purge"], stdout=subprocess.DEVNULL, check=False))
        for argv in ([program, "lab", "up", lab, "--sites", str(sites)], [program, "lab", "wait", lab]):
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        self.dirs[name] = f"{lab}/mnt"
        self.pids[name] = [open(p).read().strip() for p in glob.glob(f"{lab}/*/node.pid")]

    def end(self):
        for u in reversed(self.undo):
            u()


def measure(bed, rounds, n):
    rate, cpu, names = {}, {}, list(bed.dirs)
    for r in range(rounds):
        for d in bed.dirs.values():
            os.mkdir(f"{d}/r{r}")
            with open(f"{d}/r{r}/large", "wb") as f:
                f.write(os.urandom(LARGE_MIB << 20))
        for what, work in WORKLOADS:
            for name in names[r % len(names):] + names[:r % len(names)]:
                os.sync()
                time.sleep(0.1)
                c, t = cpu_us(bed.pids[name]), time.perf_counter()
                done = work(f"{bed.dirs[name]}/r{r}", n)
                t = time.perf_counter() - t
                # What is still done for it elsewhere is part of its price.
                time.sleep(0.1)
                rate.setdefault((what, name), []).append(done / t)
                cpu.setdefault((what, name), []).append((cpu_us(bed.pids[name]) - c) / done)
        for d in bed.dirs.values():
            shutil.rmtree(f"{d}/r{r}")
    return rate, cpu


def table(rate, cpu, names, also):
    median, ratio = statistics.median, lambda a, b: statistics.median(x / y for x, y in zip(a, b))
    head = ["workload", "native /s"] + [f"{n}: /s, ratio, CPU us" for n in names[1:]] + [f"{n} to kagami" for n in also]
    rows = [head, ["---"] * len(head)]
    for what, _ in WORKLOADS:
        base = rate[what, "native"]
        row = [what, f"{median(base):.0f}"]
        for n in names[1:]:
            mine = rate[what, n]
            row.append(f"{median(mine):.0f}, {ratio(mine, base):.2f}, {median(cpu[what, n]):.0f}")
        row += [f"{ratio(rate[what, n], rate[what, 'kagami']):.2f}" for n in also]
        rows.append(row)
    return "".join("| " + " | ".join(r) + " |\n" for r in rows)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("kagami", nargs="?", default="target/release/kagami")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--scale", type=float, default=1.0)
    p.add_argument("--disk", type=int, default=0)
    p.add_argument("--sites", type=int, default=2, choices=(2, 3))
    p.add_argument("--also", action="append", default=[])
    p.add_argument("--out")
    a = p.parse_args()
    a.kagami = os.path.abspath(a.kagami)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bed = Bed()
    try:
        bed.up(a)
        rate, cpu = measure(bed, a.rounds, max(20, int(300 * a.scale)))
        text = table(rate, cpu, list(bed.dirs), [s.split("=")[0] for s in a.also])
        print(text, end="")
        if a.out:
            with open(a.out, "w") as f:
                f.write(text)
    finally:
        bed.end()


if __name__ == "__main__":
    main()
