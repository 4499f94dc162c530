// An application that sends spans with OpenTelemetry's OTLP/HTTP exporters for JavaScript: one trace in protobuf, the
// next in JSON, and gzip on every other pair.
//
// Commands and answers are those of `otlp.py`. Packages are found through NODE_PATH, which only `require` reads.

const { context, trace } = require("@opentelemetry/api");
const { Resource } = require("@opentelemetry/resources");
const { BasicTracerProvider, BatchSpanProcessor } = require("@opentelemetry/sdk-trace-base");
const proto = require("@opentelemetry/exporter-trace-otlp-proto");
const json = require("@opentelemetry/exporter-trace-otlp-http");
const readline = require("node:readline");

const RUN = process.argv[2];
const url = process.env.OPIK_URL_OVERRIDE + "/v1/private/otel/v1/traces";
const headers = { projectName: "sdk-test", "Comet-Workspace": "default" };

const exporters = ["none", "gzip"].flatMap((compression) => [
  new proto.OTLPTraceExporter({ url, headers, compression }),
  new json.OTLPTraceExporter({ url, headers, compression }),
]);
const providers = exporters.map((exporter) => {
  const resource = new Resource({ "service.name": "javascript-app" });
  return new BasicTracerProvider({ resource, spanProcessors: [new BatchSpanProcessor(exporter)] });
});

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

function expect(span) {
  const { traceId, spanId } = span.spanContext();
  say({ kind: "otel", id: `${traceId}:${spanId}`, fields: { name: span.name } });
}

const commands = {
  traces(number) {
    for (let n = 0; n < number; n++) {
      const tracer = providers[n % providers.length].getTracer(RUN);
      const root = tracer.startSpan(`${RUN} root ${n}`, { attributes: { "gen_ai.system": "openai", n } });
      const inside = trace.setSpan(context.active(), root);
      for (const name of ["retrieve", "generate"]) {
        const span = tracer.startSpan(name, { attributes: { text: "Grüße 你好".repeat(20) } }, inside);
        expect(span);
        span.end();
      }
      expect(root);
      root.end();
    }
  },
  async flush() {
    await Promise.all(providers.map((provider) => provider.forceFlush()));
    return { flushed: true };
  },
};

async function main() {
  say({ done: "start" });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [command, ...values] = line.trim().split(" ");
    if (command === "quit") break;
    say({ done: command, ...(await commands[command](...values.map(Number))) });
  }
  await Promise.all(providers.map((provider) => provider.shutdown()));
  say({ done: "quit" });
  process.exit(0);
}

main();
