use std::fs;
use std::os::unix::fs::symlink;

use super::*;

/// 2026-11-22 20:07:08 UTC
const NOW_MS: i64 = 1_795_378_028_000;
const SERVER: &str = "https://opik.example/api";

fn sample(seconds_ago: i64, waiting: u64) -> Sample {
    let at_ms = NOW_MS - seconds_ago * 1000;
    let away = Away { from_ms: at_ms - 3000, for_ms: 3000 };
    Sample { at_ms, waiting: Some(waiting), available: Some(false), away, ..Sample::default() }
}

fn file() -> (tempfile::TempDir, HistoryFile) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = HistoryFile::beside(&folder.path().join("store.db"), SERVER);
    (folder, file)
}

fn waiting(past: &Past) -> (Vec<Option<u64>>, Vec<Option<u64>>) {
    let of = |samples: &[Sample]| samples.iter().map(|sample| sample.waiting).collect();
    (of(&past.fine), of(&past.coarse))
}

#[test]
fn the_history_file_returns_its_samples_and_never_grows() {
    let (_folder, file) = file();
    assert_eq!(waiting(&file.read(NOW_MS).expect("no file is an empty one")), (vec![], vec![]));
    // Two days, the newest last.
    for seconds_ago in (0..2 * 24 * 3600).rev().step_by(59) {
        let sample = sample(seconds_ago, seconds_ago as u64);
        file.write(&sample, &sample, true).expect("it can be written");
    }
    assert_eq!(fs::metadata(&file.path).expect("the file").len(), FILE_BYTES as u64);
    let past = file.read(NOW_MS + 1000).expect("it can be read");
    assert_eq!(past.fine.last(), Some(&sample(47, 47)));
    assert!(past.fine.len() >= 15 && past.coarse.len() > 1400, "{} {}", past.fine.len(), past.coarse.len());
    assert!(past.coarse.iter().all(|sample| sample.at_ms > NOW_MS - 24 * 3_600_000 - 60_000));
    assert!(past.coarse.is_sorted_by_key(|sample| sample.at_ms));
}

#[test]
fn only_its_owner_reads_it_and_it_names_nothing() {
    let (_folder, file) = file();
    file.write(&sample(0, 7), &sample(0, 7), true).expect("it can be written");
    let mode = || fs::metadata(&file.path).expect("the file").permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    fs::set_permissions(&file.path, Permissions::from_mode(0o644)).expect("ours");
    file.write(&sample(0, 7), &sample(0, 7), true).expect("it can be written");
    assert_eq!(mode(), 0o600);
    let bytes = fs::read(&file.path).expect("ours");
    assert!(!bytes[SLOT_BYTES..].windows(4).any(|window| window == b"opik"), "it names the server");
}

#[test]
fn another_servers_history_is_not_shown() {
    let (folder, file) = file();
    file.write(&sample(5, 7), &sample(5, 7), true).expect("it can be written");
    let other = HistoryFile::beside(&folder.path().join("store.db"), "https://other.example/api");
    assert_eq!(waiting(&other.read(NOW_MS).expect("it can be read")), (vec![], vec![]));
    assert_eq!(waiting(&file.read(NOW_MS).expect("it can be read")), (vec![Some(7)], vec![Some(7)]));
}

#[test]
fn broken_slots_are_skipped() {
    let (_folder, file) = file();
    for seconds_ago in [5, 65, 125] {
        file.write(&sample(seconds_ago, 7), &sample(seconds_ago, 7), true).expect("it can be written");
    }
    let whole = fs::read(&file.path).expect("ours");
    let count = |bytes: &[u8]| {
        fs::write(&file.path, bytes).expect("ours");
        file.read(NOW_MS).map(|past| past.fine.len() + past.coarse.len())
    };
    assert_eq!(count(&whole).expect("whole"), 6);
    let at = Ring::Fine.offset(sample(65, 7).at_ms) as usize;
    for byte in at..at + SLOT_BYTES {
        let mut torn = whole.clone();
        torn[byte] ^= 1;
        assert_eq!(count(&torn).expect("it can be read"), 5, "byte {byte}");
    }
    // A slot at another slot's place.
    let mut moved = whole.clone();
    moved.copy_within(at..at + SLOT_BYTES, at + SLOT_BYTES);
    assert_eq!(count(&moved).expect("it can be read"), 6);
    // After a power cut: without contents, or without an end.
    assert_eq!(count(&vec![0; FILE_BYTES]).expect("empty"), 0);
    assert_eq!(count(&whole[..FILE_BYTES - 1]).expect("cut"), 0);
    file.write(&sample(5, 7), &sample(5, 7), true).expect("it is begun again");
    assert_eq!(file.read(NOW_MS).expect("whole again").fine.len(), 1);
    assert_eq!(fs::metadata(&file.path).expect("the file").len(), FILE_BYTES as u64);
}

#[test]
fn the_future_and_a_hostile_outage_are_not_drawn() {
    let (_folder, file) = file();
    let future = sample(-3600, 7);
    file.write(&future, &future, true).expect("it can be written");
    assert_eq!(waiting(&file.read(NOW_MS).expect("it can be read")), (vec![], vec![]));
    let long = Sample { away: Away { from_ms: 0, for_ms: u64::MAX >> 2 }, ..sample(5, 7) };
    file.write(&long, &long, true).expect("it can be written");
    assert_eq!(file.read(NOW_MS).expect("it can be read").fine[0].away, Away::default());
}

#[test]
fn files_of_others_are_left_alone() {
    let (folder, file) = file();
    let victim = folder.path().join("victim");
    let refused = |what: &str| {
        let before = fs::read(&victim).expect("ours");
        assert!(file.write(&sample(5, 7), &sample(5, 7), true).is_err(), "{what} was written");
        assert!(file.read(NOW_MS).is_err(), "{what} was read");
        assert_eq!(fs::read(&victim).expect("ours"), before, "{what}");
        fs::remove_file(&file.path).expect("ours");
    };
    fs::write(&victim, vec![0; FILE_BYTES]).expect("ours");
    symlink(&victim, &file.path).expect("a link");
    refused("a symbolic link");
    fs::hard_link(&victim, &file.path).expect("a link");
    refused("a file with two names");
    fs::write(&file.path, vec![b'x'; FILE_BYTES]).expect("ours");
    refused("a file with other contents");
    fs::write(&file.path, "x").expect("ours");
    refused("a short file with other contents");
    rustix::fs::mknodat(rustix::fs::CWD, &file.path, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
    refused("a pipe");
}

#[test]
fn a_nearly_full_disk_gets_no_new_file() {
    let (_folder, file) = file();
    assert!(file.write(&sample(5, 7), &sample(5, 7), false).is_err());
    assert!(!file.path.exists());
    file.write(&sample(5, 7), &sample(5, 7), true).expect("it can be written");
    file.write(&sample(0, 8), &sample(0, 8), false).expect("an existing file is written in place");
}
