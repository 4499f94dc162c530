//! A store's file is looked at before it is opened and once more when it is open: between the two, another process may
//! have put another file in its place.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::{Duration, Instant};

use opik_offline::message::Effect;
use opik_offline::store::sqlite::SqliteStore;
use opik_offline::store::{Browse, Filter, Intake, OpenMode};

use crate::messages::{about_trace, lane};
use crate::not_run::not_run;
use crate::story::{LIMITS, open};

const STRANGER: u32 = 65_534;
/// How often it is tried; each time another user's file takes the place of ours a little later.
const TRIES: u32 = 200;

#[test]
fn a_file_that_is_put_in_place_while_the_store_is_opened_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return not_run("only root can make files of another user");
    }
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let shared = temporary.path().join("shared");
    fs::create_dir(&shared).expect("a folder");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).expect("it is ours");
    let (ours, theirs) = (temporary.path().join("ours.db"), temporary.path().join("theirs.db"));
    drop(open(&ours));
    // It can be told by the message in it.
    open(&theirs).register(&[about_trace(&lane("t"), "a", Effect::Create, 1)]).expect("a good place");

    let path = shared.join("opik_messages.db");
    let next = shared.join("next.db");
    let open_once = || {
        let started = Instant::now();
        let store = SqliteStore::open(&path, OpenMode::CreateIfMissing, LIMITS);
        (store.map(|store| store.backlog(&Filter::default()).map(|backlog| backlog.messages())), started.elapsed())
    };
    fs::copy(&ours, &path).expect("it is ours");
    let (first, takes) = open_once();
    assert_eq!(first.expect("it is ours").expect("it can be read"), 0);

    let mut refused = 0;
    for number in 0..TRIES {
        for name in ["opik_messages.db", "opik_messages.db-wal", "opik_messages.db-shm"] {
            let _ = fs::remove_file(shared.join(name));
        }
        fs::copy(&ours, &path).expect("it is ours");
        fs::copy(&theirs, &next).expect("it is root's folder");
        chown(&next, Some(STRANGER), Some(STRANGER)).expect("root may");
        let opened = std::thread::scope(|scope| {
            let put = scope.spawn(|| {
                let wait = takes * number / TRIES;
                let started = Instant::now();
                while started.elapsed() < wait {
                    std::thread::sleep(Duration::from_micros(10));
                }
                fs::rename(&next, &path).expect("it is root's folder");
            });
            let (opened, _) = open_once();
            put.join().expect("it does not panic");
            opened
        });
        match opened {
            Ok(Ok(messages)) => assert_eq!(messages, 0, "another user's file was used as our store ({number})"),
            Ok(Err(_)) => {}
            Err(error) => refused += u32::from(error.to_string().contains("is not trusted")),
        }
    }
    assert!(refused > 0, "the file was never put in place in time");
}
