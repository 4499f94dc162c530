//! Random histories of a fleet: agents and replayers that are killed, suspended and cut off, disks that are lost, a server
//! that comes and goes, and a person who purges, all on one model of a depot.
//!
//! The parts are the real ones: an agent's [`crate::fleet::spooled::Spooled`] store with its ledger and shipper, a
//! replayer's feeder, holdings and ledger, a person's purge. Each process has the threads that it has in reality, and each
//! thread waits before and after each request, to the depot and to the server, until the history decides how it continues. So
//! a process may be killed or suspended with any request in flight, while others work and minutes pass on a clock that the
//! history sets.
//!
//! # Invariants
//!
//! - A write that was acknowledged reaches the server, unless it was only on a disk that was lost, or a person purged it.
//! - No write is sent over a newer one about the same entity that is settled. A newer one that is in flight is retried
//!   after it. So each entity ends with its newest write.
//! - No request begins while another process owns the stream of its message.
//! - A message whose purge was confirmed is not sent again.
//! - In the end nothing is left in the depot but records of finished streams and of purges.
//!
//! `PROPTEST_CASES` sets how many histories are tried; 32 by default.

mod gate;
mod hosts;
mod oracle;
mod script;
mod world;

use proptest::collection::vec;
use proptest::prelude::*;

use self::script::{AGENTS, Course, ENTITIES, HistoryStep, Order, PERSON};
use self::world::World;

fn any_order() -> impl Strategy<Value = (usize, Order)> {
    let agent = 0..AGENTS;
    let replayer = AGENTS..PERSON;
    prop_oneof![
        8 => (agent.clone(), 0..ENTITIES).prop_map(|(host, entity)| (host, Order::Write { entity })),
        8 => agent.clone().prop_map(|host| (host, Order::Turn)),
        5 => (agent, 1..4_usize).prop_map(|(host, most)| (host, Order::Deliver { most })),
        5 => replayer.clone().prop_map(|host| (host, Order::Feed)),
        2 => replayer.clone().prop_map(|host| (host, Order::Keep)),
        6 => (replayer, 1..4_usize).prop_map(|(host, most)| (host, Order::Deliver { most })),
        2 => prop::option::of(0..ENTITIES).prop_map(|entity| (PERSON, Order::Purge { entity })),
    ]
}

fn any_step() -> impl Strategy<Value = HistoryStep> {
    let course = prop_oneof![
        10 => Just(Course::Go),
        2 => Just(Course::Die),
        3 => Just(Course::Suspend),
        1 => Just(Course::Fail),
        1 => Just(Course::Unknown),
    ];
    prop_oneof![
        30 => (any_order(), 0..10_usize, course)
            .prop_map(|((host, order), at, course)| HistoryStep::Do { host, order, at, course }),
        3 => prop::sample::select(vec![1, 6, 15, 25, 35, 50, 95]).prop_map(HistoryStep::Wait),
        3 => Just(HistoryStep::Silence),
        1 => (0..PERSON).prop_map(HistoryStep::Kill),
        1 => (0..PERSON).prop_map(HistoryStep::Stop),
        1 => (0..AGENTS).prop_map(HistoryStep::LoseDisk),
        4 => any::<bool>().prop_map(HistoryStep::Server),
        2 => (0..PERSON, any::<bool>()).prop_map(|(host, is_cut)| HistoryStep::Cut { host, is_cut }),
        1 => prop::sample::select(vec![0, 1, 3, 100]).prop_map(HistoryStep::ListingLags),
    ]
}

/// How it begins and ends.
#[derive(Clone, Copy, Debug)]
struct HistoryFrame {
    pods_only_write: bool,
    /// Whether the agents are there in the end.
    return_in_the_end: [bool; AGENTS],
}

fn any_frame() -> impl Strategy<Value = HistoryFrame> {
    (any::<bool>(), any::<[bool; AGENTS]>())
        .prop_map(|(pods_only_write, return_in_the_end)| HistoryFrame { pods_only_write, return_in_the_end })
}

/// Plays a history, and returns its events; fails if anything was wrong.
fn play(steps: &[HistoryStep], frame: HistoryFrame) -> Vec<String> {
    let mut world = World::new(frame.pods_only_write);
    for (number, step) in steps.iter().enumerate() {
        world.shared.tell(format!("step {number}: {step:?}"));
        world.take(step);
        world.check();
    }
    world.shared.tell("the end".to_owned());
    world.conclude(frame.return_in_the_end);
    world.check();
    std::mem::take(&mut world.shared.oracle().story)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases / 8,
        max_shrink_iters: 600,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_nothing_is_lost_overtaken_or_sent_by_two(
        steps in vec(any_step(), 1..60),
        frame in any_frame(),
    ) {
        play(&steps, frame);
    }
}

/// A short way to write a step.
fn do_at(host: usize, order: Order, at: usize, course: Course) -> HistoryStep {
    HistoryStep::Do { host, order, at, course }
}

fn go(host: usize, order: Order) -> HistoryStep {
    do_at(host, order, 0, Course::Go)
}

