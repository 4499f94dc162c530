//! Steps that other programs take, each with a time limit, and what they say.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_secs(30);

/// Runs a command and returns what it says.
///
/// # Errors
///
/// The complaint of the program, or that it took too long and was killed.
pub(crate) fn step(program: &str, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|why| format!("cannot run {program}: {why}"))?;
    let deadline = Instant::now() + STEP;
    while child.try_wait().map_err(|why| why.to_string())?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            return Err(format!("{program} {} took longer than {STEP:?}", args.join(" ")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().map_err(|why| why.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{program} {} failed ({}): {}", args.join(" "), output.status, text(&output.stderr)))
    }
}

/// Returns whether a program of this name can be run.
pub(crate) fn is_program(name: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(name).exists())
}

/// A mounted file system. Unmounted when it is dropped, at the latest when the namespace ends.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn new(kind: &str, options: &str, device: &Path, at: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(at).map_err(|why| why.to_string())?;
        step("mount", &["-t", kind, "-o", options, text(device), text(at)])?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if step("umount", &[text(&self.0)]).is_err() {
            let _ = step("umount", &["--lazy", text(&self.0)]);
        }
    }
}

/// Attaches a file to a loop device past the page cache. Detached when it is no longer used.
pub(crate) fn attach(file: &Path) -> Result<PathBuf, String> {
    step("losetup", &["--find", "--show", "--direct-io=on", text(file)]).map(PathBuf::from)
}

pub(crate) fn detach(device: &Path) {
    // Does not fail while it is mounted: then the kernel does so after the last use.
    let _ = step("losetup", &["--detach", text(device)]);
}

/// Returns where on the disk the blocks of a file are, in bytes. With `writes_back` its dirty pages are written back
/// first, and the result is not reported, as when the kernel does so on its own.
pub(crate) fn extents(file: &Path, writes_back: bool) -> Result<Vec<Range<u64>>, String> {
    let mut args = vec!["-v", "-b4096"];
    if writes_back {
        args.push("-s");
    }
    args.push(text(file));
    let said = step("filefrag", &args)?;
    // `  0:        0..      11:      33328..     33339:     12:             last,eof`
    let parse = |line: &str| -> Option<Range<u64>> {
        let mut fields = line.split(':');
        fields.next()?.trim().parse::<u64>().ok()?;
        let (from, to) = fields.nth(1)?.split_once("..")?;
        Some(from.trim().parse::<u64>().ok()? * 4096..(to.trim().parse::<u64>().ok()? + 1) * 4096)
    };
    Ok(said.lines().filter_map(parse).collect())
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("paths of ours are text")
}
