//! The committer and the slot of a store that may be away.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use opik_offline::message::{Effect, Message, MessageId};
use opik_offline::store::committer::{
    COMMIT_MESSAGES_MAX, CommitError, Committer, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX,
};
use opik_offline::store::slot::{SlotState, StoreSlot};
use opik_offline::store::{FullLimit, Intake, Store, StoreError};

use crate::messages::{about_trace, lane};
use crate::model_store::{BeforeRegister, ModelStore};
use crate::story::LIMITS;

fn message(number: usize) -> Message {
    about_trace(&lane("team"), &number.to_string(), Effect::Create, number as i64)
}

fn committer(before_register: BeforeRegister) -> (Committer, Arc<ModelStore>) {
    let store = Arc::new(ModelStore::with_register(before_register));
    let slot = StoreSlot::holding(Arc::clone(&store) as Arc<dyn Store>);
    (Committer::start(Arc::new(slot)).expect("a thread"), store)
}

type Answers = mpsc::Receiver<(usize, Result<MessageId, CommitError>)>;

fn submit(committer: &Committer, messages: impl IntoIterator<Item = usize>) -> Answers {
    let (answer, answers) = mpsc::channel();
    for number in messages {
        let answer = answer.clone();
        let on_done = move |result| {
            answer.send((number, result)).expect("the test waits for it");
            None
        };
        committer.submit(message(number), Box::new(on_done));
    }
    answers
}

/// A door that registrations wait at, and how many messages each brought.
#[derive(Default)]
struct Door {
    open: Mutex<bool>,
    changed: Condvar,
    commits: Mutex<Vec<usize>>,
}

impl Door {
    fn pass(&self, messages: &[Message]) {
        self.commits.lock().expect("no panic").push(messages.len());
        drop(self.changed.wait_while(self.open.lock().expect("no panic"), |open| !*open).expect("no panic"));
    }

    fn open(&self) {
        *self.open.lock().expect("no panic") = true;
        self.changed.notify_all();
    }

    /// Returns once a registration waits.
    fn wait_for_one(&self) {
        while self.commits.lock().expect("no panic").is_empty() {
            std::thread::yield_now();
        }
    }
}

fn behind(door: &Arc<Door>) -> BeforeRegister {
    let door = Arc::clone(door);
    Box::new(move |messages| {
        door.pass(messages);
        Ok(())
    })
}

#[test]
fn messages_that_arrive_during_a_commit_share_the_next_one() {
    let door = Arc::new(Door::default());
    let (committer, store) = committer(behind(&door));
    let first = submit(&committer, [0]);
    door.wait_for_one();
    let rest = submit(&committer, 1..=COMMIT_MESSAGES_MAX + 10);
    assert!(first.try_recv().is_err(), "nobody is answered before the commit");
    door.open();
    let ids: Vec<_> = first.iter().chain(rest).map(|(number, id)| (number, id.expect("it is stored").0)).collect();
    assert_eq!(ids, (0..=COMMIT_MESSAGES_MAX + 10).map(|number| (number, number as i64 + 1)).collect::<Vec<_>>());
    assert_eq!(*door.commits.lock().unwrap(), [1, COMMIT_MESSAGES_MAX, 10]);
    assert_eq!(store.ahead(&lane("team"), &[]).unwrap().messages, COMMIT_MESSAGES_MAX as u64 + 11);
}

#[test]
fn a_full_commit_queue_refuses_at_once() {
    let door = Arc::new(Door::default());
    let (committer, _) = committer(behind(&door));
    let first = submit(&committer, [0]);
    door.wait_for_one();
    let waiting = submit(&committer, 1..=QUEUE_MESSAGES_MAX);
    let (_, refused) = submit(&committer, [9]).recv().expect("an answer");
    assert!(matches!(refused, Err(CommitError::Busy)), "{refused:?}");
    door.open();
    assert_eq!(waiting.iter().filter(|(_, result)| result.is_ok()).count(), QUEUE_MESSAGES_MAX);
    assert!(first.iter().all(|(_, result)| result.is_ok()));
}

#[test]
fn the_queue_is_bounded_in_bytes_too() {
    let door = Arc::new(Door::default());
    let (committer, _) = committer(behind(&door));
    let first = submit(&committer, [0]);
    door.wait_for_one();
    let large = |bytes: usize| {
        let (answer, answers) = mpsc::channel();
        let mut message = message(1);
        message.request.body.bytes = vec![0; bytes].into();
        let on_done = move |result| {
            answer.send(result).expect("the test waits for it");
            None
        };
        committer.submit(message, Box::new(on_done));
        answers
    };
    let fits = large(QUEUE_BYTES_MAX);
    assert!(matches!(large(1).recv(), Ok(Err(CommitError::Busy))));
    door.open();
    assert!(fits.recv().expect("an answer").is_ok());
    assert!(first.iter().all(|(_, result)| result.is_ok()));
}

#[test]
fn stopping_stores_what_was_submitted_and_refuses_the_rest() {
    let door = Arc::new(Door::default());
    let (committer, _) = committer(behind(&door));
    let answers = submit(&committer, 0..300);
    door.wait_for_one();
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| committer.stop());
        loop {
            let (_, answer) = match submit(&committer, [999]).recv_timeout(Duration::from_millis(10)) {
                Ok(answer) => answer,
                // It was taken before the stop and waits at the door.
                Err(_) => continue,
            };
            assert!(matches!(answer, Err(CommitError::Stopped)), "{answer:?}");
            break;
        }
        door.open();
        stopping.join().expect("it stops");
    });
    assert_eq!(answers.iter().filter(|(_, result)| result.is_ok()).count(), 300);
}

