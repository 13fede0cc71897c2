"""The trace goes along: into environments, tasks and streams."""

import pytest

import safespawn

# ruff: noqa: D103 - what the tasks do is in their names

pytestmark = pytest.mark.integration

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def context():
    """An OpenTelemetry context, as a request brings it."""
    from safespawn.integrations import otel

    return otel.from_environment({"TRACEPARENT": PARENT, "BAGGAGE": "user=Ada"})


def current_trace(_=None):
    from opentelemetry import baggage, trace

    found = trace.get_current_span().get_span_context().trace_id
    return trace.format_trace_id(found), baggage.get_baggage("user")


def traces(count):
    for _ in range(count):
        yield current_trace()


async def atraces(count):
    for _ in range(count):
        yield current_trace()


NO_TRACE = ("0" * 32, None)
ADA = (TRACE, "Ada")


def test_environment(context) -> None:
    """The variables of the context are added to those that are there, and replace those of an older trace."""
    from safespawn.integrations import otel

    older = {"PATH": "/bin", "TRACEPARENT": "older", "TRACESTATE": "older"}
    assert otel.environment(older, context=context) == {"PATH": "/bin", "TRACEPARENT": PARENT, "BAGGAGE": "user=Ada"}
    assert otel.environment(older) == {"PATH": "/bin"}
    assert older["TRACEPARENT"] == "older"


def test_commands_have_the_current_context(context) -> None:
    """A command started in a span finds it in its environment, beside all that the program has."""
    from opentelemetry import context as contexts

    from safespawn.integrations import otel

    token = contexts.attach(context)
    try:
        found = safespawn.check_output(["sh", "-c", "echo $TRACEPARENT $HOME"], env=otel.environment(), text=True)
    finally:
        contexts.detach(token)
    parent, home = found.split()
    assert (parent, bool(home)) == (PARENT, True)


def test_tasks(context) -> None:
    """What is carried runs in the context, in every form of call, and what follows in the worker does not."""
    from safespawn.integrations import otel

    carried = otel.carry(current_trace, context=context)
    with safespawn.Pool(1) as pool:
        assert pool.apply(carried) == ADA
        assert pool.apply(current_trace) == NO_TRACE
        assert pool.map(carried, range(3)) == [ADA] * 3
        assert list(pool.imap(carried, range(3))) == [ADA] * 3
        for function in (traces, atraces):
            with pool.stream(otel.carry(function, context=context), (2,)) as items:
                assert list(items) == [ADA] * 2
        assert pool.apply(current_trace) == NO_TRACE
    with safespawn.Executor(1) as executor:
        assert executor.submit(carried).result() == ADA


def fail():
    raise KeyError("on purpose")


def test_a_task_that_fails(context) -> None:
    """Its exception is as without, and messages name the function that was carried."""
    from safespawn.integrations import otel

    with safespawn.Pool(1) as pool:
        with pytest.raises(KeyError, match="on purpose"):
            pool.apply(otel.carry(fail, context=context))
        assert pool.apply(current_trace) == NO_TRACE
    from safespawn._core.dispatch import describe
    from safespawn._tasks import pace_key

    assert describe(pace_key(otel.carry(fail))).endswith("test_otel.fail")
