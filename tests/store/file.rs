//! Properties of files: permissions, other people's files, newer versions, removal, limits.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use opik_offline::message::{Body, Credential, Effect, Encoding, EntityKind, Lane, MessageId, MessageType, Server};
use opik_offline::store::sqlite::SqliteStore;
use opik_offline::store::{
    Browse, ClaimLimits, Filter, Intake, Limits, Maintain, OpenMode, Outcome, Owner, Page, Replay, StoreError,
    WhenFull, now_ms,
};
use rusqlite::Connection;

use crate::messages::{about_trace, lane, touch};
use crate::not_run::not_run;
use crate::story::{LIMITS, open};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("the file exists").permissions().mode() & 0o7777
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Everything in a folder with its bytes, to show that nothing in it has changed.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("the folder can be read")
        .map(|entry| entry.expect("the folder can be read").path())
        // The shared memory beside a log that is in use holds marks of readers, and nothing that is kept.
        .filter(|path| path.is_file() && !path.to_string_lossy().ends_with("-shm"))
        .map(|path| (path.clone(), fs::read(&path).expect("the file can be read")))
        .collect();
    files.sort();
    files
}

fn assert_unchanged(folder: &Path, before: &[(PathBuf, Vec<u8>)]) {
    let after = contents(folder);
    let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
    assert_eq!(names(&after), names(before));
    for ((path, after), (_, before)) in after.iter().zip(before) {
        assert!(after == before, "{} was changed", path.display());
    }
}

fn refusal(path: &Path) -> StoreError {
    match SqliteStore::open(path, OpenMode::CreateIfMissing, LIMITS) {
        Ok(_) => panic!("{} was opened as a store", path.display()),
        Err(error) => error,
    }
}

#[test]
fn a_store_is_the_same_when_it_is_opened_again_and_no_other_under_its_path_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.db");
    let first = open(&path).identity();
    assert_eq!(open(&path).identity(), first, "decisions about its messages are forgotten without need");
    // The system may give the next file the number of this one, as soon as nobody has it open.
    for _ in 0..20 {
        for suffix in ["", "-wal", "-shm"] {
            // The last two are removed by the process that closes the store last.
            let _ = fs::remove_file(beside(&path, suffix));
        }
        assert_ne!(open(&path).identity(), first, "decisions about other messages would be applied to these");
    }
}

#[test]
fn only_this_user_can_read_the_store_whatever_the_umask() {
    // The umask belongs to the process, so a child of its own sets it.
    if std::env::var_os("OPIK_OFFLINE_TEST_UMASK").is_none() {
        for umask in ["000", "777"] {
            let test = "file::only_this_user_can_read_the_store_whatever_the_umask";
            let child = std::process::Command::new(std::env::current_exe().expect("this test has a path"))
                .args(["--exact", test, "--nocapture"])
                .env("OPIK_OFFLINE_TEST_UMASK", umask)
                .output()
                .expect("this test can be started again");
            assert!(child.status.success(), "umask {umask}: {}", String::from_utf8_lossy(&child.stderr));
        }
        return;
    }
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let umask = std::env::var("OPIK_OFFLINE_TEST_UMASK").expect("set above");
    let umask = u32::from_str_radix(&umask, 8).expect("an octal number");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
    let folder = temporary.path().join("opik-offline");
    let path = folder.join("opik_messages.db");
    let store = open(&path);
    store.register(&[about_trace(&lane("team"), "a", Effect::Create, 1)]).expect("it fits");
    assert_eq!(mode(&folder), 0o700);
    for suffix in ["", "-wal", "-shm"] {
        assert_eq!(mode(&beside(&path, suffix)), 0o600, "opik_messages.db{suffix}");
    }
}