const RETURNS: HistoryFrame = HistoryFrame { pods_only_write: false, return_in_the_end: [true; AGENTS] };
const ONLY_WRITES: HistoryFrame = HistoryFrame { pods_only_write: true, ..RETURNS };
const GONE: HistoryFrame = HistoryFrame { pods_only_write: false, return_in_the_end: [false; AGENTS] };

#[test]
fn a_plain_history_is_what_it_should_be() {
    let write = go(0, Order::Write { entity: 0 });
    let deliver = go(AGENTS, Order::Deliver { most: 9 });
    let mut steps = vec![HistoryStep::Server(false), write.clone(), write, go(0, Order::Turn), HistoryStep::Kill(0)];
    steps.extend([
        HistoryStep::Silence,
        HistoryStep::Silence,
        HistoryStep::Server(true),
        HistoryStep::Silence,
        go(AGENTS, Order::Feed),
        go(AGENTS, Order::Feed),
        deliver,
    ]);
    for frame in [RETURNS, GONE] {
        play(&steps, frame);
    }
}

#[test]
fn a_head_whose_first_write_got_no_answer_is_renewed() {
    let write = go(0, Order::Write { entity: 0 });
    let turn = go(0, Order::Turn);
    // The answer to the write of the head, by a process that continues with the stream.
    let unanswered = do_at(0, Order::Turn, 5, Course::Fail);
    play(&[HistoryStep::Server(false), write, turn, HistoryStep::Kill(0), unanswered, HistoryStep::Silence], RETURNS);
}

#[test]
fn a_bundle_that_arrives_after_its_stream_was_finished_is_not_overtaken() {
    let write = go(0, Order::Write { entity: 0 });
    let (feed, turn) = (go(AGENTS, Order::Feed), go(0, Order::Turn));
    // The write of the bundle is on its way while the process is suspended.
    let sleeping = do_at(0, Order::Turn, 4, Course::Suspend);
    let mut steps = vec![
        HistoryStep::Server(false),
        write.clone(),
        sleeping,
        HistoryStep::Server(true),
        HistoryStep::Silence,
        HistoryStep::Silence,
    ];
    steps.extend([feed.clone(), feed, turn.clone(), turn, write, HistoryStep::Silence, HistoryStep::Silence]);
    for frame in [RETURNS, ONLY_WRITES] {
        play(&steps, frame);
    }
}

#[test]
fn an_earlier_stream_of_the_same_store_is_delivered_first() {
    let write = go(1, Order::Write { entity: 0 });
    let turn = go(1, Order::Turn);
    // A replayer takes the first stream and is killed; the agent comes back, begins a second one, and loses its disk.
    let steps = [
        HistoryStep::Server(false),
        write.clone(),
        turn.clone(),
        HistoryStep::Silence,
        write,
        HistoryStep::Kill(AGENTS),
        HistoryStep::Server(true),
        HistoryStep::Silence,
        turn,
        HistoryStep::Stop(1),
        HistoryStep::Silence,
    ];
    for frame in [RETURNS, GONE] {
        play(&steps, frame);
    }
}

/// An agent copies a write and is killed, and the first replayer imports it.
fn held_by_first_replayer() -> Vec<HistoryStep> {
    let turn = go(0, Order::Turn);
    vec![
        HistoryStep::Server(false),
        go(0, Order::Write { entity: 0 }),
        turn.clone(),
        HistoryStep::Wait(25),
        turn,
        HistoryStep::Kill(0),
        HistoryStep::Silence,
        HistoryStep::Silence,
        HistoryStep::Server(true),
        go(AGENTS, Order::Feed),
        go(AGENTS, Order::Feed),
    ]
}

#[test]
fn an_owner_deletes_what_a_person_purges() {
    let write = go(0, Order::Write { entity: 0 });
    let turn = go(0, Order::Turn);
    let purge = go(PERSON, Order::Purge { entity: None });
    // Of an agent; and of a replayer that holds the stream while the server is away.
    let of_agent = [
        HistoryStep::Server(false),
        write.clone(),
        turn.clone(),
        HistoryStep::Wait(25),
        turn.clone(),
        purge.clone(),
        HistoryStep::Wait(25),
        turn.clone(),
        purge.clone(),
    ];
    let mut of_replayer = held_by_first_replayer();
    of_replayer.extend([purge.clone(), HistoryStep::Wait(15), go(AGENTS, Order::Feed), go(AGENTS, Order::Feed), purge]);
    for frame in [RETURNS, GONE] {
        for steps in [&of_agent[..], &of_replayer[..]] {
            let story = play(steps, frame);
            assert!(story.iter().any(|event| event == "purged: [0]"), "nobody deleted it: {story:#?}");
        }
    }
}

#[test]
fn a_stream_that_was_lost_and_is_taken_over_again_is_imported_again() {
    let cut = |is_cut| HistoryStep::Cut { host: AGENTS, is_cut };
    // The first replayer is cut off, the second one takes the stream over, and is killed.
    let mut steps = held_by_first_replayer();
    steps.extend([
        cut(true),
        HistoryStep::Silence,
        HistoryStep::Silence,
        HistoryStep::Kill(AGENTS + 1),
        cut(false),
        HistoryStep::Silence,
    ]);
    let story = play(&steps, GONE);
    let taken = story.iter().filter(|event| event.contains("applies write 0")).count();
    assert_eq!(taken, 1, "{story:#?}");
}
