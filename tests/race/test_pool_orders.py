"""Orders of events that chance brings about once in a thousand runs, brought about on purpose."""

import os
import signal
import time

import pytest

from safespawn import Pool
from support import fault_tasks as tasks

SECONDS = 20.0  # a hang ends as a failure


class Graveside:
    """The task socket of a worker that is killed, and buried by the pump, just before it is sent something."""

    def __init__(self, post):
        self.post = post
        self.socket = post.worker.socket
        self.sends = 0

    def __getattr__(self, name):
        return getattr(self.socket, name)

    def bury(self):
        """Returns when the pump has closed the socket."""
        self.sends += 1
        os.kill(self.post.worker.pid, signal.SIGKILL)
        deadline = time.monotonic() + SECONDS
        while self.post.worker.socket is not None:
            assert time.monotonic() < deadline, "it was not buried"
            time.sleep(0.001)

    def send(self, *arguments):
        """As the socket's."""
        self.bury()
        return self.socket.send(*arguments)

    def sendmsg(self, *arguments):
        """As the socket's."""
        self.bury()
        return self.socket.sendmsg(*arguments)


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_a_worker_that_is_buried_while_it_is_sent_a_task_costs_nothing(size):
    """The task runs once, in another worker; so do those of a map."""
    with Pool(2) as pool:
        assert pool.map(tasks.echo, range(8)) == list(range(8))
        for submit in (
            lambda task: [pool.apply_async(len, (task,)).get(SECONDS)] * 8,
            lambda task: pool.map_async(len, [task] * 8, chunksize=1).get(SECONDS),
        ):
            post = pool._crew.dispatcher.idle[-1].worker  # who gets the next task
            post.worker.socket = graveside = Graveside(post)
            assert submit(b"x" * size) == [size] * 8
            assert graveside.sends == 1
        assert pool.statistics()["failed"] == 0
