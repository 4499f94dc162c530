//! Parse, run, print the failure, exit code: everything else is in the library.

/// The system's allocator gives memory back and asks for it again with every burst of requests, and half of what intake
/// does to a request is to allocate. Without huge pages (`no_thp`), of which an agent at rest would hold 10 MiB.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    opik_offline::cli::run()
}
