"""
What every test stands on: nothing is left behind, and one suite runs over every face.
"""

import inspect
import os
import signal

import pytest

from support import faces, leaks

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started by a shell, with &: Ctrl-C is tested all the same
    signal.signal(signal.SIGINT, signal.default_int_handler)

_NO_PROCESSES = os.sep + os.path.join("tests", "unit") + os.sep  # tests that start nothing are not asked what they left


@pytest.fixture(scope="session")
def _warm():
    """
    Each event loop has run once, so that what it keeps for the life of the process is there from the start.
    """
    leaks.become_subreaper()

    async def one_command(face):
        await face.run(["true"])

    for name in faces.ASYNC_NAMES:
        each = faces.Face(name)
        each.execute(one_command, {"face": each})


@pytest.fixture(autouse=True)
def nothing_left(request):
    """
    After the test this process and the default zygote hold exactly what they held before; some seconds to settle.
    """
    if _NO_PROCESSES in str(request.path):
        yield
        return
    request.getfixturevalue("_warm")
    before = leaks.Holdings.look()
    yield
    lines = leaks.wait_level(before)
    if lines:
        leaks.end_strangers(before)
        pytest.fail("the test left something behind:\n  " + "\n  ".join(lines), pytrace=False)


@pytest.fixture(params=faces.NAMES)
def face(request):
    """
    The library as a blocking program, and as programs of asyncio, uvloop and trio, see it.
    """
    return faces.Face(request.param)


@pytest.fixture(params=faces.ASYNC_NAMES)
def async_face(request):
    """
    The library on asyncio (in debug mode), uvloop and trio.
    """
    return faces.Face(request.param)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """
    An `async def` test is run by its face.
    """
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    runner = arguments.get("face") or arguments.get("async_face")
    if runner is None:
        pytest.fail("an async test takes the fixture `face` or `async_face`", pytrace=False)
    runner.execute(pyfuncitem.obj, arguments)
    return True
