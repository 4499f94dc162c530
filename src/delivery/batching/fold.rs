//! Folding: updates are merged into the stored batch create of their entity, if the server's record is the same in the
//! end.
//!
//! The TypeScript SDK's backlog is batch creates followed by one PATCH per entity. Sent as stored that is a request
//! per PATCH; folded, each batch is one request that includes its updates.
//!
//! # When it is exact
//!
//! Facts are those of the protocol dossier, section f, and of the OpenAPI file. A fact in neither is treated as
//! unknown ([`merge_rules`](crate::protocol::merge_rules)), and an unknown effect is never folded.
//!
//! - **The create is an item of a batch and has no `last_updated_at`.** The server stamps such an item on arrival, and
//!   it replaces any existing record, so that the update then changes just this item: one write of both leaves the same
//!   record, even if an earlier attempt reached the server and its answer was lost. With a `last_updated_at` the folded
//!   record would have the create's older time where the server would have stamped the update's arrival, and a later
//!   batch create could win or lose differently.
//! - **Never into a single create.** It leaves an existing full record unchanged, and then the folded update would be
//!   lost. That this message was never tried proves nothing: a client whose request timed out retries its create, as
//!   another message, and so may a client that does not use this agent.
//! - **The item is the only one with its id in its request, and has no known member twice.** Which of two wins is
//!   unknown. The body has no member but the list.
//! - **Nothing between the two, in delivery order, conflicts with the update** ([`crate::message::conflict`]; the
//!   caller checks that, and that the headers agree). Updates of one entity are folded in their order; one that stays
//!   separate keeps later ones separate.
//! - **The update is one PATCH by id, without a query, and each of its members is known to be replaced whole.**
//!   `tags_to_add` and `tags_to_remove` modify existing tags, `project_id` is in no create, an unknown member may have
//!   any effect. Null and empty values (`""`, blanks, `{}`, `[]`, numbers that may round to 0) may count as *not
//!   given*, which they do not in a create.
//! - **Identity agrees**: `project_name`, `trace_id` and `parent_span_id` are the same bytes in both, or in neither. An
//!   update that lacks one is for another place (the default project, no parent), which the server answers with 409:
//!   that has to stay visible.
//! - **`thread_id`, `source` and `environment`** are absent from the update or the same: whether an update moves a
//!   trace to another thread, or changes its origin, is unknown.
//! - **Only a value that the server certainly accepts is replaced.** Otherwise folding would hide the refusal of a bad
//!   value that a later one replaces. So a member that already has a value is replaced only if that is a plain string
//!   or object where one is valid; others are only added, or repeated byte for byte.
//! - **Limits of an update that a create does not have** are checked here: 50 tags of 100 characters.
//! - **Estimated cost**: the server estimates it from a span's model, provider, usage and metadata of one request, and
//!   it is unknown whether an update's estimate also uses the stored ones. An update with any of these is folded only
//!   if it has the cost itself, or if the item has none of these and no cost.
//!
//! If the server refuses a folded request, even with 409, or fails at it, it is unfolded before anything else: the
//! create as stored, then the updates, in order. So the good ones are delivered and a bad one is rejected alone.
//!
//! Every byte of the create's other members stays; a replaced member has the update's bytes, a new one is appended.
//! One pass of the parser per body, no tree.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use uuid::Uuid;

use crate::message::{Claimed, EntityKey, EntityKind, MessageType};
use crate::protocol::json::{JsonKind, NotJson, Scanner};
use crate::protocol::merge_rules::{COST_SOURCES, MEMBERS, MergeRule, is_accepted, is_given, member_index};

/// A stored batch create with the updates that were folded into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fold {
    kind: EntityKind,
    content: Bytes,
    items: Vec<FoldedItem>,
    /// Which item creates an entity; `None` if several do.
    by_entity: HashMap<EntityKey, Option<usize>>,
    /// Bytes of the result, or a little more.
    bytes: usize,
    bytes_max: usize,
}

/// An item of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FoldedItem {
    range: Range<usize>,
    /// Its known members that have a value or null, each with the range of the value.
    own: Vec<(usize, Range<usize>)>,
    /// Members given by updates, in the order of arrival.
    given: Vec<(usize, Bytes)>,
}

