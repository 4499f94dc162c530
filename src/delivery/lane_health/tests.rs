use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::delivery::pacing::PaceSettings;

const SETTINGS: BreakerSettings = BreakerSettings { retry_interval: Duration::from_secs(10), attempts_max: 10 };
const QUICK: Duration = Duration::from_millis(10);
const SLOW: Duration = Duration::from_secs(30);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn turn(health: &mut LaneHealth, ended_hold: Option<bool>) -> LaneTurn {
    health.begin_turn(SETTINGS, Pace::start(PaceSettings::default()), ended_hold, false)
}

// Events, as a table reads them.

const PASSED: Event = Event::Passed;
const FAILED: Event = transient(QUICK, false);
const HUNG: Event = transient(SLOW, true);
const DELIVERED: Event = Event::BatchSettled { delivered: true, halted: false, limited: false };
const NOTHING_DELIVERED: Event = Event::BatchSettled { delivered: false, halted: false, limited: false };

const fn transient(took: Duration, is_unanswered: bool) -> Event {
    Event::TransientFailure(TransientFailure { asked: None, is_unanswered, took })
}

const fn alone(message: i64, attempts: u32, passes: usize, is_unanswered: bool) -> Event {
    let failure = TransientFailure { asked: None, is_unanswered, took: QUICK };
    Event::FailedAlone(FailedAlone { message: MessageId(message), attempts, passes, failure, halted: false })
}

