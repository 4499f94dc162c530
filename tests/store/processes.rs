//! Several processes and threads on one file, and processes that are killed.
//!
//! Children are this test binary, started again with one test and a variable that selects its work.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opik_offline::message::{Effect, Message, MessageId, conflict};
use opik_offline::store::attachment::{AttachmentReader, AttachmentWriter, PIECE_BYTES};
use opik_offline::store::{
    Browse, ClaimLimits, Claimed, Filter, Intake, Lease, Maintain, Outcome, Owner, Page, Replay, Store, StoreError,
};

use crate::messages::{about_trace, attachment, file, lane};
use crate::story::open;

const CHILD: &str = "OPIK_OFFLINE_TEST_CHILD";
const NOW_MS: i64 = 1_800_000_000_000;

/// Starts a child that does `task` with the store at this path; its lines on standard output begin with `> `.
fn start(task: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this test has a path"))
        .args(["--exact", "processes::child", "--nocapture"])
        .env(CHILD, format!("{task} {}", path.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("this test can be started again")
}

fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    output.lines().map_while(Result::ok).filter_map(|line| line.split_once("> ").map(|(_, said)| said.to_owned()))
}

fn message(number: i64) -> Message {
    about_trace(&lane("team"), &number.to_string(), Effect::Create, number)
}

/// The work of a child; nothing in the parent.
#[test]
fn child() {
    let Ok(child) = std::env::var(CHILD) else { return };
    let (task, path) = child.split_once(' ').expect("a task and a path");
    match task {
        "register-50" => {
            let store = open(Path::new(path));
            for number in 0..50 {
                store.register(&[message(number)]).expect("others write too, but not for long");
            }
        }
        "register-until-killed" => {
            let store = open(Path::new(path));
            for number in (0..).step_by(3) {
                let ids =
                    store.register(&[message(number), message(number + 1), message(number + 2)]).expect("it fits");
                println!("> {number} {}", ids[0]);
            }
        }
        "attach-until-killed" => {
            let store = open(Path::new(path));
            for number in 0.. {
                let bytes = file(number, 3 * PIECE_BYTES + 1000);
                let mut writer = AttachmentWriter::begin(&store as &dyn Store, None).expect("it fits");
                for portion in bytes.chunks(200_000) {
                    writer.write(portion).expect("it fits");
                    println!("> ...");
                }
                let id = writer.register(&attachment(&lane("team"), "t", number as i64)).expect("it fits");
                println!("> {number} {id}");
            }
        }
        "hold-lease" => {
            let lease = open(Path::new(path)).acquire(&Owner::this_process("agent"), Duration::from_secs(600));
            println!("> {}", lease.expect("nobody else has it").epoch);
            std::thread::sleep(Duration::from_secs(60));
        }
        "replay-until-killed" => {
            let store = open(Path::new(path));
            let lease = store.acquire(&Owner::this_process("replay"), Duration::ZERO).expect("the other one is dead");
            store.return_in_flight(&lease).expect("we have the lease");
            println!("> ready");
            while let Some(work) = store.lanes(&Filter::default(), NOW_MS).expect("it can be read").first() {
                let limits = ClaimLimits { messages_max: 7, bytes_max: 1 << 20 };
                let claimed = store
                    .claim(&lease, work.id, &Filter::default(), limits, NOW_MS)
                    .expect("we have the lease")
                    .into_messages();
                let outcomes: Vec<_> = claimed.iter().map(|message| (message.id, Outcome::Delivered)).collect();
                // As a server would have it: known before the store learns of it.
                for message in &claimed {
                    println!("> {}", message.id);
                }
                store.settle(&lease, &outcomes).expect("we have the lease");
            }
        }
        "store-and-deliver" => {
            let store = open(Path::new(path));
            let lease = store.acquire(&Owner::this_process("replay"), Duration::from_secs(600)).expect("it is free");
            let mut go_on = std::io::stdin().lines();
            for number in 0.. {
                store.register(&[message(number)]).expect("it fits");
                println!("> stored");
                let Some(Ok(_)) = go_on.next() else { break };
                let work = store.lanes(&Filter::default(), NOW_MS).expect("it can be read");
                let limits = ClaimLimits { messages_max: 1, bytes_max: 1 << 20 };
                let claimed = store.claim(&lease, work[0].id, &Filter::default(), limits, NOW_MS);
                let claimed = claimed.expect("we have the lease").into_messages();
                store.settle(&lease, &[(claimed[0].id, Outcome::Delivered)]).expect("we have the lease");
                println!("> delivered");
                let Some(Ok(_)) = go_on.next() else { break };
            }
        }
        other => panic!("no such task: {other}"),
    }
}

#[test]
fn processes_that_make_one_store_at_the_same_time_share_it() {
    for _ in 0..5 {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new/opik_messages.db");
        let children: Vec<Child> = (0..4).map(|_| start("register-50", &path)).collect();
        for mut child in children {
            assert!(child.wait().expect("it ends").success(), "a process could not use the store");
        }
        let store = open(&path);
        assert_eq!(store.ahead(&lane("team"), &[]).expect("it can be read").messages, 200);
        assert_eq!(store.check().expect("it can be checked"), Vec::<String>::new());
    }
}

#[test]
fn acknowledged_messages_survive_a_kill_at_any_moment() {
    let rounds = std::env::var("OPIK_OFFLINE_KILLS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(6);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let mut acknowledged: BTreeMap<MessageId, i64> = BTreeMap::new();
    for round in 0..rounds {
        let mut child = start("register-until-killed", &path);
        let mut said = 0;
        for line in lines(&mut child) {
            let (number, first_id) = line.split_once(' ').expect("a number and an id");
            let (number, first_id): (i64, i64) = (number.parse().expect("a number"), first_id.parse().expect("an id"));
            for place in 0..3 {
                let taken = acknowledged.insert(MessageId(first_id + place), number + place);
                assert_eq!(taken, None, "an id was given twice");
            }
            said += 1;
            // Lines that it wrote before it died are read to their end: they are acknowledgements too.
            if said == 1 + round * 17 {
                child.kill().expect("it is ours");
            }
        }
        child.wait().expect("it is dead");
        let store = open(&path);
        assert_eq!(store.check().expect("it can be checked"), Vec::<String>::new(), "round {round}");
        for (id, number) in &acknowledged {
            let kept = store.get(*id).expect("it can be read").expect("an acknowledged message is lost");
            assert_eq!(kept.request, message(*number).request);
        }
        // A registration is one commit: what was not acknowledged is there whole or not at all.
        assert_eq!(store.ahead(&lane("team"), &[]).expect("it can be read").messages % 3, 0);
    }
}

#[test]
fn an_upload_killed_at_any_moment_leaves_neither_bytes_nor_half_a_file() {
    let rounds = std::env::var("OPIK_OFFLINE_KILLS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(6);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let store = open(&path);
    for round in 0..rounds {
        // Another process's upload, which must not be considered dead.
        let mut others = AttachmentWriter::begin(&store as &dyn Store, None).expect("it fits");
        others.write(&file(77, PIECE_BYTES + 5)).expect("it fits");
        let mut child = start("attach-until-killed", &path);
        let mut acknowledged = Vec::new();
        for (said, line) in lines(&mut child).enumerate() {
            if let Some((number, id)) = line.split_once(' ') {
                let (number, id): (u64, i64) = (number.parse().expect("a number"), id.parse().expect("an id"));
                acknowledged.push((number, MessageId(id)));
            }
            if said == 1 + round * 5 {
                child.kill().expect("it is ours");
            }
        }
        child.wait().expect("it is dead");
        // The next upload, start of an agent or replay finds what the dead one left.
        let lease = store.acquire(&Owner::this_process("agent"), Duration::from_secs(600)).expect("nobody else has it");
        store.return_in_flight(&lease).expect("we have the lease");
        let page = Page { after: None, limit: 1000, newest_first: false };
        let listed = store.list(&Filter::default(), &page).expect("it can be read");
        assert!(listed.iter().all(|message| message.attachment.is_some()), "a record without bytes, round {round}");
        for (number, id) in &acknowledged {
            let mut bytes = Vec::new();
            let whole = 0..3 * PIECE_BYTES as u64 + 1000;
            AttachmentReader::new(&store, *id, whole).read_to_end(&mut bytes).expect("an acknowledged file is lost");
            assert_eq!(bytes, file(*number, 3 * PIECE_BYTES + 1000), "an acknowledged file is another");
        }
        assert_eq!(store.check().expect("it can be checked"), Vec::<String>::new(), "round {round}");
        let pieces = rusqlite::Connection::open(&path).expect("a database");
        let stray = "SELECT count(*) FROM attachments WHERE message_id IS NULL";
        let stray: i64 = pieces.query_row(stray, [], |row| row.get(0)).expect("a count");
        assert_eq!(stray, 1, "only the living upload has bytes without a message, round {round}");
        others.write(b"more").expect("a living upload was removed");
        others.register(&attachment(&lane("team"), "other", 1)).expect("a living upload was removed");
        store.release(&lease).expect("it is ours");
        store.purge(&Filter::default(), 1000).expect("nobody replays");
        let left: i64 =
            pieces.query_row("SELECT count(*) FROM attachment_pieces", [], |row| row.get(0)).expect("a count");
        assert_eq!(left, 0, "bytes of deleted messages stay, round {round}");
    }
}

#[test]
fn a_replayer_killed_at_any_moment_loses_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let stored = open(&path).register(&(0..300).map(message).collect::<Vec<_>>()).expect("it fits");
    let mut sent = BTreeSet::new();
    for kill_after in [1, 8, 30, usize::MAX] {
        let mut child = start("replay-until-killed", &path);
        for (said, line) in lines(&mut child).enumerate() {
            sent.extend(line.parse().map(MessageId));
            if said == kill_after {
                child.kill().expect("it is ours");
            }
        }
        child.wait().expect("it has ended");
        let store = open(&path);
        assert_eq!(store.check().expect("it can be checked"), Vec::<String>::new());
        let page = Page { after: None, limit: 1000, newest_first: false };
        let left: BTreeSet<_> =
            store.list(&Filter::default(), &page).expect("it can be read").iter().map(|message| message.id).collect();
        let lost: Vec<_> = stored.iter().filter(|id| !left.contains(id) && !sent.contains(id)).collect();
        assert_eq!(lost, Vec::<&MessageId>::new(), "neither sent nor stored");
    }
    assert_eq!(open(&path).ahead(&lane("team"), &[]).expect("it can be read").messages, 0);
}

#[test]
fn the_lease_of_a_killed_process_ends_with_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let store = open(&path);
    let mut child = start("hold-lease", &path);
    let epoch: i64 = lines(&mut child).next().expect("it got the lease").parse().expect("an epoch");
    let refused = store.acquire(&Owner::this_process("replay"), Duration::from_secs(9));
    assert!(
        matches!(&refused, Err(StoreError::LeaseHeld { owner }) if owner.pid == child.id()),
        "two replayers at once would send everything twice: {refused:?}"
    );
    child.kill().expect("it is ours");
    child.wait().expect("it is dead");
    let lease = store.acquire(&Owner::this_process("replay"), Duration::ZERO);
    let lease = lease.expect("nobody waits ten minutes for a process that is gone");
    assert!(lease.epoch > epoch);
}

#[test]
fn two_handles_see_each_others_messages_at_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let (one, other) = (open(&path), open(&path));
    let mut ids = BTreeSet::new();
    for number in 0..20 {
        let (writer, reader) = if number % 2 == 0 { (&one, &other) } else { (&other, &one) };
        ids.extend(writer.register(&[message(number)]).expect("it fits"));
        assert_eq!(reader.ahead(&lane("team"), &[]).expect("it can be read").messages, number as u64 + 1);
    }
    assert_eq!(ids.len(), 20);
}