#[test]
fn a_store_that_others_can_read_is_closed_when_it_is_opened() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let folder = temporary.path().join("opik-offline");
    let path = folder.join("opik_messages.db");
    let store = open(&path);
    store.register(&[about_trace(&lane("team"), "a", Effect::Create, 1)]).expect("it fits");
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    set(&folder, 0o755);
    for suffix in ["", "-wal", "-shm"] {
        set(&beside(&path, suffix), 0o644);
    }
    // Another process opens it while the first works with it.
    let again = open(&path);
    assert_eq!(mode(&folder), 0o700);
    for suffix in ["", "-wal", "-shm"] {
        assert_eq!(mode(&beside(&path, suffix)), 0o600, "opik_messages.db{suffix}");
    }
    for store in [&store, &again] {
        store.register(&[about_trace(&lane("team"), "b", Effect::Create, 2)]).expect("both continue");
    }
    // A folder that is not of our making stays as its owner wants it.
    set(temporary.path(), 0o755);
    open(&temporary.path().join("here.db"));
    assert_eq!(mode(temporary.path()), 0o755);
}

/// Somebody who is neither root nor, most likely, the user of this test.
const STRANGER: u32 = 54_321;

/// A folder that everybody can write, like `/tmp`, and a file that a trap in it would overwrite.
struct Traps {
    victim: PathBuf,
    shared: PathBuf,
}

impl Traps {
    fn new(folder: &Path) -> Self {
        let victim = folder.join("victim");
        fs::write(&victim, "precious").expect("the folder is ours");
        let shared = folder.join("shared");
        fs::create_dir(&shared).expect("the folder is ours");
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).expect("the folder is ours");
        Self { victim, shared }
    }
}

/// Fails when the store at `path` is opened in spite of the trap, or the victim is written.
fn refused(path: &Path, trap: &Path, victim: &Path) {
    let StoreError::Unusable { reason, .. } = refusal(path) else { panic!("{}", refusal(path)) };
    assert!(reason.contains(&*trap.to_string_lossy()) && reason.contains("not trusted"), "{reason}");
    assert_eq!(fs::read_to_string(victim).expect("it is there"), "precious", "it was written through a trap");
}

#[test]
fn a_trap_on_the_way_to_the_store_is_refused_and_nothing_is_written_through_it() {
    use std::os::unix::fs::symlink;

    let temporary = tempfile::tempdir().expect("a temporary folder");
    let Traps { victim, shared } = Traps::new(temporary.path());
    let refused = |path: &Path, trap: &Path| refused(path, trap, &victim);
    for suffix in ["-wal", "-shm", "-journal"] {
        let path = shared.join("logged.db");
        let trap = beside(&path, suffix);
        symlink(&victim, &trap).expect("anybody may");
        refused(&path, &trap);
        fs::remove_file(&trap).expect("it is ours");
    }
    open(&shared.join("mine.db")).register(&[about_trace(&lane("t"), "a", Effect::Create, 1)]).expect("a good place");
    // A link of the same user keeps working, here and in the home directory.
    symlink(shared.join("mine.db"), temporary.path().join("link.db")).expect("the folder is ours");
    symlink(shared.join("mine.db"), shared.join("link.db")).expect("anybody may");
    for link in [temporary.path().join("link.db"), shared.join("link.db")] {
        assert_eq!(open(&link).ahead(&lane("t"), &[]).expect("it can be read").messages, 1);
    }
}

#[test]
fn another_users_file_or_link_on_the_way_to_the_store_is_refused() {
    use std::os::unix::fs::{chown, symlink};

    if !rustix::process::geteuid().is_root() {
        return not_run("only root can make files of another user");
    }
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let Traps { victim, shared } = Traps::new(temporary.path());
    let refused = |path: &Path, trap: &Path| refused(path, trap, &victim);
    open(&shared.join("mine.db")).register(&[about_trace(&lane("t"), "a", Effect::Create, 1)]).expect("a good place");
    let planted = |name: &str, make: &dyn Fn(&Path)| {
        let path = shared.join(name);
        make(&path);
        std::os::unix::fs::lchown(&path, Some(STRANGER), Some(STRANGER)).expect("root may");
        path
    };
    let link = planted("link-to-file.db", &|path| symlink(&victim, path).expect("a link"));
    refused(&link, &link);
    let link = planted("link-to-nothing.db", &|path| symlink(shared.join("new.db"), path).expect("a link"));
    refused(&link, &link);
    assert!(!shared.join("new.db").exists(), "a file was made through a trap");
    let link = planted("link-to-folder", &|path| symlink(temporary.path(), path).expect("a link"));
    refused(&link.join("x.db"), &link);
    let folder = planted("folder", &|path| fs::create_dir(path).expect("a folder"));
    refused(&folder.join("x.db"), &folder);
    assert!(!folder.join("x.db").exists(), "a store was made in another user's folder");
    let file = planted("file.db", &|path| fs::write(path, "").expect("a file"));
    refused(&file, &file);
    let log = planted("theirs.db-wal", &|path| fs::write(path, "").expect("a file"));
    refused(&shared.join("theirs.db"), &log);
    // Root may look at another user's store, as long as no link leads there.
    let theirs = shared.join("mine.db");
    chown(&theirs, Some(STRANGER), Some(STRANGER)).expect("root may");
    refused(&theirs, &theirs);
    SqliteStore::open(&theirs, OpenMode::Existing, LIMITS).expect("root may look at it");
}

