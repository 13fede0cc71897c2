"""
OpenTelemetry: one trace through a program, its commands and the workers of its pools.
"""

import sys

from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

import safespawn
from safespawn.integrations import otel

COMMAND = """
from opentelemetry import context, trace
from safespawn.integrations import otel
context.attach(otel.from_environment())
print(trace.format_trace_id(trace.get_current_span().get_span_context().trace_id))
"""


def brief(span):
    """
    One line for a span; an exporter of your own sends it somewhere.
    """
    parent = trace.format_span_id(span.parent.span_id) if span.parent else "none"
    return f"{span.name}: trace {trace.format_trace_id(span.context.trace_id)}, parent {parent}\n"


def set_up():
    """
    Each process has a provider of its own: as the initializer of a pool, too.
    """
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stdout, formatter=brief)))
    trace.set_tracer_provider(provider)


def finish():
    trace.get_tracer_provider().shutdown()  # sends what is left; a worker does it as it ends


def resize(name):
    with trace.get_tracer("example").start_as_current_span(f"resize {name}"):
        return name.upper()


def main():
    set_up()
    with trace.get_tracer("example").start_as_current_span("order") as span:
        ids = span.get_span_context()
        print("order is", trace.format_span_id(ids.span_id), "of trace", trace.format_trace_id(ids.trace_id))
        done = safespawn.run(["sh", "-c", "echo $TRACEPARENT"], env=otel.environment(), capture_output=True, text=True)
        print("a command has", done.stdout.strip())
        print(
            "one in Python has",
            safespawn.check_output([sys.executable, "-c", COMMAND], env=otel.environment(), text=True).strip(),
        )
        with safespawn.Pool(2, initializer=set_up, finalizer=finish) as pool:
            print(pool.map(otel.carry(resize), ["a", "b"]))
    context.get_current()
    finish()


if __name__ == "__main__":
    main()
