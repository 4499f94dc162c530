//! A stored batch in pieces: refused as a whole, a suspect, or with items that have to be created singly.

use std::ops::Range;

use super::{Attempt, Batch, FailedMessage};
use crate::delivery::batching::split::{Divisible, Division, DivisionEnd};
use crate::delivery::id_window;
use crate::message::{Claimed, Effect, EntityKey, Footprint, MessageType, Request, Touch};
use crate::protocol::readback;
use crate::protocol::recognise::Recognised;
use crate::store::{LastAnswer, Outcome, Part, StoreError};

/// Pieces of a batch that may fail transiently, while none has passed, before the rest is left unsent.
const FAILED_PIECES_MAX: u32 = 4;
/// Entities of one batch that are read back before they are taken out of it.
const READS_MAX: usize = 50;
/// Bytes of such an answer that are read.
const READ_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A batch on its way through its pieces.
struct BatchInPieces<'m> {
    message: &'m Claimed,
    divisible: &'m Divisible,
    division: Division<LastAnswer>,
    /// Items that are created singly: updates of their entities may have reached the server before.
    alone: Vec<usize>,
    /// Whether no two items are about one entity. Spans of OTLP have no order among themselves.
    is_disjoint: bool,
    /// Entities of the pieces that passed.
    passed: Footprint,
    last_refusal: Option<LastAnswer>,
    last_failure: Option<FailedMessage>,
    failures: u32,
    /// Whether the next piece is sent.
    goes_on: bool,
}

impl<'m> BatchInPieces<'m> {
    fn of(message: &'m Claimed, divisible: &'m Divisible) -> Self {
        let alone = match &*message.ahead {
            [] => Vec::new(),
            ahead => divisible.creating(message.message_type, &message.request, ahead),
        };
        let division = match &*alone {
            [] => Division::of(divisible.len()),
            alone => Division::cut(divisible.len(), alone),
        };
        let changes = message.touches.iter().filter(|touch| touch.effect != Effect::Refer).count();
        Self {
            message,
            divisible,
            division,
            alone,
            is_disjoint: changes == divisible.len() || message.message_type == MessageType::OtlpTraces,
            passed: Footprint::default(),
            last_refusal: None,
            last_failure: None,
            failures: 0,
            goes_on: true,
        }
    }

    /// Returns what a piece is about, as far as order among the pieces depends on it.
    fn touches(&self, piece: &Request) -> Vec<Touch> {
        match self.is_disjoint {
            true => Vec::new(),
            false => touches(self.message, self.divisible, piece),
        }
    }

    /// Returns a piece as it is sent: its items as a batch, or a single create.
    fn request(&self, items: &Range<usize>, piece: Request) -> (MessageType, Request) {
        let message = self.message;
        let single = Some(items.start)
            .filter(|index| items.len() == 1 && self.alone.contains(index))
            .and_then(|index| self.divisible.single_create(message.message_type, &message.request, index));
        single.unwrap_or((message.message_type, piece))
    }
}

impl Batch<'_, '_> {
    /// Sends a batch in pieces until each bad item is alone: after the refusal of the `whole`, or as a suspect.
    ///
    /// All of it is settled at once, afterwards: a crash in the middle repeats pieces, which are idempotent upserts. So
    /// a piece is kept for later, with those behind it, if one of its items is about an entity of a piece that passed:
    /// repeated after a crash, that one would put an older write over a newer one. Returns `None` when the message
    /// waits for another attempt as a whole, like one that got no answer.
    pub(super) fn divide(
        &mut self,
        message: &Claimed,
        divisible: &Divisible,
        whole: Option<&LastAnswer>,
    ) -> Result<Option<Outcome>, StoreError> {
        let mut pieces = BatchInPieces::of(message, divisible);
        while let Some(items) = pieces.division.next() {
            if !pieces.goes_on || !self.may_send() {
                pieces.division.keep(items);
                continue;
            }
            self.send_piece(&mut pieces, items)?;
        }
        Ok(self.conclude_pieces(pieces, whole))
    }