#[test]
fn a_new_store_is_made_only_where_it_is_wanted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("deep/er/opik_messages.db");
    let missing = SqliteStore::open(&path, OpenMode::Existing, LIMITS);
    assert!(matches!(missing, Err(StoreError::Missing { .. })));
    assert!(!folder.path().join("deep").exists(), "looking for a store makes no folder");
    let empty = folder.path().join("empty.db");
    fs::write(&empty, b"").expect("the folder is ours");
    for path in [path, empty] {
        open(&path).register(&[about_trace(&lane("t"), "a", Effect::Create, 1)]).expect("a new store takes messages");
        let again = SqliteStore::open(&path, OpenMode::Existing, LIMITS).expect("it is there now");
        assert_eq!(again.ahead(&lane("t"), &[]).expect("it can be read").messages, 1);
    }
}

#[test]
fn foreign_files_are_refused_with_a_reason_and_left_unchanged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("folder.db")).expect("the folder is ours");
    fs::write(at("text.db"), "Dear diary,\n".repeat(1000)).expect("the folder is ours");
    fs::write(at("short.db"), "x").expect("the folder is ours");
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sdk-store/all-types.db"),
        at("python sdk?#%.db"),
    )
    .expect("the fixture is in the repository");
    let foreign = Connection::open(at("foreign.db")).expect("a database");
    foreign.execute_batch("CREATE TABLE messages (id, text); PRAGMA user_version = 1").expect("a table");
    drop(foreign);
    let marked = Connection::open(at("marked.db")).expect("a database");
    marked.execute_batch("PRAGMA application_id = 7; CREATE TABLE t (x)").expect("a table");
    drop(marked);

    let before = contents(folder.path());
    for (name, reason) in [
        ("folder.db", "it is a directory"),
        ("text.db", "it is not an SQLite database"),
        ("short.db", "it is not an SQLite database"),
        ("python sdk?#%.db", "leftover file of the Opik Python SDK"),
        ("foreign.db", "the database of another program"),
        ("marked.db", "the database of another program"),
    ] {
        let error = refusal(&at(name));
        assert!(matches!(error, StoreError::NotAStore { .. }), "{name}: {error}");
        assert!(error.to_string().contains(reason), "{name}: {error}");
    }
    assert_unchanged(folder.path(), &before);
}

#[test]
fn a_newer_schema_is_refused_untouched() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    open(&path).register(&[about_trace(&lane("team"), "a", Effect::Create, 1)]).expect("it fits");
    let newer = Connection::open(&path).expect("a database");
    newer.pragma_update(None, "user_version", 99).expect("a version");
    // Once with the new version only in the log of a program that is still running, once written back.
    for _ in 0..2 {
        let before = contents(folder.path());
        let error = refusal(&path);
        assert!(matches!(error, StoreError::NewerSchema { found: 99, .. }), "{error}");
        assert_unchanged(folder.path(), &before);
        newer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("nobody else reads");
    }
    drop(newer);
    let before = contents(folder.path());
    assert_eq!(before.len(), 2, "the other program left one file, beside the ballast");
    assert!(matches!(refusal(&path), StoreError::NewerSchema { found: 99, known: _, at: _ }));
    assert_unchanged(folder.path(), &before);
}

