//! Updates folded into the stored batch create of their entity, where the result is what the server would end with.
//!
//! The TypeScript SDK's backlog is batch creates followed by one PATCH per entity. Sent as stored that is a request per
//! PATCH; folded, each batch is one request that already says what its updates say.
//!
//! # When it is exact
//!
//! Facts are those of the protocol dossier, section f, and of the OpenAPI file. What neither says is taken not to be
//! known, and what is not known is never folded.
//!
//! - **The create is an item of a batch and carries no `last_updated_at`.** The server stamps such an item when it comes,
//!   and it replaces whatever record was there, so that the update then changes just this item: one write of both leaves
//!   the same record, also when an earlier attempt reached the server and its answer was lost. With a `last_updated_at`
//!   the folded record would carry the create's older time where the server would have stamped the update's arrival, and
//!   a later batch create could win or lose differently.
//! - **Never into a single create.** It leaves an existing full record alone, and then the folded update would be lost.
//!   That our own message was never tried proves nothing: a client that gave up on an answer sends its create again, as
//!   another message, and so may a client that does not come through this agent.
//! - **The item is the only one of its id in its request, and no known member of it is there twice.** Which of two wins
//!   is not known. The body has no other member than the list.
//! - **Nothing between the two, in delivery order, conflicts with the update** ([`crate::message::conflict`]; the caller
//!   checks that, and that the headers agree). Updates of one entity fold in their order; one that stays apart keeps those
//!   behind it apart.
//! - **The update is one PATCH by id, without a query, and each of its members is known to be replaced whole.**
//!   `tags_to_add` and `tags_to_remove` change what is there, `project_id` is in no create, an unknown member may do
//!   anything. Null and empty values (`""`, blanks, `{}`, `[]`, numbers that may round to 0) may be taken as *not given*,
//!   which a create would not do.
//! - **Identity agrees**: `project_name`, `trace_id` and `parent_span_id` are the same bytes in both, or in neither. An
//!   update that lacks one names another place (the default project, no parent), which the server answers with 409: that
//!   has to stay visible.
//! - **`thread_id`, `source` and `environment`** are absent from the update or the same: whether an update moves a trace to
//!   another thread, or changes where it came from, is not known.
//! - **Only what the server takes for certain is covered up.** A refused value that a later one replaces would otherwise
//!   be healed: the client's bad write would pass without a word. So a member that has a value already is replaced only
//!   when that is a plain string or object where one belongs; others are only added, or repeated byte for byte.
//! - **Limits of an update that a create does not have** are checked here: 50 tags of 100 characters.
//! - **Estimated cost**: the server estimates it from a span's model, provider, usage and metadata as one request gives
//!   them, and nobody says whether an update's estimate looks at the stored ones. An update with any of these folds only
//!   when it names the cost itself, or when the item has none of these and no cost.
//!
//! A folded request that the server refuses, a 409 included, or that fails is taken apart again before anything else: the
//! create as stored, then the updates, in order. So the good ones are delivered and a bad one is rejected alone.
//!
//! Every byte of the create's other members stays; a replaced member has the update's bytes, a new one stands at the end.
//! One scan per body, no tree.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use uuid::Uuid;

use crate::message::{Claimed, EntityKey, EntityKind, MessageType};
use crate::protocol::json::{Kind, NotJson, Scanner};
use crate::protocol::merge_rules::{COST_SOURCES, MEMBERS, MergeRule, is_accepted, is_given, member_index};

/// A stored batch create with the updates that were folded into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    kind: EntityKind,
    content: Bytes,
    items: Vec<FoldedItem>,
    /// Which item makes an entity; `None` when several do.
    by_entity: HashMap<EntityKey, Option<usize>>,
    /// Bytes of the result, or a little more.
    bytes: usize,
    bytes_max: usize,
}

/// An item of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FoldedItem {
    range: Range<usize>,
    /// Its known members that have a value or null, each with where the value stands.
    own: Vec<(usize, Range<usize>)>,
    /// Members that updates gave it, in the order in which they came.
    given: Vec<(usize, Bytes)>,
}

impl Fold {
    /// Says whether it is worth a look: whether these messages may be a batch create and an update of one of its items.
    pub fn kind_of_create(message: &Claimed) -> Option<EntityKind> {
        match (message.message_type, message.request.path.as_str()) {
            (MessageType::CreateTraceBatch, "v1/private/traces/batch") => Some(EntityKind::Trace),
            (MessageType::CreateSpansBatch, "v1/private/spans/batch") => Some(EntityKind::Span),
            _ => None,
        }
    }