impl Fold {
    /// Returns the kind of entity that a batch create creates; `None` if the message is not one.
    pub(crate) fn kind_of_create(message: &Claimed) -> Option<EntityKind> {
        match (message.message_type, message.request.path.as_str()) {
            (MessageType::CreateTraceBatch, "v1/private/traces/batch") => Some(EntityKind::Trace),
            (MessageType::CreateSpansBatch, "v1/private/spans/batch") => Some(EntityKind::Span),
            _ => None,
        }
    }

    /// Returns the entity that a single update is about.
    pub(crate) fn entity_of_update(message: &Claimed) -> Option<EntityKey> {
        let (kind, prefix) = match message.message_type {
            MessageType::UpdateTrace => (EntityKind::Trace, "v1/private/traces/"),
            MessageType::UpdateSpan => (EntityKind::Span, "v1/private/spans/"),
            _ => return None,
        };
        // A path with anything but a UUID, such as a query, is unknown.
        let id = Uuid::try_parse(message.request.path.strip_prefix(prefix)?).ok()?;
        Some(EntityKey::from_parts(kind, id.into_bytes()))
    }

    /// Parses a batch create whose content and result have at most `bytes_max` bytes; `None` if it can take no update.
    pub(crate) fn of(create: &Claimed, bytes_max: usize) -> Option<Self> {
        let kind = Self::kind_of_create(create)?;
        let content = create.request.body.decode(bytes_max as u64).ok()?;
        let items = read_batch(kind, &content).ok()??;
        let mut by_entity = HashMap::with_capacity(items.len());
        for (index, (id, item)) in items.iter().enumerate() {
            // An item without a parsed id may be a second one of any id, as the server parses it.
            let id = id.as_ref()?;
            let usable = item.is_some().then_some(index);
            by_entity.entry(EntityKey::from_parts(kind, id.into_bytes())).and_modify(|at| *at = None).or_insert(usable);
        }
        let nothing = FoldedItem { range: 0..0, own: Vec::new(), given: Vec::new() };
        let items = items.into_iter().map(|(_, item)| item.unwrap_or_else(|| nothing.clone())).collect();
        Some(Self { kind, bytes: content.len(), content, items, by_entity, bytes_max })
    }

    /// Folds an update into its item if that is exact, and returns whether it was; if not, nothing has changed.
    pub(crate) fn take(&mut self, update: &Claimed) -> bool {
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

    /// Returns the value that an item has now; `None` for null.
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
        // The update has to change something: the server's reaction to an empty update is unknown.
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
    pub(crate) fn content(&self) -> Vec<u8> {
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
            // An item that takes updates has an id, so a comma is valid.
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

/// Ids of items, if parsed, and the items that may take updates.
type BatchItems = Vec<(Option<Uuid>, Option<FoldedItem>)>;

/// Parses the items of a batch; `None` if its body is not just one list of them.
fn read_batch(kind: EntityKind, content: &[u8]) -> Result<Option<BatchItems>, NotJson> {
    let list = if kind == EntityKind::Trace { "traces" } else { "spans" };
    let mut scanner = Scanner::new(content)?;
    if scanner.peek()? != JsonKind::Object {
        return Ok(None);
    }
    let (mut items, mut members) = (None, 0);
    scanner.object(|key, scanner| {
        members += 1;
        if key != list || scanner.peek()? != JsonKind::Array {
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
    if scanner.peek()? != JsonKind::Object {
        scanner.skip_value()?;
        return Ok((None, None));
    }
    let mut own: Vec<(usize, Range<usize>)> = Vec::with_capacity(12);
    let (mut id, mut ids, mut is_clear) = (None, 0, true);
    let range = scanner.object(|key, scanner| {
        let Some(member) = member_index(kind, key) else { return scanner.skip_value().map(drop) };
        let kind = scanner.peek()?;
        if key == "id" && kind == JsonKind::String {
            // Parsed from a copy: the value is skipped below like any other.
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

/// Parses the members of an update; `None` if one is unknown or occurs twice, or if it is not an object.
fn read_update(kind: EntityKind, content: &Bytes) -> Result<Option<Vec<(usize, Bytes)>>, NotJson> {
    let mut scanner = Scanner::new(content)?;
    if scanner.peek()? != JsonKind::Object {
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
