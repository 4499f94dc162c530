// An application that sends its spans with OpenTelemetry's OTLP/HTTP exporter for Go.
//
// The endpoint, the headers and the compression come from the environment (OTEL_EXPORTER_OTLP_...).
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

func half(ctx context.Context, tracer trace.Tracer, run string) {
	for number := range 5 {
		name := fmt.Sprintf("chat %s %d", run, number)
		ctx, root := tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer))
		root.SetAttributes(attribute.String("thread_id", "thread-"+run), attribute.Bool("first", number == 0))
		_, llm := tracer.Start(ctx, "generate", trace.WithSpanKind(trace.SpanKindClient))
		llm.SetAttributes(
			attribute.String("gen_ai.system", "openai"),
			attribute.String("gen_ai.request.model", "gpt-4o-mini"),
			attribute.Int("gen_ai.usage.input_tokens", 11),
			attribute.Int("gen_ai.usage.output_tokens", 7),
			attribute.StringSlice("gen_ai.stop", []string{"Grüße", "你好"}),
			attribute.Float64("temperature", 0.25))
		llm.AddEvent("token")
		if number == 3 {
			llm.RecordError(errors.New("as it is meant to"))
			llm.SetStatus(codes.Error, "as it is meant to")
		}
		llm.End()
		root.End()
	}
}

func main() {
	ctx := context.Background()
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { fmt.Fprintln(os.Stderr, "otel:", err) }))
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		log.Fatal(err)
	}
	attributes := resource.NewSchemaless(attribute.String("service.name", "go-app"))
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(attributes))
	tracer := provider.Tracer("go-app")
	half(ctx, tracer, "first")
	fmt.Println("flushed", provider.ForceFlush(ctx))
	fmt.Println("halfway")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		log.Fatal(err)
	}
	half(ctx, tracer, "second")
	fmt.Println("flushed", provider.ForceFlush(ctx))
	if err := provider.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
}
