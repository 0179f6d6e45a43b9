"""Two processes talk through a file: a word to wait for, and a mutex that survives its owner.

``wait`` sleeps while the word has a value, and until somebody calls ``notify``, in whichever process. Whoever
changes the word must notify after it.

A ``SharedMutex`` guards what takes more than one store. When its owner dies, the next one gets it and is told
by ``owner_died`` that what it guards may be half done.

Prints::

    1000 rounds of ping and pong between two processes
    2000 deposits of 10: 20000
    a process died and held the mutex: deposits and balance agree: False
    the next owner was told, and mended it: 20010
"""

import multiprocessing
import os
import signal
import struct
import tempfile
from pathlib import Path

from mmapio import PAGE_SIZE, MemoryMappedFile, SharedMutex

ROUNDS = 1000
PING, PONG = 0, 1

# What lies where in the file.
BALL, DEPOSITS, BALANCE, MUTEX = 0, 64, 72, 128
NUMBER = struct.Struct("<Q")


def play(mapped: MemoryMappedFile, mine: int) -> None:
    """Wait until the ball is mine, and pass it on."""
    ball = mapped.atomic_u32(BALL)
    for _ in range(ROUNDS):
        ball.wait(1 - mine)
        ball.store(1 - mine)
        ball.notify()


def number(mapped: MemoryMappedFile, offset: int) -> int:
    return int.from_bytes(mapped.read_bytes(offset, NUMBER.size), "little")


def deposit(mapped: MemoryMappedFile) -> None:
    """Two numbers that must agree, changed one after the other."""
    mutex = SharedMutex(mapped, MUTEX)
    for _ in range(ROUNDS):
        with mutex:
            mapped.update_region(DEPOSITS, NUMBER.pack(number(mapped, DEPOSITS) + 1))
            mapped.update_region(BALANCE, NUMBER.pack(number(mapped, BALANCE) + 10))


def partner(path: Path) -> None:
    """The second process."""
    with MemoryMappedFile.open_rw(path) as mapped:
        play(mapped, PONG)
        deposit(mapped)


def victim(path: Path) -> None:
    """A process that is killed between the two stores."""
    mapped = MemoryMappedFile.open_rw(path)
    SharedMutex(mapped, MUTEX).acquire()
    mapped.update_region(DEPOSITS, NUMBER.pack(number(mapped, DEPOSITS) + 1))
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "shared")
        with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
            other = spawn.Process(target=partner, args=(path,))
            other.start()
            play(mapped, PING)
            print(f"{ROUNDS} rounds of ping and pong between two processes")
            deposit(mapped)
            other.join()
            print(f"{number(mapped, DEPOSITS)} deposits of 10: {number(mapped, BALANCE)}")

            killed = spawn.Process(target=victim, args=(path,))
            killed.start()
            killed.join()
            agree = number(mapped, BALANCE) == 10 * number(mapped, DEPOSITS)
            print("a process died and held the mutex: deposits and balance agree:", agree)
            mutex = SharedMutex(mapped, MUTEX)
            with mutex:
                if mutex.owner_died:
                    mapped.update_region(BALANCE, NUMBER.pack(10 * number(mapped, DEPOSITS)))
                    mutex.mark_consistent()
            print("the next owner was told, and mended it:", number(mapped, BALANCE))


if __name__ == "__main__":
    main()
