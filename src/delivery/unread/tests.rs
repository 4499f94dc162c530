//! Random interleavings of writes, forwarded unread and read, against a model of clients, server and store.

use proptest::prelude::*;

use super::*;
use crate::message::{Effect, EntityKey, EntityKind};

/// A write of the model.
#[derive(Clone, Debug)]
struct Told {
    touches: Arc<[Touch]>,
    is_final: bool,
    is_unread: bool,
    stage: Stage,
    number: Option<u64>,
    /// The run of the agent in which it came, and its place among the locks there.
    run: usize,
    /// How many events had happened when it came, and when its client was told of its success.
    came: usize,
    told: Option<usize>,
    was_stored: bool,
    is_applied: bool,
    /// The agent knows that the server took it.
    is_answered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Locking,
    Gate,
    Sent,
    /// Storing; the server has taken it before.
    Storing,
    Over,
}

#[derive(Default)]
struct World {
    window: LaneWindow<usize>,
    now: Duration,
    run: usize,
    events: usize,
    writes: Vec<Told>,
    store: Vec<usize>,
    /// What the server applied, in order.
    server: Vec<usize>,
    unread_sent: usize,
    repeated: usize,
}

impl World {
    fn touches(&self, write: usize) -> &[Touch] {
        &self.writes[write].touches
    }

    fn come(&mut self, touches: Vec<Touch>, is_final: bool) {
        let touches: Arc<[Touch]> = Touch::distinct(touches).into();
        let is_create = !is_final && touches.iter().all(|touch| touch.effect == Effect::Create);
        let write = self.writes.len();
        self.events += 1;
        self.writes.push(Told {
            touches,
            is_final,
            is_unread: false,
            stage: Stage::Locking,
            number: None,
            run: self.run,
            came: self.events,
            told: None,
            was_stored: false,
            is_applied: false,
            is_answered: false,
        });
        if is_create
            && self.store.is_empty()
            && let Some(number) = self.window.begin_unread(self.now, || (write, 1))
        {
            self.unread_sent += 1;
            self.writes[write].number = Some(number);
            self.writes[write].is_unread = true;
            self.writes[write].stage = Stage::Sent;
        }
    }

    /// Reads the unread creates, as far as luck lets the agent.
    fn read_all(&mut self, luck: u8) {
        for (number, write) in self.window.unread() {
            if luck % 7 == 3 {
                self.window.not_readable_now(number);
                continue;
            }
            let touches = self.writes[write].touches.clone();
            self.window.read(number, touches, Some((write, 1)));
        }
    }

    fn has_lock(&self, write: usize) -> bool {
        let is_ahead = |other: usize| {
            let of = &self.writes[other];
            let was_locked = of.run == self.run && of.stage != Stage::Over && !self.is_unlocked(other);
            was_locked && conflict(&of.touches, self.touches(write))
        };
        !(0..write).any(is_ahead)
    }

    /// Whether it was forwarded unread.
    fn is_unlocked(&self, write: usize) -> bool {
        let number = self.writes[write].number;
        number.is_some_and(|number| self.window.flights.get(&number).is_some_and(|flight| !flight.is_locked))
    }

    fn succeed(&mut self, write: usize) {
        self.events += 1;
        self.writes[write].told = Some(self.events);
        self.writes[write].stage = Stage::Over;
    }

    fn apply(&mut self, write: usize) {
        self.server.push(write);
        self.writes[write].is_applied = true;
    }

    /// Takes one step with a write; `luck` decides what the server and the disk do.
    fn step(&mut self, write: usize, luck: u8) {
        let Told { stage, number, run, is_applied, .. } = self.writes[write];
        if run != self.run {
            return;
        }
        match (stage, number) {
            (Stage::Locking, _) if self.has_lock(write) => {
                let of = &self.writes[write];
                let bars = of.touches.iter().any(|touch| touch.effect == Effect::End);
                let concerns = Concerns::Entities(of.touches.clone());
                let locked = Locked { concerns, bars, is_final: of.is_final };
                self.writes[write].number = Some(self.window.arrive(self.now, locked));
                self.writes[write].stage = Stage::Gate;
            }
            (Stage::Gate, Some(number)) => match self.window.gate(number, self.now) {
                Gate::Open => {
                    let conflicts = self.store.iter().any(|of| conflict(self.touches(*of), self.touches(write)));
                    self.writes[write].stage = Stage::Sent;
                    if conflicts && self.writes[write].is_final {
                        self.window.remove(number);
                        self.writes[write].stage = Stage::Over;
                    } else if conflicts {
                        self.window.keep(number);
                        self.writes[write].stage = Stage::Storing;
                    }
                }
                Gate::Read => self.read_all(luck),
                Gate::Wait(_) => {}
            },
            (Stage::Sent, _) if luck < 96 && !is_applied => self.apply(write),
            (Stage::Sent, Some(number)) if luck < 160 => {
                if self.window.answered(number, is_applied, || (write, 1)) {
                    self.writes[write].is_answered = true;
                    self.writes[write].stage = Stage::Storing;
                } else if is_applied {
                    self.succeed(write);
                } else {
                    self.writes[write].stage = Stage::Over;
                }
            }
            (Stage::Sent, Some(number)) if luck < 200 => {
                if self.writes[write].is_final {
                    self.window.remove(number);
                    self.writes[write].stage = Stage::Over;
                } else {
                    self.window.keep(number);
                    self.writes[write].stage = Stage::Storing;
                }
            }
            (Stage::Storing, Some(number)) => match self.window.turn(number) {
                StoreTurn::Store(group) if luck < 240 => {
                    self.repeated += group.len();
                    for stored in std::iter::once(write).chain(group) {
                        self.writes[stored].was_stored = true;
                        self.store.push(stored);
                    }
                    self.window.remove(number);
                    self.succeed(write);
                }
                StoreTurn::Store(_) => {
                    self.window.not_stored(number);
                    if self.writes[write].is_answered && !self.window.answered(number, true, || (write, 1)) {
                        self.succeed(write);
                    } else {
                        self.window.remove(number);
                        self.writes[write].stage = Stage::Over;
                    }
                }
                StoreTurn::Read => self.read_all(luck),
                StoreTurn::Wait => {}
            },
            _ => {}
        }
    }

