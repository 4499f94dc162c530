//! Random histories against a simple model: the list of all work in order, changed by every durable mark.

use proptest::prelude::*;

use super::*;
use crate::fleet::samples::{answer, part, record};

fn mark(reference: MessageRef, fate: Fate) -> Mark {
    Mark { reference, fate }
}

fn settled(marks: impl IntoIterator<Item = Mark>) -> SettledMessages {
    let mut settled = SettledMessages::new();
    marks.into_iter().for_each(|mark| settled.add(mark).expect("they are few"));
    settled
}

fn bodies(planned: &[FleetRecord]) -> Vec<(u64, String)> {
    let body = |record: &FleetRecord| String::from_utf8_lossy(&record.message.request.body.bytes).into_owned();
    planned.iter().map(|record| (record.reference.message, body(record))).collect()
}

#[test]
fn settled_messages_are_left_out_and_rejected_ones_come_with_their_answer() {
    let marks = [
        mark(MessageRef::whole(1), Fate::Delivered),
        mark(MessageRef::whole(2), Fate::Rejected(answer("no"))),
        mark(MessageRef::whole(4), Fate::Deleted),
        mark(MessageRef::whole(5), Fate::Expired),
    ];
    let mut plan = ImportPlan::new(settled(marks));
    let planned = plan.next_bundle((1..=6).map(record).collect());
    let states: Vec<(u64, RecordState)> =
        planned.into_iter().map(|record| (record.reference.message, record.state)).collect();
    let rejected = RecordState::Rejected(answer("no"));
    assert_eq!(states, [(2, rejected), (3, RecordState::Waiting), (6, RecordState::Waiting)]);
}

#[test]
fn a_divided_message_is_replaced_in_its_place_by_what_is_left() {
    let whole = MessageRef::whole(2);
    let [a, b, c] = ["a", "b", "c"].map(part);
    let marks = [
        mark(whole, Fate::Divided(vec![a.clone(), b.clone(), c])),
        mark(whole.part(&a.request), Fate::Delivered),
        mark(whole.part(&b.request), Fate::Divided(vec![part("b1"), part("b2")])),
        mark(whole.part(&part("b1").request), Fate::Rejected(answer("no"))),
    ];
    let mut plan = ImportPlan::new(settled(marks));
    let planned = plan.next_bundle((1..=3).map(record).collect());
    let expected = ["b1", "b2", "c"].map(|body| (2, body.to_owned()));
    assert_eq!(bodies(&planned[1..4]), expected);
    assert_eq!(planned[1].state, RecordState::Rejected(answer("no")));
    assert_eq!(
        (planned[2].reference, &planned[2].message.lane),
        (whole.part(&part("b2").request), &record(2).message.lane)
    );
    assert_eq!((planned[0].reference.message, planned[4].reference.message), (1, 3));
}

#[test]
fn a_division_whose_parts_are_all_settled_is_done() {
    let whole = MessageRef::whole(1);
    let divided = mark(whole, Fate::Divided(vec![part("a"), part("b")]));
    let of = |body: &str, fate| mark(whole.part(&part(body).request), fate);
    let rejected = settled([divided.clone(), of("a", Fate::Delivered), of("b", Fate::Rejected(answer("no")))]);
    assert_eq!(rejected.standing(1), MessageStanding::Rejected);
    let half = settled([divided.clone(), of("a", Fate::Delivered)]);
    assert_eq!(half.standing(1), MessageStanding::Waiting, "a bundle with unsent work would be deleted");
    let done = settled([divided, of("b", Fate::Expired), of("a", Fate::Delivered)]);
    assert_eq!(done.standing(1), MessageStanding::Done);
    assert_eq!(done.bytes, 0, "memory for settled parts is never released");
    assert_eq!(done.standing(2), MessageStanding::Waiting);
}

#[test]
fn equal_parts_are_counted_so_that_one_mark_settles_one() {
    let whole = MessageRef::whole(1);
    let delivered = mark(whole.part(&part("a").request), Fate::Delivered);
    let divided = mark(whole, Fate::Divided(vec![part("a"), part("a"), part("b")]));
    let plan = |marks: Vec<Mark>| bodies(&ImportPlan::new(settled(marks)).next_bundle(vec![record(1)]));
    let left = |bodies: &[&str]| bodies.iter().map(|body| (1, (*body).to_owned())).collect::<Vec<_>>();
    assert_eq!(
        plan(vec![divided.clone(), delivered.clone()]),
        left(&["a", "b"]),
        "the second of two equal writes is lost"
    );
    assert_eq!(plan(vec![divided.clone(), delivered.clone(), delivered.clone()]), left(&["b"]));
    assert_eq!(plan(vec![divided, delivered.clone(), delivered.clone(), delivered]), left(&["b"]));
}

