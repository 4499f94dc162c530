//! The published Python SDK, beside which we are measured.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::agent::folder;
use crate::tools;

/// How the SDK's own store did.
pub(crate) struct Written {
    pub per_second: f64,
    pub bytes_per_message: f64,
}

/// Makes the SDK store this many spans of 2 KB, one by one, as it does during an outage.
pub(crate) fn write(count: usize) -> Written {
    let folder = folder();
    let result = python("sdk_store.py", &[&count.to_string(), &folder.path().to_string_lossy()], &[]);
    Written { per_second: figure(&result, "per_second"), bytes_per_message: figure(&result, "bytes_per_message") }
}

/// Makes the SDK replay this many messages of this many spans to this URL, and returns the seconds that it took.
///
/// `tuned` is the largest batch and no delay; otherwise its defaults.
pub(crate) fn replay(count: usize, spans: usize, url: &str, tuned: bool) -> f64 {
    let (batch, delay) = if tuned { ("1000", "0") } else { ("50", "0.5") };
    let env =
        [("OPIK_URL_OVERRIDE", url), ("OPIK_REPLAY_BATCH_SIZE", batch), ("OPIK_REPLAY_BATCH_REPLAY_DELAY", delay)];
    figure(&python("sdk_replay.py", &[&count.to_string(), &spans.to_string()], &env), "seconds")
}

fn figure(result: &Value, name: &str) -> f64 {
    result[name].as_f64().unwrap_or_else(|| panic!("the script tells no {name}: {result}"))
}

fn python(script: &str, args: &[&str], env: &[(&str, &str)]) -> Value {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    let python = PYTHON.get_or_init(|| tools::python_sdk(tools::OPIK_VERSION));
    let home = folder();
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/figures").join(script);
    let mut command = Command::new(python);
    command.arg(&script).args(args).env_clear().env("HOME", home.path()).env("PATH", "/usr/bin:/bin");
    // Python's compiled files contain the paths of this machine, and would be beside the sources.
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("TMPDIR", home.path()).env("OPIK_SENTRY_ENABLE", "false").env("OPIK_WORKSPACE", "default");
    let output = command.envs(env.iter().copied()).output().expect("Python starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} failed:\n{stderr}", script.display());
    let stdout = String::from_utf8_lossy(&output.stdout);
    let last = stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|why| panic!("{} said {last:?}: {why}\n{stderr}", script.display()))
}
