"""
The boot of the template, and from the fork on of each worker.

The zygote starts it as ``python FLAGS <this directory> CONTROL CONFIG PID``: with the interpreter options of the
application, so that hash seed, optimisation and warnings are the same. CONTROL is the number of the control socket's
descriptor, CONFIG that of a memfd with what the application says of itself, PID the application.

It imports what it was told to, one module after another, and makes sure that it still has one thread. Then it serves
forks (`_zygote.nursery`). A forked child comes back here and becomes a worker.

Runs in: template, worker.
"""

import marshal
import os
import signal
import sys


def main(arguments: list[str]) -> None:
    """
    Become the template; never returns.
    """
    control_fd, config_fd, application_pid = map(int, arguments)
    os.set_inheritable(control_fd, False)
    with open(config_fd, "rb") as file:
        config = marshal.load(file)  # noqa: S302 - the application's own words, over a private descriptor
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.argv[:] = config["argv"]
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.path[0] = package  # in the place of this directory
    from safespawn._worker import elsewhere
    from safespawn._worker.template import serve

    sys.path[:] = config["path"]
    elsewhere.install(config["elsewhere"])
    serve(control_fd, application_pid, config)


if __name__ == "__main__":
    main(sys.argv[1:])
