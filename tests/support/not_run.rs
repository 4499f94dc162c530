//! How a test tells that it did not run: never by passing in silence.

use std::io::Write;

/// Tells, for the running test, that this machine does not let it run, and why.
///
/// The harness captures what passing tests print with macros; this is written beside that, and `.ci/run` counts it.
pub(crate) fn not_run(why: &str) {
    let thread = std::thread::current();
    // On a line of its own: the harness may have begun one.
    let _ = writeln!(std::io::stderr(), "\nnot run: {}: {}", thread.name().unwrap_or("a test"), why.trim());
}
