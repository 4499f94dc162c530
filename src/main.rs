//! Parse, run, print the failure, exit code: everything else is in the library.

fn main() -> std::process::ExitCode {
    opik_offline::cli::run()
}
