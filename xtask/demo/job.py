"""A job as it might come from anywhere: it does what it was asked to do, and then what it was not asked to do.

usage: job.py ORDERS_CSV OUT_DIR PRIVATE_KEY PORT

Each attempt is one line of JSON on standard output: {"attempt": ..., "got": true or false, "said": ...}.
Run it under `cargo xtask demo` only: without a sandbox it does what it says. Every attempt is bounded all the same.
"""

import csv
import json
import os
import signal
import socket
import sys
from collections import defaultdict
from decimal import Decimal

FILL_MAX_MIB = 1024
FORKS_MAX = 2000


def report(attempt, got, said):
    print(json.dumps({"attempt": attempt, "got": got, "said": said}), flush=True)


def work(orders, out):
    totals = defaultdict(Decimal)
    with open(orders, newline="", encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            totals[row["region"]] += int(row["quantity"]) * Decimal(row["unit_price"])
    with open(os.path.join(out, "totals.json"), "w", encoding="utf-8") as result:
        json.dump({region: str(total) for region, total in sorted(totals.items())}, result)
    report("work", True, f"{sum(totals.values())} in {len(totals)} regions")


def steal(key):
    with open(key, encoding="utf-8") as secret:
        return secret.read().strip()


def phone(port):
    with socket.create_connection(("127.0.0.1", port), timeout=3) as line:
        line.sendall(b"hello\n")
    return "connected"


def fill(directory):
    path = os.path.join(directory, "fill")
    block = b"\0" * (1 << 20)
    written = 0
    try:
        with open(path, "wb", buffering=0) as file:
            for written in range(FILL_MAX_MIB):
                file.write(block)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} after {written} MiB") from error
    finally:
        if os.path.exists(path):
            os.unlink(path)
    return f"wrote {FILL_MAX_MIB} MiB"


def fork_without_end():
    children = []
    try:
        while len(children) < FORKS_MAX:
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} after {len(children)} children") from error
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
    return f"{FORKS_MAX} children"


def attempt(name, action, *arguments):
    try:
        report(name, True, action(*arguments))
    except OSError as error:
        report(name, False, error.strerror or str(error))


def main():
    orders, out, key, port = sys.argv[1:5]
    work(orders, out)
    attempt("steal", steal, key)
    attempt("phone", phone, int(port))
    attempt("fill", fill, "/tmp")
    attempt("overwrite", fill, "/usr/bin")
    attempt("fork", fork_without_end)


main()
