//! The server of the model, and what must be true of what it receives.

use std::collections::BTreeMap;

/// An entity of an agent's clients. An agent whose disk was lost continues as another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntityOf {
    pub(super) agent: usize,
    pub(super) entity: u8,
}

/// A write of a client. Its number is its place in the order of acceptance.
#[derive(Clone, Debug)]
struct ClientWrite {
    entity: EntityOf,
    /// Whether the client got an acknowledgement.
    is_acknowledged: bool,
    /// Whether nobody may send it again: its mark is durable, or it never was in a store.
    is_final: bool,
    /// Whether its purge was confirmed.
    is_purged: bool,
    /// Whether it need not arrive: it was only on a lost disk, or a person may have deleted it.
    may_be_missing: bool,
    is_received: bool,
    /// Whether its disk was lost before it was settled or copied: an older one that was copied may be sent after it.
    is_lost_unsettled: bool,
}

/// The events so far.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    writes: Vec<ClientWrite>,
    /// The last write about each entity.
    last: BTreeMap<EntityOf, usize>,
    /// The violations.
    pub(super) wrong: Vec<String>,
    /// Everything that happened, for people.
    pub(super) story: Vec<String>,
}

impl Oracle {
    /// Returns the number of the next write about this entity, and whether it is the first one.
    pub(super) fn begin(&mut self, entity: EntityOf) -> (usize, bool) {
        let is_first = self.writes.iter().all(|write| write.entity != entity);
        self.writes.push(ClientWrite {
            entity,
            is_acknowledged: false,
            is_final: false,
            is_purged: false,
            may_be_missing: false,
            is_received: false,
            is_lost_unsettled: false,
        });
        (self.writes.len() - 1, is_first)
    }

    pub(super) fn acknowledged(&mut self, write: usize) {
        self.story.push(format!("write {write} is acknowledged"));
        self.writes[write].is_acknowledged = true;
    }

    /// Records whether somebody may still send this write.
    pub(super) fn is_final(&mut self, write: usize, is_final: bool) {
        self.writes[write].is_final = is_final;
    }

    /// The server applies a write.
    pub(super) fn receive(&mut self, write: usize, host: &str) {
        let entity = self.writes[write].entity;
        self.story.push(format!("the server applies write {write} about {entity:?} from {host}"));
        self.writes[write].is_received = true;
        if self.writes[write].is_purged {
            self.wrong.push(format!("write {write} was purged, and {host} delivers it"));
        }
        let newer = self.writes.iter().enumerate().skip(write + 1);
        let overtaken = newer.filter(|(_, newer)| newer.entity == entity && newer.is_received && newer.is_final);
        for (newer, _) in overtaken {
            self.wrong.push(format!("{host} sends write {write} over write {newer}, which is settled"));
        }
        self.last.insert(entity, write);
    }

    /// The disk of an agent is lost; `kept` are the writes that are in the depot.
    pub(super) fn lose_disk(&mut self, agent: usize, kept: &[usize]) {
        self.story.push(format!("the disk of agent {agent} is lost; the depot has {kept:?}"));
        let lost = self.writes.iter_mut().enumerate().filter(|(_, write)| write.entity.agent == agent);
        for (number, write) in lost {
            write.is_lost_unsettled |= !write.is_final && !kept.contains(&number);
            write.may_be_missing |= !write.is_received && !kept.contains(&number);
        }
    }

    /// A person begins to delete these.
    pub(super) fn purging(&mut self, writes: &[usize]) {
        writes.iter().for_each(|write| self.writes[*write].may_be_missing = true);
    }

    /// The purge of these was confirmed.
    pub(super) fn purged(&mut self, writes: &[usize]) {
        self.story.push(format!("purged: {writes:?}"));
        writes.iter().for_each(|write| self.writes[*write].is_purged = true);
    }

    pub(super) fn entity(&self, write: usize) -> u8 {
        self.writes[write].entity.entity
    }

    /// Checks that everything arrived, and that each entity ends with its newest write.
    pub(super) fn conclude(&mut self) {
        for (number, write) in self.writes.iter().enumerate() {
            if write.is_acknowledged && !write.is_received && !write.may_be_missing {
                self.wrong.push(format!("write {number} about {:?} is lost", write.entity));
            }
        }
        for (entity, last) in &self.last {
            let is_newer = |(_, write): &(usize, &ClientWrite)| {
                write.entity == *entity && write.is_received && !write.is_lost_unsettled
            };
            let newest = self.writes.iter().enumerate().filter(is_newer).map(|(number, _)| number).max();
            if newest.is_some_and(|newest| newest > *last) {
                self.wrong.push(format!("{entity:?} ends with write {last}, and its newest is {newest:?}"));
            }
        }
    }
}
