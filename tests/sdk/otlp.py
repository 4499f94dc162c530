"""An application that sends spans with OpenTelemetry's OTLP/HTTP exporter for Python (protobuf), half of them gzipped.

Commands, one a line, answered as by `app.py`: `traces N` makes N traces of three spans, `flush`, `quit`.
"""

import json
import os
import sys

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

RUN = sys.argv[1]
ENDPOINT = os.environ["OPIK_URL_OVERRIDE"] + "/v1/private/otel/v1/traces"
HEADERS = {"projectName": "sdk-test", "Comet-Workspace": "default"}

providers = []
for compression in (Compression.NoCompression, Compression.Gzip):
    provider = TracerProvider(resource=Resource.create({"service.name": "python-app"}))
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=ENDPOINT, headers=HEADERS, compression=compression))
    )
    providers.append(provider)


def say(**line):
    print(json.dumps(line), flush=True)


def expect(span):
    context = span.get_span_context()
    say(kind="otel", id=f"{context.trace_id:032x}:{context.span_id:016x}", fields={"name": span.name})


def traces(number):
    for n in range(number):
        tracer = providers[n % 2].get_tracer(RUN)
        with tracer.start_as_current_span(f"{RUN} root {n}", attributes={"gen_ai.system": "openai", "n": n}) as root:
            with tracer.start_as_current_span("retrieve") as retrieve:
                expect(retrieve)
            with tracer.start_as_current_span("generate", attributes={"text": "Grüße 你好" * 20}) as generate:
                expect(generate)
            expect(root)


say(done="start")
for line in sys.stdin:
    command, *arguments = line.split()
    result = {}
    if command == "traces":
        traces(int(arguments[0]))
    elif command == "flush":
        result["flushed"] = all([provider.force_flush() for provider in providers])
    elif command == "quit":
        break
    else:
        sys.exit(f"unknown command {line!r}")
    say(done=command, **result)

for provider in providers:
    provider.shutdown()
say(done="quit")