#[test]
fn the_file_is_in_the_form_that_the_engine_relies_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let _store = open(&path);
    let look = Connection::open(&path).expect("a database");
    let pragma = |name: &str| -> String {
        look.pragma_query_value(None, name, |row| {
            Ok(match row.get_ref(0)? {
                rusqlite::types::ValueRef::Integer(number) => number.to_string(),
                other => other.as_str()?.to_owned(),
            })
        })
        .expect("a pragma")
    };
    assert_eq!((pragma("journal_mode"), pragma("auto_vacuum")), ("wal".into(), "2".into()));
    assert_eq!(pragma("application_id"), 0x4f70_4f66.to_string());
}

#[test]
fn errors_of_the_system_are_reported_in_its_words() {
    // Root may do everything, so the refusals here are those that even root gets.
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("file"), "x").expect("the folder is ours");
    let below_a_file = refusal(&folder.path().join("file/opik_messages.db"));
    assert!(matches!(below_a_file, StoreError::Unusable { .. }), "{below_a_file}");
    assert!(below_a_file.to_string().ends_with("not a directory"), "{below_a_file}");
    let too_long = refusal(&folder.path().join("x".repeat(300)));
    assert!(too_long.to_string().ends_with("file name too long"), "{too_long}");
}

#[test]
fn a_file_or_folder_that_may_not_be_written_is_named() {
    // Root may write everything: there the thread of this test becomes another user for good.
    if rustix::process::geteuid().is_root() {
        let stranger = rustix::process::Uid::from_raw(STRANGER);
        rustix::thread::set_thread_res_uid(stranger, stranger, stranger).expect("root may become anybody");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    drop(open(&path));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("it is ours");
    let read_only = refusal(&path);
    assert!(read_only.to_string().ends_with("permission denied"), "{read_only}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).expect("it is ours");
    let no_log = refusal(&path);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("it is ours");
    assert!(no_log.to_string().contains("its folder"), "{no_log}");
}

#[test]
fn a_damaged_file_is_called_damaged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let messages: Vec<_> = (0..200).map(|i| about_trace(&lane("team"), &i.to_string(), Effect::Create, i)).collect();
    open(&path).register(&messages).expect("they fit");
    let mut bytes = fs::read(&path).expect("it is ours");
    let end = bytes.len();
    bytes[4096..end - 4096].fill(0xa5);
    fs::write(&path, bytes).expect("it is ours");
    match SqliteStore::open(&path, OpenMode::Existing, LIMITS) {
        Err(error) => assert!(matches!(error, StoreError::Damaged { .. }), "{error}"),
        Ok(store) => {
            assert_ne!(store.check().expect("a check reports the fault"), Vec::<String>::new());
            let page = Page { after: None, limit: 1000, newest_first: false };
            let error = store.list(&Filter::default(), &page).expect_err("most pages are overwritten");
            assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        }
    }
}

#[test]
fn a_message_in_a_removed_file_is_not_stored() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let store = open(&path);
    fs::remove_file(&path).expect("it is ours");
    let error =
        store.register(&[about_trace(&lane("team"), "a", Effect::Create, 1)]).expect_err("nobody would find it");
    assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
}

fn fill(store: &SqliteStore, limit: i64) -> (i64, Option<StoreError>) {
    for number in 0..limit {
        let mut message = about_trace(&lane("team"), &number.to_string(), Effect::Create, number);
        // A body that its client compressed is stored unchanged.
        message.request.body = Body::new(vec![b'x'; 20_000], Encoding::Gzip);
        if let Err(error) = store.register(&[message]) {
            return (number, Some(error));
        }
    }
    (limit, None)
}

