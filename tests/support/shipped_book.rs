//! Which messages have a copy in a depot, in memory: the part of it that the model and the second engine share.

#![allow(dead_code, reason = "every test binary uses its own part of it")]

use std::collections::BTreeMap;

use opik_offline::message::{MessageId, MessageStatus};
use opik_offline::store::{
    ClaimLimits, Location, Outcome, ShippedMessage, StoreError, StreamRecord, StreamState, UnshippedCount,
};
use uuid::Uuid;

/// What a copy needs to know of a stored message.
#[derive(Clone, Copy)]
pub(crate) struct Stored {
    pub id: i64,
    pub position: i64,
    pub status: MessageStatus,
    pub body_bytes: u64,
    pub accepted_at_ms: i64,
}

impl Stored {
    fn is_on_its_way(&self) -> bool {
        self.status != MessageStatus::Rejected
    }
}

#[derive(Clone, Copy)]
struct Copied {
    stream: Uuid,
    origin: u64,
    is_part: bool,
    /// `None` for a part, whose copy is in the mark of the whole.
    bundle: Option<u32>,
}

/// The book of a store.
#[derive(Default)]
pub(crate) struct ShippedBook {
    streams: Vec<StreamRecord>,
    copies: BTreeMap<i64, Copied>,
    makes_marks: bool,
}

impl ShippedBook {
    pub(crate) fn makes_marks(&mut self) {
        self.makes_marks = true;
    }

    pub(crate) fn refuse_outstanding(&self) -> Result<(), StoreError> {
        let is_outstanding = |record: &&StreamRecord| self.is_outstanding(record.stream);
        match self.streams.iter().find(is_outstanding).filter(|_| !self.makes_marks) {
            Some(record) => Err(StoreError::InDepot { at: Location::new("memory"), depot: record.depot.clone() }),
            None => Ok(()),
        }
    }

    fn is_outstanding(&self, stream: Uuid) -> bool {
        self.copies.values().any(|copy| copy.stream == stream)
    }

    fn stream(&mut self, stream: Uuid) -> Option<&mut StreamRecord> {
        self.streams.iter_mut().find(|record| record.stream == stream)
    }

    pub(crate) fn streams(&self) -> Vec<StreamRecord> {
        let fill = |record: &StreamRecord| StreamRecord {
            is_outstanding: self.is_outstanding(record.stream),
            ..record.clone()
        };
        self.streams.iter().map(fill).collect()
    }

    pub(crate) fn note_stream(&mut self, record: &StreamRecord) {
        match self.stream(record.stream) {
            Some(known) => *known = record.clone(),
            None => self.streams.push(record.clone()),
        }
    }

    pub(crate) fn end_stream(&mut self, stream: Uuid) {
        self.streams.retain(|record| record.stream != stream);
        self.copies.retain(|_, copy| copy.stream != stream);
    }

    pub(crate) fn begin_bundle(&mut self, stream: Uuid, stored: &[Stored], limits: ClaimLimits) -> Vec<MessageId> {
        let Some((next, through)) = self.stream(stream).map(|it| (it.next_bundle, it.shipped_through.0)) else {
            return Vec::new();
        };
        let mut in_order = stored.to_vec();
        in_order.sort_by_key(|message| (message.position, message.id));
        let is_chosen = |message: &&Stored| {
            let copy = self.copies.get(&message.id);
            copy.is_some_and(|copy| copy.stream == stream && copy.bundle.is_some_and(|bundle| bundle >= next))
        };
        let chosen: Vec<MessageId> = in_order.iter().filter(is_chosen).map(|message| MessageId(message.id)).collect();
        if !chosen.is_empty() {
            return chosen;
        }
        let is_open = |message: &&Stored| {
            message.id > through && message.is_on_its_way() && !self.copies.contains_key(&message.id)
        };
        let open: Vec<Stored> = in_order.iter().filter(is_open).copied().collect();
        let last_part = open.iter().filter(|message| message.position < 2 * message.id).map(|it| it.position).max();
        let chosen: Vec<MessageId> = match last_part {
            Some(last) => open.iter().filter(|it| it.position <= last).map(|it| MessageId(it.id)).collect(),
            None => {
                let mut by_id = open;
                by_id.sort_by_key(|message| message.id);
                let mut bytes = 0;
                let fits = |(number, message): &(usize, Stored)| {
                    bytes += message.body_bytes;
                    *number == 0 || *number < limits.messages_max && bytes <= limits.bytes_max
                };
                by_id.into_iter().enumerate().take_while(fits).map(|(_, it)| MessageId(it.id)).collect()
            }
        };
        for id in &chosen {
            let copy = Copied { stream, origin: id.0.unsigned_abs(), is_part: false, bundle: Some(next) };
            self.copies.insert(id.0, copy);
        }
        chosen
    }