    /// Returns the entity that a single update is about.
    pub fn entity_of_update(message: &Claimed) -> Option<EntityKey> {
        let (kind, prefix) = match message.message_type {
            MessageType::UpdateTrace => (EntityKind::Trace, "v1/private/traces/"),
            MessageType::UpdateSpan => (EntityKind::Span, "v1/private/spans/"),
            _ => return None,
        };
        // What is no UUID, a query included, is nothing that we know.
        let id = Uuid::try_parse(message.request.path.strip_prefix(prefix)?).ok()?;
        Some(EntityKey::from_parts(kind, id.into_bytes()))
    }

    /// Reads a batch create whose content and result have at most so many bytes; `None` when it can take no update.
    pub fn of(create: &Claimed, bytes_max: usize) -> Option<Self> {
        let kind = Self::kind_of_create(create)?;
        let content = create.request.body.decode(bytes_max as u64).ok()?;
        let items = read_batch(kind, &content).ok()??;
        let mut by_entity = HashMap::with_capacity(items.len());
        for (index, (id, item)) in items.iter().enumerate() {
            // An item without a known id may be a second one of any id that only the server can read.
            let id = id.as_ref()?;
            let usable = item.is_some().then_some(index);
            by_entity.entry(EntityKey::from_parts(kind, id.into_bytes())).and_modify(|at| *at = None).or_insert(usable);
        }
        let nothing = FoldedItem { range: 0..0, own: Vec::new(), given: Vec::new() };
        let items = items.into_iter().map(|(_, item)| item.unwrap_or_else(|| nothing.clone())).collect();
        Some(Self { kind, bytes: content.len(), content, items, by_entity, bytes_max })
    }

    /// Folds an update into its item when that is exact, and says whether it was; if not, nothing has changed.
    pub fn take(&mut self, update: &Claimed) -> bool {
        self.fold(update).is_some()
    }

    fn fold(&mut self, update: &Claimed) -> Option<()> {
        let index = (*self.by_entity.get(&Self::entity_of_update(update)?)?)?;
        let content = update.request.body.decode((self.bytes_max - self.bytes.min(self.bytes_max)) as u64).ok()?;
        let given = read_update(self.kind, &content).ok()??;
        let bytes = self.bytes + content.len();
        if bytes > self.bytes_max || !self.is_exact(&self.items[index], &given) {
            return None;
        }
        let item = &mut self.items[index];
        for (member, value) in given {
            if MEMBERS[member].rule.is_unchanged() {
                continue;
            }
            match item.given.iter_mut().find(|(other, _)| *other == member) {
                Some((_, old)) => *old = value,
                None => item.given.push((member, value)),
            }
        }
        self.bytes = bytes;
        Some(())
    }

    /// Returns the value that an item has by now; null is none.
    fn value<'a>(&'a self, item: &'a FoldedItem, member: usize) -> Option<&'a [u8]> {
        let given = item.given.iter().find(|(other, _)| *other == member).map(|(_, value)| &value[..]);
        let own = || item.own.iter().find(|(other, _)| *other == member).map(|(_, at)| &self.content[at.clone()]);
        given.or_else(own).filter(|value| *value != b"null")
    }

    fn is_exact(&self, item: &FoldedItem, given: &[(usize, Bytes)]) -> bool {
        let by = |name: &str| {
            let member = member_index(self.kind, name)?;
            given.iter().find(|(other, _)| *other == member).map(|(_, value)| &value[..])
        };
        let before = |name: &str| member_index(self.kind, name).and_then(|member| self.value(item, member));
        if item.own.iter().any(|(member, _)| MEMBERS[*member].name == "last_updated_at") {
            return false;
        }
        for (member, about) in MEMBERS.iter().enumerate() {
            let value = given.iter().find(|(other, _)| *other == member).map(|(_, value)| &value[..]);
            let old = self.value(item, member);
            let fits = match (about.rule, value) {
                (MergeRule::CreateOnly, value) => value.is_none(),
                (MergeRule::Identity, value) => value == old,
                (_, None) => true,
                (MergeRule::Kept, value) => value == old,
                (rule, Some(value)) => {
                    is_given(rule, value) && old.is_none_or(|old| old == value || is_accepted(rule, old))
                }
            };
            if !fits {
                return false;
            }
        }
        // Something has to be left to say: what the server does with an update of nothing is not known.
        let changes = given.iter().any(|(member, _)| !MEMBERS[*member].rule.is_unchanged());
        let names_cost = by("total_estimated_cost").is_some();
        let has_sources = |has: &dyn Fn(&str) -> bool| COST_SOURCES.into_iter().any(has);
        let cost_is_clear = self.kind == EntityKind::Trace
            || (names_cost && before("total_estimated_cost_version").is_none())
            || (!names_cost
                && (!has_sources(&|name| by(name).is_some())
                    || (before("total_estimated_cost").is_none() && !has_sources(&|name| before(name).is_some()))));
        changes && cost_is_clear
    }

