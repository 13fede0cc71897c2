"""
The words between the application and one worker, on the worker's task socket.

One message is one datagram of a private SEQPACKET socketpair, so it arrives whole or not at all: a worker that is
killed in the middle of a result leaves no half of it. The first byte is the kind; the body is marshalled plain data,
or the records of results. What is too large for a datagram is in a segment of shared memory, whose descriptor comes
with the message (`arena`).

Runs in: application and worker.
"""

import os
import signal
from struct import Struct

INLINE_BYTES = 32 * 1024  # a larger payload goes into a segment; two batches of it fit the smallest socket buffer
BATCH_BYTES = 48 * 1024  # of one datagram with many tasks or results
RECEIVE_BYTES = 64 * 1024  # a longer message goes as LONG
PICKLE_PROTOCOL = 5  # the first with buffers out of band

# --- application to worker -------------------------------------------------------------------------------------------
JOURNAL = 0  # first: the slot of the journal, with the descriptors of the memory and of the eventfd for log records
SETUP = 1  # once: who you are
TASKS = 2  # rows of (id, mode, payload, head); head: the pickled function if the payload is the items alone
BIG_TASK = 3  # one: id, mode, head, segment's number and size, spans; and a descriptor
RELEASED = 4  # numbers of your segments that are not used here any more
CREDIT = 5  # so many more items of a streaming task may come
STOP = 6  # no more tasks: finish and exit
LEVELS = 7  # the levels of your loggers from now on

# --- worker to application -------------------------------------------------------------------------------------------
READY = 65
SETUP_FAILED = 66  # the initializer raised; the packed error
RESULTS = 67  # records
BIG_RESULT = 68  # one: id, outcome, seconds, segment's number and size, spans; and a descriptor
FREED = 69  # numbers of your segments that are not used here any more
LOG = 70  # a log record of a process that a task has forked; the worker's own go by the ring
OUTPUT = 72  # the number of a stream, with the pipe into which it goes from now on
START_FAILED = 71  # its setting up failed: stage, errno and name (`_zygote.become.report`)

# --- either way ------------------------------------------------------------------------------------------------------
LONG = 97  # a message too long for a datagram: in a memfd, whose descriptor comes first

# --- signals to a worker ---------------------------------------------------------------------------------------------
STACKS_SIGNAL = signal.SIGRTMAX - 5  # faulthandler writes all stacks into the journal
INTERRUPT_SIGNAL = signal.SIGRTMAX - 4  # the running task is to end, by an exception

# --- how a task ended ------------------------------------------------------------------------------------------------
DONE, RAISED, ITEM = range(3)

RECORD = Struct("<QBId")  # task, outcome, bytes of the payload behind it, seconds it took


def write_long(data: bytes | memoryview) -> int:
    """
    Put a message that no datagram takes into a memfd, which is the caller's.
    """
    fd = os.memfd_create("safespawn-message", os.MFD_CLOEXEC)
    try:
        done = 0
        while done < len(data):
            done += os.pwrite(fd, memoryview(data)[done:], done)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_long(fd: int) -> bytes:
    """
    Return the message in the memfd *fd*, and close that.
    """
    try:
        size = os.fstat(fd).st_size
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)
