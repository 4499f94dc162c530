//! `healthcheck --fleet`: what it says of a depot, and its exit codes.

use crate::scripted::{SECRET, Scripted, Then};
use crate::support::agent::{Home, program};
use crate::support::depots::{Person, SeaweedFs, Variables};
use crate::support::fake_opik::FakeOpik;
use crate::support::process::{Output, run};
use crate::support::tempdir;

fn healthcheck(url: &str, variables: &Variables) -> Output {
    let (server, home) = (FakeOpik::start_new(), Home::new());
    let mut command = home.command(program());
    command.args(["healthcheck", "-q", "--upstream", &server.url(), "--fleet", url]);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    run(&mut command)
}

#[test]
fn a_folder_passes() {
    let folder = tempdir();
    let output = healthcheck(&format!("file://{}", folder.path().display()), &Vec::new());
    assert_eq!(output.code(), Some(0), "{output:?}");
    assert!(output.stdout.contains("we may write, read, list and delete"), "{}", output.stdout);
    assert!(output.stdout.contains("several at once, and are kept"), "{}", output.stdout);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, [".depot"], "a check leaves objects in the depot");
}

#[test]
fn rights_and_neighbours_of_a_storage_are_shown() {
    let storage = SeaweedFs::start();
    let output = healthcheck("s3://depot/prod", &storage.variables(Person::Pod));
    assert_eq!(output.code(), Some(0), "a pod that only ships is healthy: {output:?}");
    assert!(output.stdout.contains("we may not list"), "{}", output.stdout);
    assert!(output.stdout.contains("what takes one away may take both"), "{}", output.stdout);
    let output = healthcheck("s3://depot/prod", &storage.variables(Person::Reader));
    assert_eq!(output.code(), Some(5), "{output:?}");
    assert!(output.stdout.contains("does not let us write"), "{}", output.stdout);
    assert!(!format!("{output:?}").contains("-secret"), "a key is shown: {output:?}");
}

#[test]
fn a_storage_that_is_away_is_unreachable() {
    let server = Scripted::with(vec![Then::Close]);
    let mut variables = server.s3_settings().variables;
    variables[0].1 = "http://127.0.0.1:9".to_owned();
    let output = healthcheck("s3://depot/prod", &variables);
    assert_eq!(output.code(), Some(3), "{output:?}");
    assert!(output.stdout.contains("cannot reach the depot s3://depot/prod: connection refused"), "{output:?}");
    assert!(!format!("{output:?}").contains(SECRET));
}

#[test]
fn a_url_that_fits_no_depot_ends_the_command() {
    for (url, said) in [
        ("s3:/bucket", "s3://"),
        ("s3://", "names no bucket"),
        ("https://minio:9000/bucket", "AWS_ENDPOINT_URL"),
        ("/srv/depot", "file://"),
        ("s3://key:geheim@bucket", "come from the environment"),
    ] {
        let output = healthcheck(url, &Vec::new());
        assert_eq!(output.code(), Some(2), "{url}: {output:?}");
        assert!(output.stderr.contains(said) && !output.stderr.contains("geheim"), "{url}: {}", output.stderr);
    }
    let plain = vec![("AWS_ENDPOINT_URL".to_owned(), "http://minio.example.org:9000".to_owned())];
    let output = healthcheck("s3://depot/prod", &plain);
    assert_eq!(output.code(), Some(2), "{output:?}");
    assert!(output.stderr.contains("--fleet-insecure"), "{}", output.stderr);
}

#[test]
fn a_missing_folder_is_said() {
    let folder = tempdir();
    let output = healthcheck(&format!("file://{}/not-mounted", folder.path().display()), &Vec::new());
    assert_eq!(output.code(), Some(3), "{output:?}");
    assert!(output.stdout.contains("there is no depot at file://"), "{}", output.stdout);
}