/// The specification: what happened before, the event, what is decided, and the state of the circuit breaker then.
#[test]
fn every_event_has_its_decision() {
    use Circuit::{Closed, HalfOpen, Open};
    use Decision::{Continue, Defer, Divide, Limit, Recover, Reject, Retry};
    let half_open = HalfOpen { is_probe: true };
    let open = |wait| Decision::Open { wait: seconds(wait) };
    let limit = |wait| Limit { wait: seconds(wait) };
    let retry = |wait| Retry { wait: seconds(wait) };
    let defer = |wait, opens: Option<u64>| Defer { wait: seconds(wait), opens: opens.map(seconds) };
    let recover = |closes, releases: Option<&[i64]>| Recover {
        closes,
        releases: releases.map(|ids| ids.iter().copied().map(MessageId).collect()),
    };
    let refused = |asked: Option<u64>| Event::LaneRefused { asked: asked.map(seconds) };
    let limited = |asked: Option<u64>| Event::RateLimited { asked: asked.map(seconds) };
    for (from, before, event, decision, to, what) in [
        // A closed lane sends on, and makes what failed smaller.
        (Closed, vec![], PASSED, Continue, Closed, "a request passes"),
        (Closed, vec![], FAILED, Divide { halvings: 1 }, Closed, "a request fails: its halves are tried"),
        (Closed, vec![], transient(SLOW, false), Divide { halvings: 3 }, Closed, "one that took long: eighths"),
        // It opens once no smaller request helps.
        (Closed, vec![FAILED; 11], FAILED, open(1), Open, "the twelfth consecutive failure opens"),
        (Closed, [vec![FAILED; 11], vec![PASSED]].concat(), FAILED, Divide { halvings: 1 }, Closed, "a pass resets"),
        (Closed, vec![HUNG; 2], HUNG, open(1), Open, "the third timeout opens"),
        (Closed, vec![PASSED, HUNG, HUNG], HUNG, Divide { halvings: 3 }, Closed, "unless something passed beside it"),
        (Closed, vec![], refused(None), open(10), Open, "a refused key opens for the whole retry interval"),
        (Closed, vec![], refused(Some(60)), open(60), Open, "or for as long as the server asks"),
        // A rate limit holds one bucket and leaves the circuit as it is.
        (Closed, vec![], limited(None), limit(1), Closed, "a rate limit"),
        (Closed, vec![limited(None); 2], limited(None), limit(4), Closed, "the third in a row"),
        (Closed, vec![limited(None), limited(None), PASSED], limited(None), limit(1), Closed, "a pass between them"),
        (Closed, vec![], limited(Some(60)), limit(60), Closed, "the server names a time"),
        // A failure counts against its message only if others pass.
        (Closed, vec![], alone(1, 0, 0, false), defer(30, Some(1)), Open, "nothing passes: the server's failure"),
        (Closed, vec![PASSED], alone(1, 0, 1, false), retry(1), Closed, "another message of the batch passed"),
        (Closed, vec![PASSED], alone(1, 0, 0, false), retry(1), Closed, "another one passed since"),
        (Closed, vec![], alone(1, 3, 0, false), retry(8), Closed, "a suspect, left alone"),
        (Closed, vec![], alone(1, 9, 0, false), Reject, Closed, "a suspect's last attempt"),
        (Closed, vec![], alone(1, 9, 0, true), retry(300), Closed, "no answer is never the last attempt"),
        (Closed, vec![alone(1, 0, 0, false)], alone(2, 0, 0, false), defer(0, None), Open, "one per batch makes room"),
        // A half-open lane sends one probe.
        (half_open, vec![PASSED], DELIVERED, recover(true, Some(&[])), Closed, "the probe is delivered: it closes"),
        (half_open, vec![], NOTHING_DELIVERED, Continue, half_open, "the probe was rejected: the next one"),
        (half_open, vec![], alone(1, 0, 0, false), defer(30, Some(1)), Open, "the probe fails: it opens again"),
        (half_open, vec![refused(None)], NOTHING_DELIVERED, Continue, Open, "the key is still refused"),
        (HalfOpen { is_probe: false }, vec![PASSED], DELIVERED, recover(true, Some(&[])), Closed, "an old rate limit"),
        // The first delivery of a turn makes deferred messages due, also those of another process.
        (Closed, vec![PASSED], DELIVERED, recover(false, Some(&[])), Closed, "another process may have deferred some"),
        (Closed, vec![PASSED, DELIVERED], DELIVERED, recover(false, None), Closed, "that was done in this turn"),
        (Closed, vec![alone(7, 0, 0, false), PASSED], DELIVERED, recover(false, Some(&[7])), Open, "what waited"),
        (Closed, vec![alone(7, 0, 0, false)], DELIVERED, recover(false, Some(&[])), Open, "it waits until one passes"),
    ] {
        let mut health = LaneHealth::default();
        let mut turn = turn(
            &mut health,
            match from {
                HalfOpen { is_probe } => Some(is_probe),
                _ => None,
            },
        );
        turn.begin_batch(health.batch_max(&turn));
        for earlier in before {
            health.on(&mut turn, earlier, 0.0);
        }
        assert_eq!((health.on(&mut turn, event, 0.0), turn.circuit()), (decision, to), "{what}");
    }
}

