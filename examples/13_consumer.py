"""A log that is read by name: a consumer that goes on where it was, and workers that share.

A consumer keeps its position in the log's directory. What it committed does not come again, even when its
process is killed; what was handed out and not committed does. A group is a consumer with several members,
each of which gets entries that no other gets. What a killed member had not committed goes to the others.

Prints::

    the mailer was killed after 3 of 10 messages, and had committed 2
    it goes on with b'message 2'
    two workers share 30 jobs: each done once: True
    a worker was killed with 5 jobs in hand
    the other one gets those first: [40, 41, 42, 43, 44]
    who needs what: mailer from 10 on, workers from 50 on
"""

import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

from mmaplog import FlushPolicy, Log


def mailer(path: Path) -> None:
    """Sends messages, until it is killed in the middle of the third."""
    consumer = Log.open(path, "r").consumer("mailer")
    for entry in consumer:
        if entry.seq == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        consumer.commit()


def victim(path: Path) -> None:
    """Takes five jobs and dies."""
    member = Log.open(path, "r").group("workers", batch=5)
    member.poll()
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as directory,
        Log.open(Path(directory, "log"), flush_policy=FlushPolicy.MANUAL) as log,
    ):
        path = Path(directory, "log")
        log.append_many([b"message %d" % number for number in range(10)])
        killed = spawn.Process(target=mailer, args=(path,))
        killed.start()
        killed.join()
        with log.consumer("mailer", timeout=0) as consumer:
            print("the mailer was killed after 3 of 10 messages, and had committed", consumer.committed)
            print("it goes on with", bytes(next(consumer).payload))
            for _ in consumer:
                pass
            consumer.commit()

        # A group that begins where the log ends now.
        first = log.committed
        log.append_many([b"job %d" % number for number in range(30)])
        with (
            log.group("workers", batch=4, start=first, timeout=0) as one,
            log.group("workers", batch=4, timeout=0) as other,
        ):
            done = []
            # In turns here; each in a process of its own is what they are for.
            while entry := one.poll() or other.poll():
                done.append(entry.seq)
                one, other = other, one
            one.commit()
            other.commit()
            print(
                "two workers share 30 jobs: each done once:", sorted(done) == list(range(first, first + 30))
            )

        log.append_many([b"job %d" % number for number in range(30, 40)])
        killed = spawn.Process(target=victim, args=(path,))
        killed.start()
        killed.join()
        print("a worker was killed with 5 jobs in hand")
        with log.group("workers", batch=5, timeout=0) as member:
            seqs = [entry.seq for entry in member]
            print("the other one gets those first:", seqs[:5])
            member.commit()
        print(
            "who needs what:", ", ".join(f"{each.name} from {each.committed} on" for each in log.consumers())
        )


if __name__ == "__main__":
    main()