/// The very next look sees a message that another process acknowledged, however many looks found nothing until then.
#[test]
fn no_look_misses_what_another_process_has_acknowledged() {
    const LINES: usize = 120;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let store = open(&path);
    let is_clear = || store.is_clear(&lane("team")).expect("it can be asked");
    let mut child = start("store-and-deliver", &path);
    let mut go_on = child.stdin.take().expect("it is piped");
    let mut said = lines(&mut child);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Others look all the time, as the workers of an agent do.
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    is_clear();
                }
            });
        }
        let expected = ["stored", "delivered"].into_iter().cycle();
        for (number, (line, expected)) in said.by_ref().zip(expected).take(LINES).enumerate() {
            assert_eq!(line, expected);
            let seen = (is_clear(), is_clear());
            is_over.fetch_or(seen != (expected == "delivered", expected == "delivered"), Ordering::Relaxed);
            assert!(!is_over.load(Ordering::Relaxed), "it was {expected}, and the looks say {seen:?}");
            if number % 10 == 0 {
                store.compact().expect("it can be compacted");
            }
            if number + 1 < LINES {
                writeln!(go_on).expect("it waits for that");
            }
        }
        is_over.store(true, Ordering::Relaxed);
        drop(go_on);
    });
    // It ends with an error if nobody reads its last words.
    said.for_each(drop);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_long_read_holds_up_no_write_and_a_long_write_no_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let store = open(&path);
    store.register(&[message(0)]).expect("it fits");
    let reader = rusqlite::Connection::open(&path).expect("a database");
    reader.execute_batch("BEGIN; SELECT count(*) FROM messages").expect("a snapshot");
    store.register(&[message(1)]).expect("a reader blocks nobody");
    reader.execute_batch("COMMIT; BEGIN IMMEDIATE").expect("the write lock");
    assert_eq!(store.ahead(&lane("team"), &[]).expect("a writer is in no reader's way").messages, 2);
    assert_eq!(store.backlog(&Filter::default()).expect("a writer is in no reader's way").messages(), 2);
}

