"""
A module that starts a thread when it is imported, has it run commands, and joins it.
"""

import threading

import safespawn

RESULT = []


def work():
    """Run one command to its end, and talk to another one."""
    RESULT.append(safespawn.run(["echo", "heard"], capture_output=True).stdout)
    with safespawn.Popen(["echo", "heard"], stdout=safespawn.PIPE) as process:
        RESULT.append(process.communicate()[0])


thread = threading.Thread(target=work)
thread.start()
thread.join()
