"""An application that sends a trace, a metric and a log record with OpenTelemetry's exporters, which only the environment
tells where to."""

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

traces, logs = TracerProvider(), LoggerProvider()
metrics = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(), export_interval_millis=3_600_000)])
traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))

with traces.get_tracer("signals").start_as_current_span("root"):
    metrics.get_meter("signals").create_counter("calls").add(1)
    logs.get_logger("signals").emit(body="a line")
for provider in (traces, metrics, logs):
    provider.shutdown()