#[test]
fn a_full_store_refuses_and_stays_within_its_limit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let limits = Limits { size_max: 8 << 20, disk_reserve: 0, when_full: WhenFull::Refuse };
    let store = SqliteStore::open(&path, OpenMode::CreateIfMissing, limits).expect("a new store");
    let (stored, error) = fill(&store, 1000);
    assert!(matches!(error, Some(StoreError::Full { .. })), "{error:?}");
    assert!(stored > 50, "{stored} messages of 20 kB in 8 MiB");
    let size = |suffix| fs::metadata(beside(&path, suffix)).map_or(0, |metadata| metadata.len());
    assert!(size("") + size("-wal") <= limits.size_max, "{} + {}", size(""), size("-wal"));
    // Nothing of what was stored is lost, and when some of it goes there is room again.
    assert_eq!(store.ahead(&lane("team"), &[]).expect("it can be read").messages, stored as u64);
    assert_eq!(store.purge(&Filter::default(), 20).expect("it can be purged").messages, 20);
    assert_eq!(fill(&store, 10).0, 10);
}

#[test]
fn a_full_store_evicts_and_counts_the_oldest_if_configured() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let limits = Limits { size_max: 8 << 20, disk_reserve: 0, when_full: WhenFull::DropOldest };
    let store = SqliteStore::open(&path, OpenMode::CreateIfMissing, limits).expect("a new store");
    let (stored, error) = fill(&store, 1000);
    assert!(error.is_none(), "{error:?}");
    let dropped = store.condition().expect("it can be read").dropped;
    let waiting = store.ahead(&lane("team"), &[]).expect("it can be read").messages;
    assert_eq!(waiting + dropped, stored as u64);
    assert!(dropped > 0);
    let page = Page { after: None, limit: 1, newest_first: false };
    let oldest = store.list(&Filter::default(), &page).expect("it can be read");
    assert_eq!(oldest[0].id, MessageId(dropped as i64 + 1), "the oldest went first");
    let size = |suffix| fs::metadata(beside(&path, suffix)).map_or(0, |metadata| metadata.len());
    assert!(size("") + size("-wal") <= limits.size_max + (1 << 20), "{} + {}", size(""), size("-wal"));
    assert_eq!(store.check().expect("it can be read"), Vec::<String>::new());
}

#[test]
fn the_disk_reserve_is_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let limits = Limits { size_max: u64::MAX, disk_reserve: u64::MAX / 2, when_full: WhenFull::Refuse };
    let store = SqliteStore::open(&path, OpenMode::CreateIfMissing, limits).expect("a new store");
    let error =
        store.register(&[about_trace(&Lane::default(), "a", Effect::Create, 1)]).expect_err("no disk is so large");
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
}

#[test]
fn space_and_keys_of_delivered_messages_are_released() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let store = open(&path);
    fill(&store, 200);
    let full = store.compact().expect("it can be compacted");
    store.purge(&Filter::default(), 1000).expect("it can be purged");
    let empty = store.compact().expect("it can be compacted");
    assert!(full > 4_000_000 && empty < 200_000, "{full} bytes before, {empty} after");
    assert_eq!(fs::metadata(&path).expect("it is there").len(), empty);
    let bytes = fs::read(&path).expect("it is ours");
    let key = b"made-up-key-0123456789";
    assert!(!bytes.windows(key.len()).any(|window| window == key), "a key that no message needs is still there");
}

/// A power cut in the first commit leaves pages that were not written whole, and the journal that undoes them.
#[test]
fn a_store_whose_making_was_cut_off_is_made_anew() {
    let head = |pages_before: u32| -> Vec<u8> {
        let magic = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
        let numbers = [0, 7, pages_before, 512, 4096].map(u32::to_be_bytes);
        let mut journal = [&magic[..], numbers.as_flattened()].concat();
        journal.resize(512, 0);
        journal
    };
    for torn in [vec![0xa5; 4096], vec![0; 8192], vec![0; 50]] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("opik_messages.db");
        fs::write(&path, &torn).expect("a file");
        fs::write(beside(&path, "-journal"), head(0)).expect("a file");
        let looked = SqliteStore::open(&path, OpenMode::Existing, LIMITS).map(|_| ());
        assert!(matches!(looked, Err(StoreError::Missing { .. })), "a reader finds no store: {looked:?}");
        assert_eq!(fs::read(&path).expect("it is there"), torn, "a reader changes nothing");
        let store = open(&path);
        store.register(&[about_trace(&lane("team"), "t", Effect::Create, 1)]).expect("it fits");
        assert_eq!(store.check().expect("it can be checked"), Vec::<String>::new());
    }
    // An existing file belongs to another program.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    fs::write(&path, vec![0xa5; 4096]).expect("a file");
    fs::write(beside(&path, "-journal"), head(1)).expect("a file");
    let before = contents(folder.path());
    assert!(matches!(refusal(&path), StoreError::NotAStore { .. }));
    assert_unchanged(folder.path(), &before);
}

