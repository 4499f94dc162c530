//! Damaged files: of the Python SDK, and our own, old and new.
//!
//! An input is not a file but a series of changes to one, so that it stays small: a byte that chooses the file, and
//! steps of eight bytes each. It is the damage that counts, and a fuzzer finds places in a file of 200 KB better with
//! four bytes than by chance.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use opik_offline::sdk::file::SdkFile;
use opik_offline::sdk::trust::FileOwner;
use opik_offline::shutdown::Shutdown;
use opik_offline::store::{self, Filter, Limits, OpenMode, Page, StoreError, WhenFull};

const LIMITS: Limits = Limits { size_max: 1 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };
const PAGE_BYTES: usize = 4096;
const STEPS_MAX: usize = 32;

/// A database and the files beside it.
type Files = Vec<(&'static str, Vec<u8>)>;

fn fixture(name: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = if root.ends_with("fuzz") { root.join("..") } else { root.to_owned() };
    let path = root.join("tests/fixtures").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the damaged files that an input means: the chosen ones, changed step by step.
fn damaged(input: &[u8], whole: &[Files]) -> Option<(usize, Files)> {
    let (first, steps) = input.split_first()?;
    let chosen = usize::from(*first) % whole.len();
    let mut files = whole[chosen].clone();
    for step in steps.chunks_exact(8).take(STEPS_MAX) {
        let number =
            |at: usize| usize::from(step[at]) << 16 | usize::from(step[at + 1]) << 8 | usize::from(step[at + 2]);
        let which = usize::from(step[0] >> 4) % files.len();
        let bytes = &mut files[which].1;
        if bytes.is_empty() {
            continue;
        }
        let at = number(1) % bytes.len();
        let page = at / PAGE_BYTES * PAGE_BYTES;
        let page_end = (page + PAGE_BYTES).min(bytes.len());
        match step[0] & 7 {
            0 => bytes[at] ^= step[7],
            1 => bytes.truncate(at),
            2 => bytes[page..page_end].fill(step[7]),
            3 => {
                let from = number(4) % bytes.len() / PAGE_BYTES * PAGE_BYTES;
                let length = (page_end - page).min(bytes.len() - from);
                bytes.copy_within(from..from + length, page);
            }
            // Numbers in heads of pages and cells: 1 to 4 bytes.
            4 => {
                let length = (1 + usize::from(step[0] >> 3 & 1) * 3).min(bytes.len() - at);
                bytes[at..at + length].copy_from_slice(&step[4..4 + length]);
            }
            5 => bytes[at] = step[7],
            6 => bytes.extend_from_slice(&step[4..]),
            _ => bytes[page..page_end].reverse(),
        }
    }
    Some((chosen, files))
}

/// Changes to a file of the Python SDK, or to the journal that a killed process left beside it.
pub(crate) fn sdk_files(input: &[u8]) {
    static WHOLE: OnceLock<Vec<Files>> = OnceLock::new();
    let whole = WHOLE.get_or_init(|| {
        let beside = ("sdk.db-journal", fixture("sdk-store/killed-hot-journal.db-journal"));
        vec![
            vec![("sdk.db", fixture("sdk-store/all-types.db"))],
            vec![("sdk.db", fixture("sdk-store/killed-hot-journal.db")), beside],
        ]
    });
    let Some((_, files)) = damaged(input, whole) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, bytes) in &files {
        fs::write(folder.path().join(name), bytes).expect("it fits");
    }
    if let Ok(mut file) =
        SdkFile::open(&folder.path().join("sdk.db"), folder.path(), FileOwner::this_user(), &Shutdown::new())
    {
        let mut last = None;
        while let Ok(Some(row)) = file.next_row() {
            assert!(last.is_none_or(|last| last < row.message_id), "row {} comes twice", row.message_id);
            last = Some(row.message_id);
        }
        let _ = file.unread();
    }
    for (name, bytes) in &files {
        let now = fs::read(folder.path().join(name)).expect("a file that is not ours stays where it is");
        assert!(now == *bytes, "a file that is not ours is changed");
    }
}

/// Changes to a store of ours: of the first release, which is migrated, and of this one.
pub(crate) fn own_files(input: &[u8]) {
    static WHOLE: OnceLock<Vec<Files>> = OnceLock::new();
    let whole = WHOLE.get_or_init(|| {
        let old = fixture("stores/version-1.db");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("opik_messages.db");
        fs::write(&path, &old).expect("it fits");
        drop(store::open(&path, OpenMode::Existing, LIMITS).expect("a store of the first release is migrated"));
        let new = fs::read(&path).expect("it is there");
        vec![vec![("opik_messages.db", old)], vec![("opik_messages.db", new)]]
    });
    let Some((_, files)) = damaged(input, whole) else { return };
    for mode in [OpenMode::Existing, OpenMode::ExistingOrRecovered] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("opik_messages.db");
        fs::write(&path, &files[0].1).expect("it fits");
        match store::open(&path, mode, LIMITS) {
            Ok(store) => look_through(&*store),
            Err(StoreError::Damaged { .. }) if mode.recovers() => {
                panic!("the agent can't work with a store that was damaged");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

fn look_through(store: &dyn store::Store) {
    let all = Filter::default();
    let mut seen = BTreeSet::new();
    let mut after = None;
    while let Ok(listed) = store.list(&all, &Page { after, limit: 50, newest_first: false }) {
        let Some(last) = listed.last() else { break };
        after = Some(last.id);
        for message in &listed {
            assert!(seen.insert(message.id), "message {} is listed twice", message.id);
            let _ = store.get(message.id);
            let _ = store.piece(message.id, 0);
        }
    }
    let _ = (store.backlog(&all), store.check(), store.condition(), store.lanes(&all, i64::MAX / 2));
}