    /// Returns the body of the batch with all that was folded into it.
    pub fn content(&self) -> Vec<u8> {
        let mut result = Vec::with_capacity(self.bytes);
        let mut copied = 0;
        for item in self.items.iter().filter(|item| !item.given.is_empty()) {
            let place = |member: usize| item.own.iter().find(|(other, _)| *other == member).map(|(_, at)| at.clone());
            let (mut replaced, mut added) = (Vec::new(), Vec::new());
            for (member, value) in &item.given {
                match place(*member) {
                    Some(at) => replaced.push((at, value)),
                    None => added.push((MEMBERS[*member].name, value)),
                }
            }
            replaced.sort_by_key(|(at, _)| at.start);
            for (at, value) in replaced {
                result.extend_from_slice(&self.content[copied..at.start]);
                result.extend_from_slice(value);
                copied = at.end;
            }
            // An item that takes updates has an id, so a comma is right.
            result.extend_from_slice(&self.content[copied..item.range.end - 1]);
            for (name, value) in added {
                result.extend_from_slice(b",\"");
                result.extend_from_slice(name.as_bytes());
                result.extend_from_slice(b"\":");
                result.extend_from_slice(value);
            }
            copied = item.range.end - 1;
        }
        result.extend_from_slice(&self.content[copied..]);
        result
    }
}

/// Ids of items, where they are known, and the items that may take updates.
type BatchItems = Vec<(Option<Uuid>, Option<FoldedItem>)>;

/// Reads the items of a batch; `None` when its body is not just one list of them.
fn read_batch(kind: EntityKind, content: &[u8]) -> Result<Option<BatchItems>, NotJson> {
    let list = if kind == EntityKind::Trace { "traces" } else { "spans" };
    let mut scanner = Scanner::new(content)?;
    if scanner.peek()? != Kind::Object {
        return Ok(None);
    }
    let (mut items, mut members) = (None, 0);
    scanner.object(|key, scanner| {
        members += 1;
        if key != list || scanner.peek()? != Kind::Array {
            return scanner.skip_value().map(drop);
        }
        let mut found = BatchItems::new();
        scanner.array(|scanner| {
            found.push(read_item(kind, scanner)?);
            Ok(())
        })?;
        items = Some(found);
        Ok(())
    })?;
    scanner.end()?;
    Ok(items.filter(|_| members == 1))
}

fn read_item(kind: EntityKind, scanner: &mut Scanner<'_>) -> Result<(Option<Uuid>, Option<FoldedItem>), NotJson> {
    if scanner.peek()? != Kind::Object {
        scanner.skip_value()?;
        return Ok((None, None));
    }
    let mut own: Vec<(usize, Range<usize>)> = Vec::with_capacity(12);
    let (mut id, mut ids, mut is_clear) = (None, 0, true);
    let range = scanner.object(|key, scanner| {
        let Some(member) = member_index(kind, key) else { return scanner.skip_value().map(drop) };
        let kind = scanner.peek()?;
        if key == "id" && kind == Kind::String {
            // Read from a copy: the value is skipped below like any other.
            id = Uuid::try_parse(&scanner.clone().string()?).ok();
        }
        ids += usize::from(key == "id");
        is_clear &= own.iter().all(|(other, _)| *other != member);
        own.push((member, scanner.skip_value()?));
        Ok(())
    })?;
    let id = id.filter(|_| ids == 1);
    Ok((id, is_clear.then_some(FoldedItem { range, own, given: Vec::new() })))
}

/// Reads the members of an update; `None` when one is unknown or there twice, or when it is no object.
fn read_update(kind: EntityKind, content: &Bytes) -> Result<Option<Vec<(usize, Bytes)>>, NotJson> {
    let mut scanner = Scanner::new(content)?;
    if scanner.peek()? != Kind::Object {
        return Ok(None);
    }
    let mut given: Vec<(usize, Bytes)> = Vec::new();
    let mut is_clear = true;
    scanner.object(|key, scanner| {
        let value = scanner.skip_value()?;
        match member_index(kind, key) {
            Some(member) if given.iter().all(|(other, _)| *other != member) => {
                given.push((member, content.slice(value)))
            }
            _ => is_clear = false,
        }
        Ok(())
    })?;
    scanner.end()?;
    Ok(is_clear.then_some(given))
}

#[cfg(test)]
mod tests;
