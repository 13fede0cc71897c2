"""
A tour of the blocking calls: run a command, talk to one, limit one, and what the errors say.

Run it with `python examples/commands.py`.
"""

import resource
import signal

import safespawn


def main() -> None:
    # As subprocess.run, and the result knows more: pid, duration, rusage.
    done = safespawn.run(["sort"], input="pear\napple\nfig\n", capture_output=True, text=True, check=True)
    print("sorted:", done.stdout.split())
    print(f"  pid {done.pid}, {done.duration * 1000:.1f} ms, peak {done.rusage.ru_maxrss} KiB")

    # A string is not a command, unless a shell shall read it.
    print("shell:", safespawn.check_output("echo $((6 * 7))", shell=True, text=True).strip())  # noqa: S604 - the lesson

    # What preexec_fn was for.
    limited = safespawn.run(
        ["sh", "-c", "ulimit -n; umask; nice"],
        capture_output=True,
        text=True,
        rlimits={resource.RLIMIT_NOFILE: (64, 64)},
        umask=0o027,
        nice=5,
    )
    print("limited:", limited.stdout.split())

    # A line at a time, while it runs.
    lines = []
    safespawn.run(["seq", "1", "3"], text=True, on_line=lines.append)
    print("lines:", lines)

    # A conversation.
    with safespawn.Popen(["cat"], stdin=safespawn.PIPE, stdout=safespawn.PIPE, text=True, bufsize=1) as process:
        process.stdin.write("hello\n")
        print("echo:", process.stdout.readline().strip())
    print("exit code:", process.returncode)

    # A timeout ends the whole tree: the shell and the sleep below it.
    try:
        safespawn.run(["sh", "-c", "echo begun; sleep 60; echo never"], capture_output=True, text=True, timeout=0.3)
    except safespawn.TimeoutExpired as error:
        print("timeout, with what was printed:", repr(error.stdout))

    # A signal's end is a negative exit code, as in subprocess.
    print("killed:", safespawn.run(["sh", "-c", "kill -TERM $$"]).returncode == -signal.SIGTERM)

    # Errors are the standard classes too, and say what to do.
    try:
        safespawn.run(["ls -l"])
    except FileNotFoundError as error:
        print(error)


if __name__ == "__main__":
    main()