/// Several senders of one replayer, while messages keep coming and people purge.
#[test]
fn nothing_is_claimed_twice_or_before_its_turn_by_threads() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let store = open(&path);
    let effects = [Effect::Create, Effect::Annotate, Effect::Update, Effect::Annotate];
    let batch = |round: i64| -> Vec<Message> {
        let number = |place: usize| round * 40 + place as i64;
        (0..40_usize).map(|p| about_trace(&lane("team"), &format!("t{}", p % 3), effects[p % 4], number(p))).collect()
    };
    store.register(&batch(0)).expect("it fits");
    let lease = store.acquire(&Owner::this_process("agent"), Duration::from_secs(600)).expect("nobody else replays");
    // Claimed and not settled yet, and what was settled, in that order.
    let in_flight: Mutex<BTreeMap<MessageId, Claimed>> = Mutex::default();
    let delivered: Mutex<Vec<Claimed>> = Mutex::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..10 {
                store.register(&batch(round)).expect("it fits");
            }
        });
        for _ in 0..3 {
            scope.spawn(|| {
                while delivered.lock().expect("no panic").len() < 400 {
                    claim_and_deliver(&store, &lease, &in_flight, &delivered);
                }
            });
        }
    });
    let delivered = delivered.into_inner().expect("no panic");
    for (place, earlier) in delivered.iter().enumerate() {
        for later in &delivered[place + 1..] {
            // Updates may move behind a create that came later; nothing else moves.
            let moved = later.touches[0].effect == Effect::Update || earlier.touches[0].effect == Effect::Update;
            assert!(earlier.id < later.id || moved || !conflict(&earlier.touches, &later.touches));
        }
    }
    assert_eq!(store.ahead(&lane("team"), &[]).expect("it can be read").messages, 0);
}