#[test]
fn a_full_store_takes_what_still_fits() {
    let full = || StoreError::Full { at: "store".into(), limit: FullLimit::MaxSize, needed: 1, reason: "test".into() };
    let door = Arc::new(Door::default());
    let left = AtomicUsize::new(100);
    let (committer, store) = committer({
        let door = Arc::clone(&door);
        Box::new(move |messages| {
            door.pass(messages);
            let taken = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(messages.len()));
            taken.map(|_| ()).map_err(|_| full())
        })
    });
    let first = submit(&committer, [0]);
    door.wait_for_one();
    let rest = submit(&committer, 1..200);
    door.open();
    let results: Vec<_> = first.iter().chain(rest).collect();
    let refused = |result: &Result<_, CommitError>| match result {
        Err(CommitError::Store(error)) => matches!(**error, StoreError::Full { .. }),
        _ => false,
    };
    assert_eq!(results.iter().filter(|(_, result)| result.is_ok()).count(), 100);
    assert_eq!(results.iter().filter(|(_, result)| refused(result)).count(), 100);
    assert_eq!(store.ahead(&lane("team"), &[]).unwrap().messages, 100);
}

#[test]
fn messages_that_belong_together_are_stored_together_or_not_at_all() {
    let room = AtomicUsize::new(6);
    let full = || StoreError::Full {
        at: "the test's store".into(),
        limit: FullLimit::MaxSize,
        needed: 1,
        reason: "the test says so".into(),
    };
    let door = Arc::new(Door::default());
    let (committer, store) = committer({
        let door = Arc::clone(&door);
        Box::new(move |messages| {
            door.pass(messages);
            let take = |left: usize| left.checked_sub(messages.len());
            let taken = room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
            taken.map(|_| ()).map_err(|_| full())
        })
    });
    let first = submit(&committer, [0]);
    door.wait_for_one();
    let (answer, answers) = mpsc::channel();
    for numbers in [1..4, 4..9, 9..11] {
        let answer = answer.clone();
        let on_done = move |result: Result<MessageId, CommitError>| {
            answer.send(result.map(|id| id.0).ok()).expect("the test waits for it");
            None
        };
        assert!(committer.submit_all(numbers.map(message).collect(), Box::new(on_done)));
    }
    assert!(!committer.submit_all(Vec::new(), Box::new(|_| None)), "nothing was queued");
    drop(answer);
    door.open();
    assert!(first.iter().all(|(_, result)| result.is_ok()));
    assert_eq!(answers.iter().collect::<Vec<_>>(), [Some(2), None, Some(5)], "five messages found room for two");
    assert_eq!(store.ahead(&lane("team"), &[]).unwrap().messages, 6);
}

#[test]
fn a_panicking_store_fails_every_waiting_request() {
    let (committer, _) = committer(Box::new(|_| panic!("a programming mistake")));
    let result = committer.store(message(0));
    assert!(matches!(result, Err(CommitError::Stopped)), "{result:?}");
    let result = committer.store(message(1));
    assert!(matches!(result, Err(CommitError::Stopped)), "{result:?}");
}

#[test]
fn a_slot_heals_when_its_store_can_be_used_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    fs::create_dir(&path).expect("the folder is ours");
    let slot = Arc::new(StoreSlot::at(&path, LIMITS));
    let committer = Committer::start(Arc::clone(&slot)).expect("a thread");
    let refused = committer.store(message(0));
    assert!(matches!(&refused, Err(CommitError::Store(error)) if matches!(**error, StoreError::NotAStore { .. })));
    assert!(matches!(slot.state(), SlotState::Unavailable { .. }));
    fs::remove_dir(&path).expect("it is empty");
    slot.retry().expect("nothing blocks it now");
    assert!(matches!(slot.state(), SlotState::Open));
    committer.store(message(0)).expect("the store is there");
    assert_eq!(slot.get().expect("it is open").ahead(&lane("team"), &[]).unwrap().messages, 1);
}

#[test]
fn a_message_goes_into_the_new_file_when_the_old_one_was_removed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let slot = Arc::new(StoreSlot::at(&path, LIMITS));
    let committer = Committer::start(Arc::clone(&slot)).expect("a thread");
    committer.store(message(0)).expect("the store is there");
    for suffix in ["", "-wal", "-shm"] {
        fs::remove_file(format!("{}{suffix}", path.display())).expect("it is ours");
    }
    committer.store(message(1)).expect("the store is made anew");
    let waiting = slot.get().expect("it is open").ahead(&lane("team"), &[]).unwrap().messages;
    assert_eq!(waiting, 2, "the message of the deleted file is lost, or one is there twice");
}

#[test]
fn a_stalled_commit_is_detected_and_an_idle_committer_is_healthy() {
    let door = Arc::new(Door::default());
    let (committer, _) = committer(behind(&door));
    assert_eq!(committer.silent_for(), Duration::ZERO, "an idle agent would be restarted");
    let answers = submit(&committer, [0]);
    door.wait_for_one();
    let silent_for = committer.silent_for();
    assert!(silent_for > Duration::ZERO, "an agent that no longer acknowledges anything would never be restarted");
    assert!(committer.silent_for() >= silent_for);
    door.open();
    assert!(answers.recv().expect("an answer").1.is_ok());
    // The thread turns to its queue a moment after the answer.
    while committer.silent_for() > Duration::ZERO {
        std::thread::yield_now();
    }
    committer.stop();
    assert_eq!(committer.silent_for(), Duration::ZERO, "a committer that was stopped is not lost");
}