#[test]
fn a_half_open_lane_sends_one_message_and_a_recovering_one_doubles_up_to_its_pace() {
    let mut health = LaneHealth::default();
    let mut first = turn(&mut health, None);
    assert_eq!(health.batch_max(&first), 50);
    (0..TRANSIENT_FAILURES_MAX).for_each(|_| drop(health.on(&mut first, FAILED, 0.0)));
    health.end_turn(&first);
    let mut probing = turn(&mut health, Some(true));
    let mut batches = Vec::new();
    while batches.len() < 20 && health.batch_max(&probing) < probing.pace().batch() {
        batches.push(health.batch_max(&probing));
        probing.begin_batch(health.batch_max(&probing));
        health.on(&mut probing, PASSED, 0.0);
        health.on(&mut probing, DELIVERED, 0.0);
    }
    assert_eq!(batches, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
    let mut limited = turn(&mut health, None);
    let most = health.batch_max(&limited);
    health.on(&mut limited, Event::RateLimited { asked: None }, 0.0);
    assert_eq!(health.batch_max(&limited), most, "a rate limit does not shrink the window");
}

#[test]
fn batches_are_small_after_a_slow_failure_and_beside_a_request_that_hangs() {
    let mut health = LaneHealth::default();
    let mut slow = turn(&mut health, None);
    let beside = health.begin_turn(SETTINGS, Pace::start(PaceSettings::default()), None, true);
    assert_eq!(health.batch_max(&beside), SLOW_BATCH_MAX);
    health.on(&mut slow, transient(SLOW, false), 0.0);
    assert_eq!(health.batch_max(&slow), SLOW_BATCH_MAX);
    health.on(&mut slow, NOTHING_DELIVERED, 0.0);
    assert_eq!(health.batch_max(&slow), SLOW_BATCH_MAX, "a batch with a failure does not widen the window");
}

/// Delivers a batch that waited for its answer most of the time.
fn deliver(health: &mut LaneHealth, turn: &mut LaneTurn) {
    turn.begin_batch(health.batch_max(turn));
    finish(health, turn);
}

fn finish(health: &mut LaneHealth, turn: &mut LaneTurn) {
    health.on(turn, PASSED, 0.0);
    health.timed(turn, BatchTime { total: Duration::from_millis(52), waiting: Duration::from_millis(50) });
    health.on(turn, DELIVERED, 0.0);
}

#[test]
fn workers_join_slowly_and_batches_in_flight_together_raise_the_limits_once() {
    let mut health = LaneHealth::default();
    let mut first = turn(&mut health, None);
    assert!(health.join(&first).is_none(), "nothing was delivered yet");
    deliver(&mut health, &mut first);
    let mut second = health.join(&first).expect("one more hides the wait");
    assert!(health.join(&first).is_none(), "it starts slowly");
    let together = [&mut first, &mut second];
    assert_eq!(health.batch_max(together[0]), 100);
    for turn in together {
        turn.begin_batch(health.batch_max(turn));
    }
    finish(&mut health, &mut first);
    finish(&mut health, &mut second);
    assert_eq!(health.batch_max(&first), 200, "two batches that were claimed under one limit doubled it twice");
    let others: Vec<LaneTurn> = std::iter::from_fn(|| health.join(&second)).collect();
    assert_eq!((others.len(), health.turns()), (2, 4));
    let mut slow = health.begin_turn(SETTINGS, Pace::start(PaceSettings::default()), None, true);
    assert!(health.join(&slow).is_none(), "beside a request that hangs");
    assert!(health.on(&mut slow, HUNG, 0.0) != Decision::Yield && health.may_send(&first), "it ends no other turn");
    others.iter().for_each(|turn| health.end_turn(turn));
    assert_eq!(health.turns(), 2);
}

#[test]
fn backpressure_leaves_the_worker_that_met_it_first() {
    for backpressure in [FAILED, HUNG, Event::LaneRefused { asked: None }, Event::RateLimited { asked: None }] {
        let mut health = LaneHealth::default();
        let mut first = turn(&mut health, None);
        deliver(&mut health, &mut first);
        let mut second = health.join(&first).expect("the lane delivers");
        for turn in [&mut first, &mut second] {
            turn.begin_batch(health.batch_max(turn));
        }
        let wait = health.on(&mut second, backpressure, 0.0);
        assert!(health.may_send(&second) && !health.may_send(&first), "{backpressure:?}");
        assert!(health.join(&first).is_none() && health.join(&second).is_none(), "{backpressure:?}");
        assert_eq!(health.on(&mut first, FAILED, 0.0), Decision::Yield, "one worker divides and blames");
        if matches!(backpressure, Event::RateLimited { .. }) {
            assert_eq!(health.on(&mut first, backpressure, 0.0), wait, "two answers at once are one sign");
        }
        let pace = health.batch_max(&second);
        health.on(&mut first, Event::BatchSettled { delivered: false, halted: true, limited: false }, 0.0);
        assert_eq!(health.batch_max(&second), pace, "what was returned is no other sign");
        health.end_turn(&first);
        health.end_turn(&second);
        let mut next = turn(&mut health, None);
        assert!(health.may_send(&next) && health.join(&next).is_none(), "alone at first: {backpressure:?}");
        for _ in 0..10 {
            deliver(&mut health, &mut next);
        }
        assert!(health.join(&next).is_some(), "it recovers: {backpressure:?}");
    }
}

#[test]
fn nobody_joins_a_worker_whose_turn_began_before_backpressure_that_ended_another() {
    for backpressure in [FAILED, Event::LaneRefused { asked: None }, Event::RateLimited { asked: None }] {
        let mut health = LaneHealth::default();
        let mut first = turn(&mut health, None);
        deliver(&mut health, &mut first);
        let mut second = health.join(&first).expect("the lane delivers");
        for turn in [&mut first, &mut second] {
            turn.begin_batch(health.batch_max(turn));
        }
        health.on(&mut first, backpressure, 0.0);
        health.on(&mut first, Event::BatchSettled { delivered: false, halted: true, limited: false }, 0.0);
        health.end_turn(&first);
        // No worker deals with it any more: the lane is held, and this answer was on its way.
        finish(&mut health, &mut second);
        assert_eq!(health.concurrency, Concurrency::default(), "{backpressure:?}");
        for _ in 0..10 {
            finish(&mut health, &mut second);
        }
        assert!(!health.may_send(&second) && health.join(&second).is_none(), "{backpressure:?}");
    }
}

#[test]
fn more_than_a_few_failing_messages_are_the_servers_failure_even_if_they_are_suspects() {
    let mut health = LaneHealth::default();
    let mut turn = turn(&mut health, None);
    health.note_failed((0..20).map(MessageId));
    assert!(matches!(health.on(&mut turn, alone(1, 5, 0, false), 0.0), Decision::Defer { .. }));
    health.on(&mut turn, PASSED, 0.0);
    assert!(matches!(health.on(&mut turn, alone(1, 5, 0, false), 0.0), Decision::Retry { .. }), "then others pass");
}

#[test]
fn refused_ids_are_applied_to_other_messages_for_a_moment_only() {
    let start = seconds(1000);
    let mut health = LaneHealth::default();
    let outside = Outside { is_future: false, id_time_ms: Some(1000), window: None };
    health.note_refused_ids(&outside, None, ("too old", 7), start);
    let known = health.refused_ids(start + seconds(1)).expect("it said so a moment ago");
    assert_eq!((&*known.answer, known.at_ms), ("too old", 7));
    assert_eq!(health.refused_ids(start + seconds(2)), None, "the server is asked again");
    health.note_refused_ids(&outside, None, ("too old", 7), start);
    health.probe_held(MessageId(3));
    assert_eq!(health.refused_ids(start), None, "the probe is sent");
    assert!(!health.settled(&[MessageId(3)], &[]), "the probe is refused");
    assert!(health.settled(&[MessageId(3)], &[MessageId(3)]), "the probe is delivered");
    assert!(!health.settled(&[MessageId(3)], &[MessageId(3)]), "and no message is a probe twice");
}

/// How the server meets a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Passes,
    Fails { is_unanswered: bool, took: Duration },
}