#[test]
fn a_confirmation_outweighs_marks_before_and_after_it() {
    let whole = MessageRef::whole(1);
    for other in [Fate::Rejected(answer("no")), Fate::Divided(vec![part("a")])] {
        for marks in [[Fate::Delivered, other.clone()], [other.clone(), Fate::Delivered]] {
            let settled = settled(marks.map(|fate| mark(whole, fate)));
            assert_eq!(settled.standing(1), MessageStanding::Done, "a delivered message is sent again");
        }
    }
}

#[test]
fn messages_that_were_moved_before_they_were_shipped_keep_their_position() {
    let mut early_part = record(9);
    early_part.position = 1;
    let mut plan = ImportPlan::default();
    let planned = plan.next_bundle(vec![record(2), record(3), early_part]);
    assert_eq!(planned.iter().map(|record| record.reference.message).collect::<Vec<_>>(), [9, 2, 3]);
}

#[test]
fn marks_beyond_the_budget_are_refused_and_a_slice_of_them_fits() {
    let large = "x".repeat(1000);
    let marks = |n: u64| mark(MessageRef::whole(n), Fate::Divided(vec![part(&large)]));
    let mut all = SettledMessages { bytes_max: 20_000, ..SettledMessages::new() };
    assert!((0..64).any(|n| all.add(marks(n)).is_err()), "a stream fills the memory of its replayer");
    let mut slice = SettledMessages { bytes_max: 20_000, ..SettledMessages::within(10..=12) };
    assert!((0..64).all(|n| slice.add(marks(n)).is_ok()));
    assert_eq!(bodies(&slice.remaining(record(11))), [(11, large)]);
    let mut scattered = SettledMessages { ranges_max: 50, ..SettledMessages::new() };
    let delivered = |n: u64| mark(MessageRef::whole(2 * n), Fate::Delivered);
    assert!((0..100).any(|n| scattered.add(delivered(n)).is_err()));
}

#[derive(Clone, Debug)]
enum Step {
    /// Ship this many of the next messages, the last `again` of the previous bundle once more.
    Ship { messages: usize, again: usize },
    /// The owner settles one of the messages that it has, and crashes before its own commit if `crashes`.
    Settle { which: prop::sample::Index, how: u8, parts: Vec<u8>, crashes: bool },
    /// Another owner takes the stream over.
    Takeover,
}

fn any_step() -> impl Strategy<Value = Step> {
    let ship = (1..6_usize, 0..3_usize).prop_map(|(messages, again)| Step::Ship { messages, again });
    let settle =
        (any::<prop::sample::Index>(), 0..8_u8, prop::collection::vec(0..4_u8, 1..4), prop::bool::weighted(0.2))
            .prop_map(|(which, how, parts, crashes)| Step::Settle { which, how, parts, crashes });
    prop_oneof![2 => ship, 6 => settle, 1 => Just(Step::Takeover)]
}

/// One unsettled piece of work: its message, its request's body, and whether it was rejected.
type Work = (u64, Option<Sha256>, Vec<u8>, bool);

fn work(record: &FleetRecord) -> Work {
    let is_rejected = matches!(record.state, RecordState::Rejected(_));
    (record.reference.message, record.reference.part, record.message.request.body.bytes.to_vec(), is_rejected)
}

/// A stream in a depot, as records and marks (their encodings have tests of their own), its owner, and what a reader must conclude.
#[derive(Default)]
struct Model {
    bundles: Vec<Vec<FleetRecord>>,
    marks: Vec<Mark>,
    next_message: u64,
    /// The undelivered work, as all durable marks have it, in order.
    truth: Vec<Work>,
    /// The owner's view of it.
    owner: Vec<Work>,
}

impl Model {
    fn ship(&mut self, messages: usize, again: usize) {
        let first = self.next_message.saturating_sub(again as u64);
        let end = self.next_message + messages as u64;
        let records: Vec<FleetRecord> = (first..end).map(record).collect();
        let new: Vec<Work> = records[(self.next_message - first) as usize..].iter().map(work).collect();
        self.truth.extend(new.iter().cloned());
        self.owner.extend(new);
        self.next_message = end;
        self.bundles.push(records);
    }