/// A store of every released schema opens, keeps what it has, and takes new messages in the right order.
#[test]
fn stores_of_earlier_versions_lose_nothing() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let versions = fs::read_dir(&fixtures).expect("the fixtures can be listed");
    for version in versions.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")) {
        let path = folder.path().join(&version);
        fs::copy(fixtures.join(&version), &path).expect("the fixture is in the repository");
        let store = open(&path);
        let team = Lane {
            workspace: Some("team".into()),
            credential: Some(Credential::new(b"key-of-the-fixture")),
            server: Some(Server::new("http://first.example/api")),
        };
        let trace = "01a20440-760d-73a3-a0fd-1799bd005824";
        let page = Page { after: None, limit: 10, newest_first: false };
        let types: Vec<_> = store.list(&Filter::default(), &page).expect("it can be listed");
        let types: Vec<_> = types.into_iter().map(|listed| listed.message_type).collect();
        let kept = [
            MessageType::CreateTrace,
            MessageType::AddTraceFeedbackScoresBatch,
            MessageType::CreateSpansBatch,
            MessageType::UpdateTrace,
            MessageType::CreateTrace,
        ];
        assert_eq!(types, kept, "{version}: messages of an earlier version are gone");
        assert_eq!(store.check().expect("it can be checked"), Vec::<String>::new(), "{version}");
        // It recorded no server: what it holds goes to the first one that asks, and to no other.
        let servers = |store: &SqliteStore| {
            let lanes = store.lane_list(0).expect("lanes can be listed");
            lanes.into_iter().map(|listed| listed.lane.server).collect::<Vec<_>>()
        };
        assert_eq!(servers(&store), [None, None], "{version}: an earlier version recorded no server");
        let other_server = Server::new("http://second.example/api");
        let team_server = team.server.clone().expect("named above");
        assert_eq!(store.adopt(&team_server).expect("it can be adopted"), 5, "{version}");
        assert_eq!(store.adopt(&other_server).expect("nothing is left"), 0, "{version}: a second server took it over");
        assert_eq!(servers(&store), [Some(team_server.clone()), Some(team_server.clone())], "{version}");
        let adoptions = store.condition().expect("it can be read").adoptions;
        let adoptions: Vec<_> = adoptions.into_iter().map(|it| (it.server, it.messages)).collect();
        assert_eq!(adoptions, [(team_server, 5)], "{version}: nobody can see who got these messages");
        let of_other = store.lanes(&Filter::of_server(&other_server), 0).expect("lanes can be read");
        assert_eq!(of_other, [], "{version}: its messages are offered to another server");
        // Its scores are in no index, so a new write must not pass anything of that lane.
        let other = [touch(EntityKind::Trace, "elsewhere", Effect::Create)];
        assert!(store.ahead(&team, &other).expect("it can be asked").conflicting, "{version}");
        store.register(&[about_trace(&team, trace, Effect::Update, 9)]).expect("it takes new messages");
        let lease = store.acquire(&Owner::this_process("replay"), Duration::from_secs(60)).expect("nobody replays");
        let lane = store.lanes(&Filter::default(), 0).expect("lanes can be read")[0].id;
        let limits = ClaimLimits { messages_max: 10, bytes_max: 1 << 20 };
        let claimed =
            store.claim(&lease, lane, &Filter::default(), limits, now_ms()).expect("it can be claimed").into_messages();
        let outcomes: Vec<_> = claimed.iter().map(|message| (message.id, Outcome::Delivered)).collect();
        assert_eq!(claimed.len(), 5, "{version}");
        store.settle(&lease, &outcomes).expect("it can be settled");
        assert!(!store.ahead(&team, &other).expect("it can be asked").conflicting, "{version}");
        assert_eq!(store.check().expect("it can be checked"), Vec::<String>::new(), "{version}");
    }
}
