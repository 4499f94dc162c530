//! Every input that a fuzzer found or a person wrote, tried again as a plain test.
//!
//! `fuzz/corpus/TARGET/` holds the inputs and `oracles/` checks what must hold for each; `fuzz/` searches for new ones
//! (see CONTRIBUTING.md). Each input is tried as it is, and changed at random in a few ways, always the same ones;
//! `OPIK_OFFLINE_CASES` sets in how many. Inputs carry no secrets: they are made from `tests/fixtures`.

#![allow(clippy::disallowed_methods, reason = "a sweep takes its size from a variable")]

mod oracles;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use oracles::TARGETS;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// Returns the names in a folder, without their endings.
fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(root().join(folder)).expect("the fuzzers come with the source");
    let name = |path: PathBuf| path.file_stem().expect("it has a name").to_string_lossy().into_owned();
    entries.map(|entry| name(entry.expect("it can be read").path())).collect()
}

/// Tries every input of a target, and tells all that fail.
fn holds(target: &str) {
    let (_, oracle) = TARGETS.iter().find(|(name, _)| *name == target).expect("it is in the table");
    let folder = root().join("corpus").join(target);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(&folder).expect("it has inputs").map(|e| e.expect("it can be read").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty: nothing would be tried", folder.display());
    let inputs: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).expect("it can be read")).collect();
    let fails = |input: &[u8]| catch_unwind(AssertUnwindSafe(|| oracle(input))).is_err();
    let failed: Vec<&PathBuf> =
        paths.iter().zip(&inputs).filter(|(_, input)| fails(input)).map(|(path, _)| path).collect();
    assert!(failed.is_empty(), "promises are broken for {failed:#?}; the reasons stand above");

    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for (path, input) in paths.iter().zip(&inputs) {
        for _ in 0..cases() {
            let changed = random.changed(input, &inputs);
            if fails(&changed) {
                let kept = std::env::temp_dir().join(format!("opik-offline-{target}-{:016x}", random.0));
                fs::write(&kept, &changed).expect("what failed can be kept");
                panic!("{} was changed to {}, for which a promise is broken", path.display(), kept.display());
            }
        }
    }
}

fn cases() -> u32 {
    std::env::var("OPIK_OFFLINE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2)
}

/// Changes inputs at random: weaker than a fuzzer, but part of every test run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end.max(1)
    }

    fn changed(&mut self, input: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
        const BYTES_MAX: usize = 64 * 1024;
        const TELLING: &[u8] = b"{}[]\",: \\\n/?*=\0\x7f\x80\xff0-";
        let mut bytes = input.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let end = at + self.below((bytes.len() - at).min(64) + 1);
            match self.below(7) {
                0 => drop(bytes.drain(at..end)),
                1 => bytes.insert(at, TELLING[self.below(TELLING.len())]),
                2 => bytes[at..end].iter_mut().take(1).for_each(|byte| *byte ^= 1 << (self.below(8))),
                3 => bytes[at..end].iter_mut().take(1).for_each(|byte| *byte = TELLING[self.below(TELLING.len())]),
                4 => {
                    let times = 1 + self.below(3);
                    let again = bytes[at..end].repeat(times);
                    bytes.splice(at..at, again);
                }
                5 => {
                    let other = &others[self.below(others.len())];
                    let from = self.below(other.len() + 1);
                    let upto = from + self.below(other.len() - from + 1);
                    bytes.splice(at..at, other[from..upto].iter().copied());
                }
                _ => {
                    let chunk = bytes[at..end].to_vec();
                    let times = self.below(BYTES_MAX) / (chunk.len() * 40).max(1) * usize::from(self.below(8) == 0);
                    bytes.splice(at..at, chunk.repeat(times));
                }
            }
            bytes.truncate(BYTES_MAX);
        }
        bytes
    }
}

macro_rules! corpora {
    ($($target:ident: $promise:ident,)*) => {
        $(#[test]
        fn $promise() {
            holds(stringify!($target));
        })*

        #[test]
        fn every_target_is_fuzzed_and_tried() {
            let tried = BTreeSet::from([$(stringify!($target).to_owned(),)*]);
            assert_eq!(TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect::<BTreeSet<_>>(), tried);
            assert_eq!(names("fuzz_targets"), tried, "a target has no fuzzer");
            assert_eq!(names("corpus"), tried, "a target has no inputs, or inputs have no target");
        }
    };
}

corpora! {
    answers: no_answer_holds_a_lane_for_long,
    bodies: bodies_are_decoded_within_their_bound,
    delivery: what_is_sent_together_is_what_was_stored,
    division: the_pieces_of_a_batch_are_the_batch,
    fleet_objects: objects_of_a_depot_are_read_or_refused,
    inspection: what_a_server_reads_is_read_as_it_stands,
    otlp: otlp_requests_are_read_and_cut_without_loss,
    own_files: a_damaged_store_is_an_error_or_rows,
    requests: every_request_is_what_its_path_says,
    sdk_files: a_damaged_file_of_the_sdk_is_read_and_not_changed,
    sdk_rows: rows_of_the_sdk_become_its_requests,
    settings: settings_mean_the_same_when_printed,
}
