//! Messages whose ids are outside the server's window: divided by the ids' times, and held.

use tracing::warn;

use super::Batch;
use super::answer::first_line;
use super::division::touches;
use crate::delivery::batching::coalesce::Shipment;
use crate::delivery::batching::split::Divisible;
use crate::delivery::id_window::{self, IdWindow, REMEDY, Side};
use crate::message::{Claimed, Effect};
use crate::store::{LastAnswer, Outcome, Part};

impl Batch<'_, '_> {
    /// Learns from a refusal which ids the server refuses for their time; returns whether the refusal was about that.
    pub(super) fn learn_id_window(&self, answer: &LastAnswer, server_ms: Option<i64>) -> bool {
        let Some(outside) = id_window::read(answer.status, &answer.text) else { return false };
        warn!(
            target: "replay_manager",
            lane = %self.sender.work.lane, answer = first_line(&answer.text),
            "the Opik server refuses ids outside its window: their messages are held, and retried every {} s; to let them \
             in, {REMEDY}",
            self.sender.replay.settings.held_interval().as_secs()
        );
        self.sender.replay.state.note_refused_ids(self.sender.work.id, &outside, server_ms, answer);
        true
    }

    /// Holds messages that the server is known to refuse for the time in their ids, unsent; returns the rest of a
    /// shipment.
    ///
    /// A stored batch with items on both sides is divided in two: its other items are sent with a later claim.
    pub(super) fn hold_outside_window(&mut self, shipment: Shipment) -> Option<Shipment> {
        let state = self.sender.replay.state;
        let Some((window, answer)) = state.refused_ids(self.sender.work.id) else { return Some(shipment) };
        let (rest, cut_off) = shipment.without(|message| window.side(&message.touches) != Side::Inside);
        for message in cut_off {
            let outcome = match window.side(&message.touches) {
                Side::Both => cut(&message, &window, &answer),
                Side::Inside | Side::Outside => Outcome::Held { answer: answer.clone() },
            };
            self.left.add(&message.touches);
            self.note_refused_creates(&message, &outcome);
            self.outcomes.push((message.id, outcome));
        }
        rest
    }

    /// Holds a message instead of rejecting it if it was refused only for the time in its ids.
    pub(super) fn held_instead(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Rejected { answer } if id_window::read(answer.status, &answer.text).is_some() => {
                Outcome::Held { answer }
            }
            outcome => outcome,
        }
    }

    /// Notes entities whose create was refused, so that the server does not have them: later messages of this batch
    /// wait.
    pub(super) fn note_refused_creates(&mut self, message: &Claimed, outcome: &Outcome) {
        let refused: Vec<_> = match outcome {
            Outcome::Rejected { .. } | Outcome::Held { .. } => message.touches.iter().collect(),
            Outcome::Divided { parts } => {
                let refused = parts.iter().filter(|part| part.status().0.is_refused());
                refused.flat_map(|part| &part.touches).collect()
            }
            Outcome::Delivered | Outcome::Failed { .. } => return,
        };
        let creates = refused.iter().filter(|touch| touch.effect == Effect::Create && touch.key.can_strand());
        self.refused_creates.extend(creates.map(|touch| touch.key));
    }

    /// Returns whether a shipment depends on a create that was refused in this batch. The store checks earlier ones.
    pub(super) fn is_stranded(&self, shipment: &Shipment) -> bool {
        !self.refused_creates.is_empty()
            && shipment.messages().any(|message| {
                let mut depending = message.touches.iter().filter(|touch| touch.can_be_stranded());
                depending.any(|touch| self.refused_creates.contains(&touch.key))
            })
    }
}

/// Divides a stored batch into its items inside and outside the window.
fn cut(message: &Claimed, window: &IdWindow, answer: &LastAnswer) -> Outcome {
    let held = || Outcome::Held { answer: answer.clone() };
    let Some(divisible) = Divisible::of(message.message_type, &message.request) else { return held() };
    let touches = |request: &_| touches(message, &divisible, request);
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for item in 0..divisible.len() {
        let piece = divisible.piece(&message.request, item..item + 1);
        match window.side(&touches(&piece)) {
            Side::Inside => inside.push(item),
            Side::Outside | Side::Both => outside.push(item),
        }
    }
    let part = |items: &[usize], held| {
        let request = divisible.pick(&message.request, items)?;
        let touches = touches(&request);
        Some(Part { touches, items: u32::try_from(items.len()).unwrap_or(u32::MAX), request, rejected: None, held })
    };
    if inside.is_empty() || outside.is_empty() {
        return held();
    }
    match (part(&inside, None), part(&outside, Some(answer.clone()))) {
        (Some(inside), Some(outside)) => Outcome::Divided { parts: vec![inside, outside] },
        _ => held(),
    }
}
