"""
A program that waits for Ctrl-C in a command that it runs; it knows nothing of safespawn.
"""

import subprocess

print("ready", flush=True)
try:
    subprocess.run(["sleep", "60"], check=False)
finally:
    print("the end", flush=True)
