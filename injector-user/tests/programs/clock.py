# Answers each line of standard input with nanoseconds: what it reads, a thread of its own, or a child.
import queue
import subprocess
import sys
import threading
import time

asked, answered = queue.Queue(), queue.Queue()


def serve():
    while asked.get():
        answered.put(time.time_ns())


# They are there from the start, so that a fault finds them running.
for _ in range(8):
    threading.Thread(target=serve, daemon=True).start()


def by_thread():
    asked.put(True)
    return answered.get()


def by_child():
    return subprocess.check_output(["date", "+%s%N"], text=True).strip()


answers = {
    "here": time.time_ns,
    "steady": time.monotonic_ns,
    "thread": by_thread,
    "child": by_child,
}
while line := sys.stdin.readline():
    print(answers[line.strip()](), flush=True)
