import io.opentelemetry.api.common.AttributeKey;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanKind;
import io.opentelemetry.api.trace.StatusCode;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Scope;
import io.opentelemetry.sdk.OpenTelemetrySdk;
import io.opentelemetry.sdk.autoconfigure.AutoConfiguredOpenTelemetrySdk;
import io.opentelemetry.sdk.common.CompletableResultCode;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.List;
import java.util.concurrent.TimeUnit;

/**
 * An application that sends its spans with OpenTelemetry's OTLP/HTTP exporter for Java, configured by its environment
 * (OTEL_EXPORTER_OTLP_...).
 */
public class Spans {
  static void half(Tracer tracer, String run) {
    for (int number = 0; number < 5; number++) {
      Span root = tracer.spanBuilder("chat " + run + " " + number).setSpanKind(SpanKind.SERVER).startSpan();
      root.setAttribute("thread_id", "thread-" + run);
      try (Scope scope = root.makeCurrent()) {
        Span llm = tracer.spanBuilder("generate").setSpanKind(SpanKind.CLIENT).startSpan();
        llm.setAttribute("gen_ai.system", "openai");
        llm.setAttribute("gen_ai.request.model", "gpt-4o-mini");
        llm.setAttribute("gen_ai.usage.input_tokens", 11);
        llm.setAttribute(AttributeKey.stringArrayKey("gen_ai.stop"), List.of("Grüße", "你好"));
        llm.setAttribute("temperature", 0.25);
        llm.addEvent("token");
        if (number == 3) {
          llm.setStatus(StatusCode.ERROR, "as it is meant to");
        }
        llm.end();
      } finally {
        root.end();
      }
    }
  }

  static void flush(OpenTelemetrySdk sdk) {
    CompletableResultCode code = sdk.getSdkTracerProvider().forceFlush().join(60, TimeUnit.SECONDS);
    System.out.println("flushed " + code.isSuccess());
  }

  public static void main(String[] arguments) throws Exception {
    OpenTelemetrySdk sdk = AutoConfiguredOpenTelemetrySdk.initialize().getOpenTelemetrySdk();
    Tracer tracer = sdk.getTracer("java-app");
    half(tracer, "first");
    flush(sdk);
    System.out.println("halfway");
    new BufferedReader(new InputStreamReader(System.in)).readLine();
    half(tracer, "second");
    flush(sdk);
    sdk.shutdown().join(60, TimeUnit.SECONDS);
    System.exit(0);
  }
}