#[derive(Clone, Copy, Debug)]
struct Queued {
    attempts: u32,
    due: Duration,
}

/// A lane, its store and a clock: what replay does around the machine, in a page.
struct Simulation {
    health: LaneHealth,
    now: Duration,
    held_until: Option<Duration>,
    queue: BTreeMap<i64, Queued>,
    delivered: BTreeSet<i64>,
    rejected: BTreeSet<i64>,
    /// When each request was sent that failed.
    failures: Vec<Duration>,
}

impl Simulation {
    fn new(messages: i64) -> Self {
        let queued = Queued { attempts: 0, due: Duration::ZERO };
        Self {
            health: LaneHealth::default(),
            now: Duration::ZERO,
            held_until: None,
            queue: (0..messages).map(|id| (id, queued)).collect(),
            delivered: BTreeSet::new(),
            rejected: BTreeSet::new(),
            failures: Vec::new(),
        }
    }

    /// Waits until something is due, and sends one batch.
    fn batch(&mut self, mut server: impl FnMut(&[i64]) -> Server) {
        let Some(due) = self.queue.values().map(|queued| queued.due).min() else { return };
        self.now = self.now.max(due).max(self.held_until.unwrap_or_default());
        let mut turn = turn(&mut self.health, self.held_until.map(|_| true));
        turn.begin_batch(self.health.batch_max(&turn));
        let due = self.queue.iter().filter(|(_, queued)| queued.due <= self.now);
        let claimed: Vec<i64> = due.map(|(id, _)| *id).take(self.health.batch_max(&turn)).collect();
        assert!(!claimed.is_empty(), "the lane starves: its batches are empty");
        let is_suspect = |id: &i64| self.queue[id].attempts > 0 || self.health.is_deferred(MessageId(*id));
        let (suspects, others): (Vec<i64>, Vec<i64>) = claimed.into_iter().partition(is_suspect);
        let mut requests: VecDeque<(Vec<i64>, Option<usize>)> = VecDeque::from([(others, None)]);
        requests.extend(suspects.into_iter().map(|id| (vec![id], None)));
        let (mut alone, mut delivered, mut opened) = (Vec::new(), false, None);
        while let Some((ids, first_failed)) = requests.pop_front() {
            if ids.is_empty() || opened.is_some() {
                continue;
            }
            match server(&ids) {
                Server::Passes => {
                    self.health.on(&mut turn, Event::Passed, 0.5);
                    delivered = true;
                    self.queue.retain(|id, _| !ids.contains(id));
                    self.delivered.extend(ids);
                }
                Server::Fails { is_unanswered, took } => {
                    self.failures.push(self.now);
                    self.now += took;
                    let failure = TransientFailure { asked: None, is_unanswered, took };
                    let passes = first_failed.unwrap_or(turn.passes());
                    match self.health.on(&mut turn, Event::TransientFailure(failure), 0.5) {
                        Decision::Open { wait } => opened = Some(wait),
                        Decision::Divide { .. } => {
                            self.health.note_failed(ids.iter().copied().map(MessageId));
                            match &*ids {
                                [id] => alone.push((*id, passes, failure)),
                                _ => {
                                    let (first, second) = ids.split_at(ids.len() / 2);
                                    requests.push_front((second.to_vec(), Some(passes)));
                                    requests.push_front((first.to_vec(), Some(passes)));
                                }
                            }
                        }
                        other => panic!("{other:?} after a transient failure"),
                    }
                }
            }
        }
        for (id, passes, failure) in alone {
            let attempts = self.queue[&id].attempts;
            let message = MessageId(id);
            let failed = FailedAlone { message, attempts, passes, failure, halted: opened.is_some() };
            match self.health.on(&mut turn, Event::FailedAlone(failed), 0.5) {
                Decision::Retry { wait } => {
                    self.queue.insert(id, Queued { attempts: attempts + 1, due: self.now + wait });
                }
                Decision::Reject => {
                    self.queue.remove(&id);
                    self.rejected.insert(id);
                }
                Decision::Defer { wait, opens } => {
                    opened = opened.or(opens);
                    self.queue.insert(id, Queued { attempts, due: self.now + wait });
                }
                other => panic!("{other:?} after a message failed alone"),
            }
        }
        let halted = opened.is_some();
        let settled = Event::BatchSettled { delivered, halted, limited: false };
        if let Decision::Recover { closes, releases } = self.health.on(&mut turn, settled, 0.5) {
            if closes {
                self.held_until = None;
            }
            for (id, queued) in &mut self.queue {
                let is_released = releases.as_ref().is_some_and(|ids| ids.contains(&MessageId(*id)));
                if is_released || releases.is_some() && queued.attempts == 0 {
                    queued.due = queued.due.min(self.now);
                }
            }
        }
        if let Some(wait) = opened {
            self.held_until = Some(self.now + wait);
        }
        self.health.end_turn(&turn);
    }
}

