"""
Starts a command that shall outlive this program and one that shall not, prints both pids, and exits.
"""

import safespawn

kept = safespawn.Popen(["sleep", "1000"], detach=True, stdin=safespawn.DEVNULL, stdout=safespawn.DEVNULL)
ended = safespawn.Popen(["sleep", "1000"], stdin=safespawn.DEVNULL, stdout=safespawn.DEVNULL)
print(kept.pid, ended.pid, flush=True)
ended._process = None  # forgotten, without the warning
