//! The fault layer from the test's side: built once, told by the environment, read through its counters.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::support::tempdir;

/// Two of `enum counter` in `disk.c`, by their places.
#[derive(Clone, Copy)]
pub(crate) enum Counter {
    Operations = 0,
    /// Errors that the layer made.
    Failed = 5,
}

const COUNTERS: usize = 6;
/// Bytes of what `disk.c` keeps after them: 64 times `struct mapping`, and `struct outage`.
const MAPPINGS: usize = 64 * 32 + 16;
/// The store, below the watched folder.
pub(crate) const DB: &str = "local/share/opik-offline/opik_messages.db";

/// Returns the layer as a library to preload.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (ours, library) = (folder.join(format!("disk-{}.so", std::process::id())), folder.join("disk.so"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/disk.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&ours).arg(&source);
        let output = cc.args(["-ldl", "-lpthread"]).output();
        let output = output.expect("a C compiler is there: apt-get install build-essential");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Another test process may use the existing one.
        fs::rename(&ours, &library).expect("it can be put in its place");
        library
    })
}

/// A watched folder with its counters and journal beside it.
pub(crate) struct Layer {
    dir: TempDir,
}

impl Layer {
    pub(crate) fn new() -> Self {
        let dir = tempdir();
        let layer = Self { dir };
        fs::write(layer.counters(), [0; 8 * COUNTERS + MAPPINGS]).expect("a file can be made");
        fs::write(layer.journal(), "").expect("a file can be made");
        fs::create_dir(layer.root()).expect("a folder can be made");
        layer
    }

    /// Returns the watched folder.
    pub(crate) fn root(&self) -> PathBuf {
        fs::canonicalize(self.dir.path()).expect("it is there").join("disk")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    fn counters(&self) -> PathBuf {
        self.dir.path().join("counters")
    }

    /// Returns where the store is: below folders that the agent makes, as in a new user's home.
    pub(crate) fn db(&self) -> PathBuf {
        self.root().join(DB)
    }

    /// Returns what a process needs in its environment to be watched.
    pub(crate) fn env(&self) -> Vec<(&'static str, String)> {
        let text = |path: PathBuf| path.to_str().expect("a path of ours").to_owned();
        vec![
            ("LD_PRELOAD", text(library().to_owned())),
            ("OPIK_DISK_ROOT", text(self.root())),
            ("OPIK_DISK_COUNTERS", text(self.counters())),
        ]
    }

    /// The same, with all that changes the disk in the journal.
    pub(crate) fn recording(&self) -> Vec<(&'static str, String)> {
        let journal = self.journal().to_str().expect("a path of ours").to_owned();
        [self.env(), vec![("OPIK_DISK_JOURNAL", journal)]].concat()
    }

    /// Returns a count of what was done so far. Everything acknowledged before this call was done by then.
    pub(crate) fn count(&self, counter: Counter) -> u64 {
        let mut bytes = [0; 8];
        let file = File::open(self.counters()).expect("it is there");
        file.read_exact_at(&mut bytes, 8 * counter as u64).expect("it has all counters");
        u64::from_ne_bytes(bytes)
    }

    /// Returns how many operations were done so far.
    pub(crate) fn now(&self) -> u64 {
        self.count(Counter::Operations)
    }
}