    fn replay(&mut self) {
        if !self.store.is_empty() {
            let write = self.store.remove(0);
            self.apply(write);
        }
    }

    fn crash(&mut self) {
        self.run += 1;
        self.window = LaneWindow::default();
    }

    /// Ends all that has begun, with every request answered.
    fn finish(&mut self) {
        for round in 0.. {
            let left =
                |world: &Self| world.writes.iter().filter(|of| of.run == world.run && of.stage != Stage::Over).count();
            if left(self) == 0 {
                break;
            }
            assert!(round < 1000, "writes wait for each other: {:?}", self.writes);
            self.now += AGE_MAX;
            for write in 0..self.writes.len() {
                let luck = if self.writes[write].is_applied { 100 } else { 0 };
                self.step(write, luck);
            }
        }
        while !self.store.is_empty() {
            self.replay();
        }
    }

    fn check(&self) {
        let last = |write: usize| self.server.iter().rposition(|applied| *applied == write);
        for (later, of) in self.writes.iter().enumerate() {
            let Some(_) = of.told else { continue };
            let applied = last(later);
            assert!(applied.is_some(), "{later} was acknowledged and is lost");
            for (earlier, before) in self.writes.iter().enumerate() {
                if earlier == later || !conflict(&before.touches, &of.touches) {
                    continue;
                }
                let is_answered_before = before.told.is_some_and(|told| told < of.came);
                // Only unread creates may be applied beside earlier writes.
                let is_before = before.run == of.run && before.number.is_some() && before.number < of.number;
                if is_answered_before || is_before && (before.was_stored || !of.is_unread) {
                    assert!(last(earlier) < applied, "{earlier} over {later}: {:?} {:#?}", self.server, self.writes);
                }
            }
        }
    }
}

fn touch(id: u8, effect: Effect) -> Touch {
    Touch { key: EntityKey::from_parts(EntityKind::Trace, [id; 16]), effect }
}

#[derive(Clone, Debug)]
enum Event {
    Create(u8, u8),
    Write(u8, u8),
    Final(u8),
    Step(u8, u8),
    Replay,
    Wait(u8),
    Crash,
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0_u8..4, 0_u8..4).prop_map(|(one, other)| Event::Create(one, other)),
        3 => (0_u8..4, 0_u8..5).prop_map(|(id, effect)| Event::Write(id, effect)),
        1 => (0_u8..4).prop_map(Event::Final),
        30 => (any::<u8>(), any::<u8>()).prop_map(|(write, luck)| Event::Step(write, luck)),
        3 => Just(Event::Replay),
        1 => (0_u8..40).prop_map(Event::Wait),
        1 => Just(Event::Crash),
    ]
}

fn play(events: &[Event]) -> World {
    let mut world = World::default();
    for event in events {
        match event {
            Event::Create(one, other) => {
                world.come(vec![touch(*one, Effect::Create), touch(*other, Effect::Create)], false);
            }
            Event::Write(id, effect) => {
                let effect = Effect::from_code(*effect).expect("it exists");
                world.come(vec![touch(*id, effect), touch((*id + 1) % 4, Effect::Update)], false);
            }
            Event::Final(id) => world.come(vec![touch(*id, Effect::Update)], true),
            Event::Step(write, luck) => {
                let recent = world.writes.len().min(12);
                if recent > 0 {
                    let write = world.writes.len() - 1 - usize::from(*write) % recent;
                    world.step(write, *luck);
                }
            }
            Event::Replay => world.replay(),
            Event::Wait(ms) => world.now += Duration::from_millis(u64::from(*ms)),
            Event::Crash => world.crash(),
        }
    }
    world.finish();
    world
}

