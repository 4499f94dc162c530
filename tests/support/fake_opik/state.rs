//! The server's state of one entity, and how each write changes it.
//!
//! The rules are those of the protocol dossier, section f: records are rows with a time, the newest row wins, and an
//! update of an entity that isn't there makes a *partial* row, which a later batch create with an older time can't
//! cover.

use std::collections::BTreeMap;

use serde_json::Value;

use super::check::{Change, Fields};
use super::clock::{self, Stamp};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    /// The fields as last written, without nulls. `last_updated_at` is gone once the server has set its own.
    pub fields: Fields,
    /// Only updates have arrived so far.
    pub partial: bool,
    stamp: Stamp,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Entity {
    pub record: Option<Record>,
    pub scores: BTreeMap<String, Fields>,
    pub assertions: BTreeMap<String, Fields>,
    pub guardrails: Vec<Fields>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Effect {
    Applied,
    /// An update came before its create and made a partial record.
    EarlyUpdate,
}

impl Entity {
    /// Applies one write at the server's time `now`; the error is the text of a 409.
    pub(crate) fn apply(&mut self, change: &Change, now: Stamp) -> Result<Effect, String> {
        match change {
            Change::CreateOne(fields) => self.create_one(fields, now),
            Change::CreateInBatch(fields) => self.create_in_batch(fields, now),
            Change::Update(fields) => return self.update(fields, now),
            Change::Set(fields) => match &mut self.record {
                Some(record) => record.fields.extend(fields.clone()),
                // Threads come to be with their first trace, which this state doesn't follow.
                None => self.record = Some(Record { fields: fields.clone(), partial: false, stamp: now }),
            },
            Change::Delete => *self = Self::default(),
            Change::Score { name, fields } => drop(self.scores.insert(name.clone(), fields.clone())),
            Change::Assertion { name, fields } => drop(self.assertions.insert(name.clone(), fields.clone())),
            Change::Guardrail(fields) => {
                // The real server would list a repeat twice; which is harmless, so it isn't told apart here.
                if !self.guardrails.contains(fields) {
                    self.guardrails.push(fields.clone());
                }
            }
        }
        Ok(Effect::Applied)
    }

    fn create_one(&mut self, fields: &Fields, now: Stamp) {
        match &mut self.record {
            Some(record) if record.partial => {
                let early = std::mem::replace(&mut record.fields, fields.clone());
                record.fields.extend(early);
                record.fields.remove("last_updated_at");
                record.partial = false;
                record.stamp = now;
            }
            Some(_) => {}
            None => self.record = Some(Record { fields: fields.clone(), partial: false, stamp: stamp(fields, now) }),
        }
    }

    fn create_in_batch(&mut self, fields: &Fields, now: Stamp) {
        let stamp = stamp(fields, now);
        if self.record.as_ref().is_none_or(|record| stamp >= record.stamp) {
            self.record = Some(Record { fields: fields.clone(), partial: false, stamp });
        }
    }

    fn update(&mut self, fields: &Fields, now: Stamp) -> Result<Effect, String> {
        let Some(record) = &mut self.record else {
            self.record = Some(Record { fields: fields.clone(), partial: true, stamp: now });
            return Ok(Effect::EarlyUpdate);
        };
        for name in ["project_name", "trace_id", "parent_span_id"] {
            let of = |fields: &Fields| {
                let default = (name == "project_name").then(|| Value::from("Default Project"));
                fields.get(name).cloned().or(default)
            };
            if of(&record.fields) != of(fields) {
                return Err(format!("{name} does not match the existing record"));
            }
        }
        record.fields.extend(fields.clone());
        record.fields.remove("last_updated_at");
        record.stamp = now;
        Ok(Effect::Applied)
    }
}

fn stamp(fields: &Fields, now: Stamp) -> Stamp {
    fields.get("last_updated_at").and_then(Value::as_str).and_then(clock::parse).unwrap_or(now)
}