    pub(crate) fn confirm_bundle(&mut self, stream: Uuid, next_bundle: u32, stored: &[Stored]) {
        let Some(first) = self.stream(stream).map(|record| record.next_bundle) else { return };
        let is_new = |message: &&Stored| {
            let copy = self.copies.get(&message.id);
            copy.is_some_and(|copy| copy.stream == stream && copy.bundle.is_some_and(|bundle| bundle >= first))
        };
        let through = stored.iter().filter(is_new).map(|it| it.id.min(it.position / 2)).max().unwrap_or(0);
        if let Some(record) = self.stream(stream) {
            record.next_bundle = next_bundle;
            record.shipped_through.0 = record.shipped_through.0.max(through);
        }
    }

    pub(crate) fn withdraw_bundle(&mut self, stream: Uuid) {
        let Some(first) = self.stream(stream).map(|record| record.next_bundle) else { return };
        self.copies.retain(|_, copy| copy.stream != stream || copy.bundle.is_none_or(|bundle| bundle < first));
    }

    fn shipped(id: i64, copy: &Copied) -> ShippedMessage {
        ShippedMessage { id: MessageId(id), stream: copy.stream, origin: copy.origin, is_part: copy.is_part }
    }

    pub(crate) fn outstanding(&self, ids: &[MessageId]) -> Vec<ShippedMessage> {
        ids.iter().filter_map(|id| Some(Self::shipped(id.0, self.copies.get(&id.0)?))).collect()
    }

    pub(crate) fn outstanding_and_gone(&self, stored: &[Stored], limit: usize) -> Vec<ShippedMessage> {
        let is_stored = |id: i64| stored.iter().any(|message| message.id == id);
        let has_other = |copy: &Copied| {
            let same = |(id, other): (&i64, &Copied)| {
                is_stored(*id) && (other.stream, other.origin) == (copy.stream, copy.origin)
            };
            copy.is_part && self.copies.iter().any(same)
        };
        let gone = self.copies.iter().filter(|(id, copy)| !is_stored(**id) && !has_other(copy));
        gone.map(|(id, copy)| Self::shipped(*id, copy)).take(limit).collect()
    }

    pub(crate) fn note_marked(&mut self, ids: &[MessageId]) {
        self.copies.retain(|id, _| !ids.contains(&MessageId(*id)));
    }

    /// Records the parts of a divided message.
    pub(crate) fn divided(&mut self, whole: i64, part: i64) {
        if let Some(copy) = self.copies.get(&whole).copied() {
            self.copies.insert(part, Copied { is_part: true, bundle: None, ..copy });
        }
    }

    /// Records a settle.
    pub(crate) fn settled(&mut self, outcomes: &[(MessageId, Outcome)]) {
        let stays = |outcome: &Outcome| matches!(outcome, Outcome::Failed { .. } | Outcome::Held { .. });
        for (id, _) in outcomes.iter().filter(|(_, outcome)| !stays(outcome)) {
            self.copies.remove(&id.0);
        }
    }

    pub(crate) fn unshipped(&self, stored: &[Stored]) -> UnshippedCount {
        let open = self.streams.iter().filter(|record| record.state == StreamState::Open);
        let through = open.map(|record| record.shipped_through.0).max().unwrap_or(0);
        let next = |stream| self.streams.iter().find(|it| it.stream == stream).map_or(0, |it| it.next_bundle);
        let is_there = |copy: &Copied| copy.bundle.is_none_or(|bundle| bundle < next(copy.stream));
        let is_open = |message: &&Stored| {
            message.id > through && message.is_on_its_way() && !self.copies.get(&message.id).is_some_and(is_there)
        };
        stored.iter().filter(is_open).fold(UnshippedCount::default(), |count, message| UnshippedCount {
            messages: count.messages + 1,
            body_bytes: count.body_bytes + message.body_bytes,
            oldest_accepted_at_ms: count.oldest_accepted_at_ms.into_iter().chain([message.accepted_at_ms]).min(),
        })
    }

    pub(crate) fn hand_over(&mut self, stream: Uuid) -> Vec<MessageId> {
        self.withdraw_bundle(stream);
        if let Some(record) = self.stream(stream) {
            record.state = StreamState::HandedOver;
        }
        let of_stream = self.copies.iter().filter(|(_, copy)| copy.stream == stream);
        of_stream.map(|(id, _)| MessageId(*id)).collect()
    }

    pub(crate) fn is_handed_over(&self, id: i64) -> bool {
        let of = |stream| self.streams.iter().find(|it| it.stream == stream);
        let copy = self.copies.get(&id).and_then(|copy| of(copy.stream));
        copy.is_some_and(|record| record.state == StreamState::HandedOver)
    }
}
