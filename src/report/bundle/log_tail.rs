//! The last lines of a log file that opik-offline wrote, parsed line by line.
//!
//! The Python SDK writes to the same file if it is told so, and its debug lines may quote payloads. So only lines in
//! the two formats of [`crate::telemetry::log`] are taken, with the targets of opik-offline, and the others are counted.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::figures::count;

/// How much of the file is read, from its end.
const BYTES_MAX: u64 = 512 * 1024;
const LEVELS: [&str; 5] = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];
const TARGETS: [&str; 6] =
    ["connection_monitor", "replay_manager", "db_manager", "intake", "fleet", env!("CARGO_CRATE_NAME")];

/// Returns the last lines of this file; `None` if there is no such file or it can't be read.
pub(super) fn read(path: &Path) -> Option<String> {
    // A pipe would block.
    let mut file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path).ok()?;
    let facts = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let from = facts.len().saturating_sub(BYTES_MAX);
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(own_lines(&String::from_utf8_lossy(&bytes), from > 0))
}

fn own_lines(text: &str, is_cut: bool) -> String {
    let mut kept = String::new();
    let mut left_out = 0;
    // The first line is incomplete.
    for line in text.lines().skip(usize::from(is_cut)) {
        if is_own(line) {
            kept.push_str(line);
            kept.push('\n');
        } else {
            left_out += 1;
        }
    }
    if left_out > 0 {
        kept.push_str(&format!("({} of other programs left out)\n", count(left_out, "line")));
    }
    kept
}

/// Returns whether a line is in one of our formats.
fn is_own(line: &str) -> bool {
    if line.starts_with('{') {
        let document: Option<serde_json::Value> = serde_json::from_str(line).ok();
        return document.is_some_and(|line| line["target"].as_str().is_some_and(is_own_target));
    }
    let mut words = line.split_whitespace();
    let is_time = words.next().is_some_and(|time| time.len() == 24 && time.ends_with('Z') && time.contains('T'));
    let is_level = words.next().is_some_and(|level| LEVELS.contains(&level));
    is_time && is_level && words.next().and_then(|target| target.strip_suffix(':')).is_some_and(is_own_target)
}

fn is_own_target(target: &str) -> bool {
    TARGETS.contains(&target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_opik_offline_are_taken() {
        let own = "2026-11-22T18:00:00.123Z  INFO intake: listening on http://127.0.0.1:6745\n";
        let json = r#"{"timestamp":"2026-11-22T18:00:00.123Z","level":"WARN","target":"db_manager","message":"x"}"#;
        let others =
            "OPIK DEBUG: sending {\"input\": \"private\"}\n2026-11-22 18:00:00,123 INFO private\n{\"private\": 1}\n";
        let text = format!("the end of a line\n{own}{others}{json}\n");
        let kept = own_lines(&text, true);
        assert_eq!(kept, format!("{own}{json}\n(3 lines of other programs left out)\n"));
        assert_eq!(own_lines("", false), "");
    }

    #[test]
    fn the_end_of_a_large_file_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("opik.log");
        let line = |number: usize| format!("2026-11-22T18:00:00.123Z  INFO intake: line {number:060}\n");
        std::fs::write(&file, (0..20_000).map(line).collect::<String>()).expect("a file");
        let tail = read(&file).expect("it can be read");
        assert!(tail.ends_with(&line(19_999)) && tail.len() as u64 <= BYTES_MAX, "{}", tail.len());
        assert!(!tail.contains("left out"), "a cut line counts as none");
        assert!(read(folder.path()).is_none() && read(&folder.path().join("none")).is_none());
    }
}