    fn send_piece(&mut self, pieces: &mut BatchInPieces<'_>, items: Range<usize>) -> Result<(), StoreError> {
        let message = pieces.message;
        let piece = pieces.divisible.piece(&message.request, items.clone());
        let touches = pieces.touches(&piece);
        if pieces.passed.conflicts(&touches) {
            pieces.goes_on = false;
            pieces.division.keep(items);
            return Ok(());
        }
        let (message_type, request) = pieces.request(&items, piece);
        if self.limited.contains(message_type.bucket()) {
            pieces.division.keep(items);
            return Ok(());
        }
        match self.attempt(message_type, &request, std::iter::once(message), None)? {
            Attempt::Passed => {
                pieces.passed.add(&touches);
                pieces.division.passed(items);
            }
            Attempt::Refused { answer, .. } if self.is_there(message_type, items.len() == 1, &answer) => {
                pieces.passed.add(&touches);
                pieces.division.passed(items);
            }
            Attempt::Refused { answer, .. } => {
                pieces.last_refusal = Some(answer.clone());
                pieces.division.refused(items, answer);
            }
            Attempt::Halted(_) => pieces.division.keep(items),
            Attempt::Failed(failed) => {
                let passes = self.turn.passes();
                pieces.last_failure = Some(FailedMessage { message: message.clone(), failed, passes });
                pieces.failures += 1;
                // Two items about one entity keep their order, so no later one may pass this one; spans have none. And
                // a server that fails at the first pieces of a batch is not asked about all of them.
                let may_go_on = pieces.division.anything_passed() || pieces.failures < FAILED_PIECES_MAX;
                pieces.goes_on = pieces.is_disjoint && may_go_on;
                if pieces.goes_on { pieces.division.faltered(items) } else { pieces.division.keep(items) }
            }
        }
        Ok(())
    }

    fn conclude_pieces(&mut self, pieces: BatchInPieces<'_>, whole: Option<&LastAnswer>) -> Option<Outcome> {
        let BatchInPieces { message, divisible, division, last_refusal, last_failure, .. } = pieces;
        if division.anything_passed() {
            self.delivered += 1;
        }
        if division.has_kept() {
            self.left.add(&message.touches);
        }
        let retried = Outcome::Failed { next_attempt_at_ms: 0, counts: false, answer: None };
        Some(match division.end() {
            DivisionEnd::AllPassed => Outcome::Delivered,
            DivisionEnd::AllRefused => match whole.cloned().or(last_refusal) {
                Some(answer) => Outcome::Rejected { answer },
                None => retried,
            },
            DivisionEnd::NothingDecided => {
                if let (Some(failed), None) = (last_failure, self.halt) {
                    self.note_failed(std::iter::once(message.id));
                    self.failed.push(failed);
                    return None;
                }
                retried
            }
            DivisionEnd::Parts(parts) => Outcome::Divided {
                parts: parts.into_iter().map(|(items, answer)| part(message, divisible, items, answer)).collect(),
            },
        })
    }

    /// Returns those of these traces and spans of which the server may have an update only.
    ///
    /// A single create leaves a full record unchanged, where the item of a batch may replace it. So an item is taken
    /// out of its batch only if the server does not show that a create arrived before the update after all.
    pub(super) fn not_known_whole(&mut self, entities: &[EntityKey]) -> Vec<EntityKey> {
        let mut left = entities.to_vec();
        if entities.len() > READS_MAX {
            return left;
        }
        for entity in entities {
            let Some(read) = readback::of_trace_or_span(entity) else { continue };
            if !self.may_send() {
                break;
            }
            match self.sender.replay.upstream.read_back(&self.sender.work.lane, &read, READ_BYTES_MAX) {
                Ok(answer) if answer.status == 200 && answer.is_confirmed() => {
                    if readback::shown(answer.text.as_bytes()).is_some_and(|shown| !shown.is_partial) {
                        left.retain(|other| other != entity);
                    }
                }
                Ok(answer) if answer.status == 404 && answer.recognised == Recognised::Refused => {}
                // It cannot be read now: a single create is right for every record except one created twice.
                Ok(_) | Err(_) => break,
            }
        }
        left
    }
}

/// Returns a part of a divided message as the store keeps it.
fn part(message: &Claimed, divisible: &Divisible, items: Range<usize>, rejected: Option<LastAnswer>) -> Part {
    let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
    let request = divisible.piece(&message.request, items);
    let touches = touches(message, divisible, &request);
    let is_held = |answer: &LastAnswer| id_window::read(answer.status, &answer.text).is_some();
    let (held, rejected) = if rejected.as_ref().is_some_and(is_held) { (rejected, None) } else { (None, rejected) };
    Part { request, touches, items: count, rejected, held }
}

/// Returns what a piece of a message is about. It was cut out of what was parsed before; should that fail, the whole
/// message's entities are a safe answer.
pub(super) fn touches(message: &Claimed, divisible: &Divisible, piece: &Request) -> Vec<Touch> {
    divisible.touches(message.message_type, piece).unwrap_or_else(|| message.touches.clone())
}