    fn settle(&mut self, which: prop::sample::Index, how: u8, parts: &[u8], crashes: bool) {
        let waiting: Vec<usize> = (0..self.owner.len()).filter(|at| !self.owner[*at].3).collect();
        if waiting.is_empty() {
            return;
        }
        let at = waiting[which.index(waiting.len())];
        let (message, digest, ..) = self.owner[at];
        let fate = match how {
            0..=3 => Fate::Delivered,
            4 => Fate::Rejected(answer("no")),
            5 => Fate::Deleted,
            _ => Fate::Divided(parts.iter().map(|name| part(&format!("part {name}"))).collect()),
        };
        let change = replacement(&self.owner[at], &fate);
        let reference = MessageRef { message, part: digest };
        self.marks.push(mark(reference, fate));
        replace_in(&mut self.truth, message, digest, &change);
        if !crashes {
            self.owner.splice(at..=at, change);
        }
    }

    /// Reads the stream as a successor does.
    fn import(&self) -> Vec<FleetRecord> {
        let mut plan = ImportPlan::new(settled(self.marks.iter().cloned()));
        self.bundles.iter().flat_map(|bundle| plan.next_bundle(bundle.clone())).collect()
    }
}

/// Returns what takes the place of a piece of work.
fn replacement(settled: &Work, fate: &Fate) -> Vec<Work> {
    let (message, digest, body, _) = settled.clone();
    match fate {
        Fate::Delivered | Fate::Deleted | Fate::Expired => Vec::new(),
        Fate::Rejected(_) => vec![(message, digest, body, true)],
        Fate::Divided(parts) => parts
            .iter()
            .map(|part| (message, Some(part_digest(&part.request)), part.request.body.bytes.to_vec(), false))
            .collect(),
    }
}

/// Applies a durable mark to the truth. A mark of a whole counts for all that is left of it: its owner did not know of
/// the earlier division, because it crashed after the mark.
fn replace_in(truth: &mut Vec<Work>, message: u64, digest: Option<Sha256>, change: &[Work]) {
    let is_of = |work: &Work| work.0 == message;
    let at = match digest {
        None => truth.iter().position(is_of),
        Some(_) => {
            let exact = |work: &Work| is_of(work) && work.1 == digest;
            truth.iter().position(|work| exact(work) && !work.3).or_else(|| truth.iter().position(exact))
        }
    };
    let Some(at) = at else { return };
    let end = if digest.is_none() { truth.iter().rposition(is_of).unwrap_or(at) } else { at };
    truth.splice(at..=end, change.iter().cloned());
}

proptest! {
    #[test]
    fn any_history_leaves_exactly_the_unsettled_work_in_order(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Ship { messages, again } => model.ship(messages, again),
                Step::Settle { which, how, parts, crashes } => model.settle(which, how, &parts, crashes),
                Step::Takeover => model.owner = model.import().iter().map(work).collect(),
            }
            let planned: Vec<Work> = model.import().iter().map(work).collect();
            prop_assert_eq!(&planned, &model.truth, "work is lost, out of order, or sent although it is settled");
        }
    }

    #[test]
    fn ranges_are_a_set(ids in prop::collection::vec(0_u64..60, 0..80)) {
        let mut ranges = IdRanges::default();
        let mut expected = std::collections::BTreeSet::new();
        for id in ids {
            prop_assert_eq!(ranges.insert(id), expected.insert(id));
        }
        prop_assert!((0..70).all(|id| ranges.contains(id) == expected.contains(&id)));
        let runs = expected.iter().filter(|id| !expected.contains(&(**id + 1))).count();
        prop_assert_eq!(ranges.len(), runs, "adjacent ranges are not merged");
    }

    #[test]
    fn a_range_is_added_as_its_ids_are(added in prop::collection::vec((0_u64..60, 0_u64..12), 0..20)) {
        let (mut whole, mut single) = (IdRanges::default(), IdRanges::default());
        for (first, length) in added {
            // Length 0 is no range: its last id is below its first.
            if let Some(last) = (first + length).checked_sub(1) {
                whole.insert_range((first, last));
            }
            (first..first + length).for_each(|id| { single.insert(id); });
            prop_assert_eq!(whole.ranges().collect::<Vec<_>>(), single.ranges().collect::<Vec<_>>());
        }
    }
}

#[test]
fn ranges_reach_the_end_of_the_numbers() {
    let mut ranges = IdRanges::default();
    assert!(ranges.insert(u64::MAX) && ranges.insert(0) && ranges.insert(u64::MAX - 1));
    assert!(!ranges.insert(u64::MAX) && ranges.contains(0) && ranges.len() == 2);
    ranges.insert_range((1, u64::MAX));
    assert_eq!(ranges.ranges().collect::<Vec<_>>(), [(0, u64::MAX)]);
}
