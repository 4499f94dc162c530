//! Every input that a fuzzer found or a person wrote, tried again as a plain test.
//!
//! `fuzz/corpus/TARGET/` holds the inputs and `oracles/` says what must hold for each; `fuzz/` looks for new ones
//! (CONTRIBUTING.md says how). Inputs carry no secrets: they are made from `tests/fixtures`.

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
    let fails = |path: &&PathBuf| {
        let input = fs::read(path).expect("it can be read");
        catch_unwind(AssertUnwindSafe(|| oracle(&input))).is_err()
    };
    let failed: Vec<&PathBuf> = paths.iter().filter(fails).collect();
    assert!(failed.is_empty(), "promises are broken for {failed:#?}; the reasons stand above");
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
    inspection: what_a_server_reads_is_read_as_it_stands,
    otlp: otlp_requests_are_read_and_cut_without_loss,
    own_files: a_damaged_store_is_an_error_or_rows,
    requests: every_request_is_what_its_path_says,
    sdk_files: a_damaged_file_of_the_sdk_is_read_and_not_changed,
    sdk_rows: rows_of_the_sdk_become_its_requests,
    settings: settings_mean_the_same_when_printed,
}