fn claim_and_deliver(
    store: &dyn Store,
    lease: &Lease,
    in_flight: &Mutex<BTreeMap<MessageId, Claimed>>,
    delivered: &Mutex<Vec<Claimed>>,
) {
    let Some(lane) = store.lanes(&Filter::default(), NOW_MS).expect("it can be read").first().map(|work| work.id)
    else {
        return std::thread::yield_now();
    };
    // Claims of different lengths overlap in part, which is where two of them could get in each other's way.
    let messages_max = 1 + delivered.lock().expect("no panic").len() % 7;
    let limits = ClaimLimits { messages_max, bytes_max: 1 << 20 };
    let claimed =
        store.claim(lease, lane, &Filter::default(), limits, NOW_MS).expect("we have the lease").into_messages();
    {
        let mut in_flight = in_flight.lock().expect("no panic");
        for message in &claimed {
            let others = in_flight.values().filter(|other| !claimed.iter().any(|ours| ours.id == other.id));
            for other in others {
                assert!(!conflict(&other.touches, &message.touches), "{} beside {}", message.id, other.id);
            }
            assert!(in_flight.insert(message.id, message.clone()).is_none(), "{} was claimed twice", message.id);
        }
    }
    // The time that sending takes, in which a wrong claim of another thread would show.
    std::thread::sleep(Duration::from_micros(300));
    // Known as delivered before the store lets the next one about the same entity go.
    {
        let mut in_flight = in_flight.lock().expect("no panic");
        delivered.lock().expect("no panic").extend(claimed.iter().cloned());
        in_flight.retain(|id, _| !claimed.iter().any(|message| message.id == *id));
    }
    let outcomes: Vec<_> = claimed.iter().map(|message| (message.id, Outcome::Delivered)).collect();
    store.settle(lease, &outcomes).expect("we have the lease");
}
