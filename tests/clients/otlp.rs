//! OpenTelemetry's exporters of other languages.

use std::path::PathBuf;

use crate::install::{go, has, java};
use crate::scenario::{Client, Reads, is_as_without_an_agent};
use crate::support::not_run::not_run;

fn exporter(program: PathBuf, args: Vec<String>) -> Client {
    let client = Client::program(program, args).reading(Reads::OtlpEndpoint).volatile(&["timeUnixNano"]);
    client.env("OTEL_EXPORTER_OTLP_HEADERS", "projectName=otlp-test,Comet-Workspace=team")
}

#[test]
fn the_go_exporter() {
    if !has("go") {
        return not_run("no Go toolchain: apt-get install golang-go");
    }
    is_as_without_an_agent(&exporter(go(), Vec::new()).env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"));
}

fn java_exporter(profile: &str) {
    if !(has("javac") && has("mvn")) {
        return not_run("no JDK with Maven: apt-get install default-jdk-headless maven");
    }
    let args = ["-cp", &java(profile), "-Dfile.encoding=UTF-8", "Spans"].map(str::to_owned);
    let client = exporter("java".into(), args.into()).env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    let client = client.env("OTEL_METRICS_EXPORTER", "none").env("OTEL_LOGS_EXPORTER", "none");
    let client = client.env("OTEL_SERVICE_NAME", "java-app");
    // Its shutdown is logged by a logger that may have ended by then.
    is_as_without_an_agent(&Client { chatter: &["OpenTelemetrySdk", "Multiple shutdown calls"], ..client });
}

#[test]
fn the_java_exporter_with_okhttp() {
    java_exporter("okhttp");
}

#[test]
fn the_java_exporter_with_the_jdks_http_client() {
    java_exporter("jdk");
}