fn any_failure() -> impl Strategy<Value = Server> {
    (any::<bool>(), prop::sample::select(vec![QUICK, seconds(1), SLOW]))
        .prop_map(|(is_unanswered, took)| Server::Fails { is_unanswered, took })
}

fn quick_failure() -> impl Strategy<Value = Server> {
    any::<bool>().prop_map(|is_unanswered| Server::Fails { is_unanswered, took: QUICK })
}

fn any_event() -> impl Strategy<Value = Event> {
    let asked = || prop::option::of((0_u64..120).prop_map(seconds));
    let failure = (asked(), any::<bool>(), prop::sample::select(vec![QUICK, SLOW]))
        .prop_map(|(asked, is_unanswered, took)| TransientFailure { asked, is_unanswered, took });
    let alone = (0_i64..20, 0_u32..12, 0_usize..3, failure.clone(), any::<bool>()).prop_map(
        |(message, attempts, passes, failure, halted)| {
            Event::FailedAlone(FailedAlone { message: MessageId(message), attempts, passes, failure, halted })
        },
    );
    let settled = (any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(delivered, halted, limited)| Event::BatchSettled { delivered, halted, limited });
    prop_oneof![
        Just(Event::Passed),
        failure.prop_map(Event::TransientFailure),
        asked().prop_map(|asked| Event::LaneRefused { asked }),
        asked().prop_map(|asked| Event::RateLimited { asked }),
        alone,
        settled,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_sequence_of_events_starves_a_lane(events in prop::collection::vec((any_event(), any::<bool>()), 0..200)) {
        let mut health = LaneHealth::default();
        let mut current = turn(&mut health, None);
        for (event, is_next_turn) in events {
            if is_next_turn || current.circuit() == Circuit::Open {
                health.end_turn(&current);
                current = turn(&mut health, (current.circuit() != Circuit::Closed).then_some(true));
            }
            prop_assert!(health.batch_max(&current) >= 1, "an empty batch");
            let asked = match event {
                Event::LaneRefused { asked } | Event::RateLimited { asked } => asked,
                Event::TransientFailure(failure) => failure.asked,
                Event::FailedAlone(failed) => failed.failure.asked,
                _ => None,
            };
            let bound = backoff::WAIT_MAX.max(asked.unwrap_or_default()) + seconds(1);
            match health.on(&mut current, event, 1.0) {
                Decision::Open { wait } | Decision::Limit { wait } | Decision::Retry { wait } => prop_assert!(wait <= bound),
                Decision::Defer { wait, opens } => prop_assert!(wait.max(opens.unwrap_or_default()) <= bound),
                _ => {}
            }
        }
        // After any history: once requests pass it is as fast as its pace, and no message is left behind.
        let mut healthy = turn(&mut health, Some(true));
        let mut batches = 0;
        while batches == 0 || health.batch_max(&healthy) < healthy.pace().batch() {
            batches += 1;
            healthy.begin_batch(health.batch_max(&healthy));
            health.on(&mut healthy, Event::Passed, 0.0);
            health.on(&mut healthy, DELIVERED, 0.0);
            prop_assert!(batches <= 12, "it does not recover");
        }
        prop_assert_eq!(healthy.circuit(), Circuit::Closed);
        prop_assert!(health.waiting.is_empty(), "deferred messages wait although the lane delivers");
    }

    #[test]
    fn after_backpressure_one_worker_sends_and_no_other_one_resumes(
        steps in prop::collection::vec((0_usize..4, prop::option::of(any_event())), 0..120),
    ) {
        let mut health = LaneHealth::default();
        let mut turns = vec![turn(&mut health, None)];
        deliver(&mut health, &mut turns[0]);
        let mut yielded = BTreeSet::new();
        for (which, event) in steps {
            let which = which % turns.len();
            match event {
                Some(event) => drop(health.on(&mut turns[which], event, 0.5)),
                None => {
                    turns.extend(health.join(&turns[which]));
                }
            }
            if !health.may_send(&turns[which]) || turns[which].circuit() == Circuit::Open {
                health.end_turn(&turns.swap_remove(which));
            }
            yielded.extend(turns.iter().filter(|turn| !health.may_send(turn)).map(|turn| turn.number));
            let mut senders: Vec<u64> =
                turns.iter().filter(|turn| health.may_send(turn)).map(|turn| turn.number).collect();
            prop_assert!(senders.iter().all(|number| !yielded.contains(number)), "a worker resumed");
            prop_assert!(health.sole.is_none() || senders.len() == 1, "several workers send to a failing server");
            if senders.is_empty() {
                turns.drain(..).for_each(|turn| health.end_turn(&turn));
                turns.push(turn(&mut health, None));
                senders.extend(turns.iter().filter(|turn| health.may_send(turn)).map(|turn| turn.number));
                prop_assert!(!senders.is_empty(), "the lane is left without a worker");
            }
            prop_assert!(turns.len() <= crate::delivery::concurrency::CONCURRENCY_MAX);
            prop_assert_eq!(health.turns(), turns.len());
        }
    }

    // As many as have had their turn as probes before the first of them is due again: `DEFER_MAX` over the retry interval.
    #[test]
    fn poison_messages_delay_no_other_for_long(
        poison in prop::collection::btree_set(0_i64..60, 0..30), failure in quick_failure(),
    ) {
        let mut lane = Simulation::new(60);
        for _ in 0..400 {
            lane.batch(|ids| if ids.iter().any(|id| poison.contains(id)) { failure } else { Server::Passes });
        }
        let expected: BTreeSet<i64> = (0..60).filter(|id| !poison.contains(id)).collect();
        prop_assert_eq!(&lane.delivered, &expected, "poison keeps others waiting");
    }

    #[test]
    fn a_failing_server_gets_a_bounded_number_of_requests_per_interval(
        messages in 1_i64..120, healthy in 0_usize..4, failure in any_failure(),
    ) {
        let mut lane = Simulation::new(messages);
        for _ in 0..healthy {
            lane.batch(|_| Server::Passes);
        }
        let failed = lane.now;
        while lane.now - failed < seconds(1200) && !lane.queue.is_empty() {
            lane.batch(|_| failure);
        }
        for (at, from) in lane.failures.iter().enumerate() {
            let requests = lane.failures[at..].iter().take_while(|to| **to - *from < SETTINGS.retry_interval).count();
            prop_assert!(requests <= TRANSIENT_FAILURES_MAX as usize + 4, "{} requests within an interval", requests);
            if *from - failed > SETTINGS.retry_interval * 6 {
                prop_assert!(requests <= 2, "{} requests per interval long after it failed", requests);
            }
        }
    }

    #[test]
    fn an_outage_counts_against_no_message_however_long_it_lasts(
        messages in 1_i64..100, healthy in 0_usize..4, outage in 1_usize..200, failure in any_failure(),
    ) {
        let mut lane = Simulation::new(messages);
        for at in 0..healthy + outage {
            lane.batch(|_| if at < healthy { Server::Passes } else { failure });
            prop_assert!(lane.queue.values().all(|queued| queued.attempts == 0), "the outage counts");
        }
        for _ in 0..100 {
            lane.batch(|_| Server::Passes);
        }
        prop_assert_eq!(lane.delivered.len() as i64, messages, "the outage rejected {:?}", lane.rejected);
    }

    #[test]
    fn no_message_is_rejected_without_an_answer_and_evidence(
        events in prop::collection::vec((any_event(), any::<bool>()), 0..200),
    ) {
        let mut health = LaneHealth::default();
        let mut current = turn(&mut health, None);
        let mut passed: BTreeSet<i64> = BTreeSet::new();
        for (event, is_next_turn) in events {
            if is_next_turn {
                current = turn(&mut health, None);
            }
            let decision = health.on(&mut current, event, 0.5);
            match (event, decision) {
                (Event::Passed, _) => passed.extend(0..20),
                (Event::FailedAlone(failed), Decision::Reject) => {
                    prop_assert!(!failed.failure.is_unanswered, "rejected without an answer");
                    prop_assert!(failed.attempts + 1 >= SETTINGS.attempts_max, "rejected too early");
                    let has_evidence = failed.attempts > 0 || passed.contains(&failed.message.0);
                    prop_assert!(has_evidence, "rejected although nothing passed");
                }
                (Event::FailedAlone(failed), _) => {
                    passed.remove(&failed.message.0);
                }
                _ => {}
            }
        }
    }
}
