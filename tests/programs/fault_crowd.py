"""
An application with many running commands, half of which ignore SIGTERM: `fault_crowd.py COUNT`; says "ready", stays.
"""

import sys

import safespawn

STUBBORN = ["sh", "-c", "trap '' TERM HUP INT; echo up; while :; do sleep 100; done"]
PLAIN = ["sh", "-c", "echo up; sleep 100"]

count = int(sys.argv[1])
crowd = [safespawn.Popen(STUBBORN if number % 2 else PLAIN, stdout=safespawn.PIPE) for number in range(count)]
for process in crowd:
    assert process.stdout.readline() == b"up\n"
print("ready", flush=True)
sys.stdin.read()