#[test]
fn later_delivered_writes_are_stored_behind_a_failed_one() {
    let mut world = World::default();
    for (one, other) in [(0, 1), (1, 2), (3, 3), (0, 0)] {
        world.come(vec![touch(one, Effect::Create), touch(other, Effect::Create)], false);
    }
    assert_eq!(world.unread_sent, 4);
    for write in 1..4 {
        world.step(write, 0);
        world.step(write, 100);
    }
    world.step(0, 180);
    world.step(0, 0);
    world.step(0, 0);
    // The first conflicts with the second and the last, and not with the third.
    assert_eq!(world.store, [0, 1, 3]);
    world.finish();
    world.check();
}

#[test]
fn creates_are_read_beside_a_write_that_takes_long() {
    let mut world = World::default();
    world.come(vec![touch(0, Effect::Create)], false);
    world.now += AGE_MAX;
    world.come(vec![touch(1, Effect::Create)], false);
    world.now += Duration::from_millis(1);
    world.come(vec![touch(2, Effect::Create)], false);
    assert_eq!(world.unread_sent, 2, "the third is not read");
    // It waits until the others are read, and no longer: they are about something else.
    world.step(2, 0);
    world.step(2, 0);
    assert_eq!(world.writes[2].stage, Stage::Gate, "it goes on behind creates that nobody has read");
    world.step(2, 0);
    assert_eq!(world.writes[2].stage, Stage::Sent);
}

#[test]
fn a_create_that_cannot_be_read_now_counts_as_one_about_everything() {
    let mut window = LaneWindow::default();
    let concerns = |id| -> Arc<[Touch]> { [touch(id, Effect::Create)].into() };
    let numbers = [0, 1, 2].map(|write| window.begin_unread(Duration::ZERO, || (write, 1)).expect("it may go"));
    assert!(!window.answered(numbers[1], true, || (1, 1)) && !window.answered(numbers[2], true, || (2, 1)));
    window.keep(numbers[0]);
    assert_eq!(window.turn(numbers[0]), StoreTurn::Read);
    window.read(numbers[0], concerns(0), Some((0, 1)));
    window.not_readable_now(numbers[1]);
    window.read(numbers[2], concerns(2), Some((2, 1)));
    assert_eq!(window.turn(numbers[0]), StoreTurn::Store(vec![1, 2]), "an older write is stored over it");
    window.remove(numbers[0]);
    assert!(window.is_empty() && window.bytes == 0);
}

#[test]
fn a_write_that_the_server_took_need_not_follow_one_that_was_not_stored() {
    let mut window = LaneWindow::default();
    let [earlier, later] = [0, 1].map(|write| window.begin_unread(Duration::ZERO, || (write, 1)).expect("it may go"));
    for number in [earlier, later] {
        window.read(number, [touch(0, Effect::Create)].into(), Some((0, 1)));
    }
    window.keep(earlier);
    assert_eq!(window.turn(earlier), StoreTurn::Store(Vec::new()));
    assert!(window.answered(later, true, || (1, 1)), "it has to be stored behind the earlier one");
    window.not_stored(earlier);
    assert!(!window.answered(later, true, || (1, 1)), "it is refused although nothing overwrites it");
    window.remove(earlier);
    assert!(window.is_empty() && window.storing == 0);
}

#[test]
fn a_write_waits_for_room_behind_too_many_and_is_woken_when_there_is_some() {
    let mut window = LaneWindow::default();
    let first = window.begin_unread(Duration::ZERO, || (0, 1)).expect("it may go");
    window.read(first, [touch(0, Effect::Create)].into(), Some((0, 1)));
    let locked = |id: u8| Locked {
        concerns: Concerns::Entities([touch(id, Effect::Refer)].into()),
        bars: false,
        is_final: false,
    };
    let numbers: Vec<u64> = (0..300).map(|_| window.arrive(Duration::ZERO, locked(1))).collect();
    let passed: Vec<u64> =
        numbers.iter().copied().filter(|number| window.gate(*number, Duration::ZERO) == Gate::Open).collect();
    assert_eq!(passed, numbers[..ENTRIES_MAX - 1]);
    assert_eq!(window.waits_for_room(passed[7]), Some(true));
    assert!(!window.answered(passed[7], true, || (1, 1)));
    let next = numbers[ENTRIES_MAX - 1];
    assert_eq!(window.with_room(), Wakes::Below(next + 1));
    assert_eq!(window.gate(next, Duration::ZERO), Gate::Open);
    assert_eq!(window.gate(next + 1, Duration::ZERO), Gate::Wait(None));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_fails_the_last_write_by_order_is_what_the_server_ends_with(
        events in prop::collection::vec(any_event(), 0..160),
    ) {
        let world = play(&events);
        world.check();
        prop_assert!(world.window.is_empty(), "finished writes are still remembered: {:?}", world.window);
        let LaneWindow { open, unlocked, unread, storing, barring, bytes, .. } = &world.window;
        prop_assert_eq!((open.len(), *unlocked, *unread, *storing, *barring, *bytes), (0, 0, 0, 0, 0, 0));
    }
}
