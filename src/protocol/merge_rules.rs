//! How the server merges an update into a trace or span, member by member.
//!
//! Facts are those of the protocol dossier, section f, and of the OpenAPI file (`Trace_Write`, `Span_Write`, `TraceUpdate`,
//! `SpanUpdate`). What neither says is treated as unknown; a member that is not in [`MEMBERS`] has no rule.

use super::json::{JsonKind, NotJson, Scanner};
use crate::message::EntityKind;

/// The most members of a value that is replaced: a parser limits the depth, and this few cannot reach its limit.
const REPLACED_BRACKETS_MAX: usize = 64;
/// The most bytes of a value that is replaced: the server limits the length of strings.
const REPLACED_BYTES_MAX: usize = 64 * 1024;
/// The smallest number that no column rounds to 0.
const NUMBER_MIN: f64 = 1e-6;
/// Limits of `tags` in TraceUpdate and SpanUpdate (OpenAPI); Trace_Write and Span_Write have none.
const TAGS_MAX: usize = 50;
const TAG_BYTES_MAX: usize = 100;

/// How a member of an update meets the same member of the create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MergeRule {
    /// Only a create has it.
    CreateOnly,
    /// The same in both, or in neither.
    Identity,
    /// The same in both, or absent from the update.
    Kept,
    /// Replaced whole; the server accepts any string.
    Text,
    /// Replaced whole; the server accepts any string or object (`JsonListString`).
    Json,
    /// Replaced whole; the server validates the value.
    Strict,
    /// As strict, a number.
    Number,
    /// As strict, a list with limits of its own.
    Tags,
}

impl MergeRule {
    /// Returns whether the member only identifies the entity or its place, so that an update does not change it.
    pub(crate) fn is_unchanged(self) -> bool {
        matches!(self, MergeRule::Identity | MergeRule::Kept)
    }
}

/// A member of a trace or span in the JSON of creates and updates, and its rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntityMember {
    /// Its name.
    pub name: &'static str,
    /// How an update meets it.
    pub rule: MergeRule,
    /// Whether spans have it and traces don't.
    span_only: bool,
}

const fn both(name: &'static str, rule: MergeRule) -> EntityMember {
    EntityMember { name, rule, span_only: false }
}

const fn span(name: &'static str, rule: MergeRule) -> EntityMember {
    EntityMember { name, rule, span_only: true }
}

/// Every member with a rule.
pub(crate) const MEMBERS: [EntityMember; 22] = [
    both("id", MergeRule::CreateOnly),
    both("last_updated_at", MergeRule::CreateOnly),
    span("total_estimated_cost_version", MergeRule::CreateOnly),
    both("project_name", MergeRule::Identity),
    span("trace_id", MergeRule::Identity),
    span("parent_span_id", MergeRule::Identity),
    both("thread_id", MergeRule::Kept),
    both("source", MergeRule::Kept),
    both("environment", MergeRule::Kept),
    both("name", MergeRule::Text),
    span("model", MergeRule::Text),
    span("provider", MergeRule::Text),
    both("input", MergeRule::Json),
    both("output", MergeRule::Json),
    both("metadata", MergeRule::Json),
    both("end_time", MergeRule::Strict),
    both("error_info", MergeRule::Strict),
    span("type", MergeRule::Strict),
    span("usage", MergeRule::Strict),
    both("ttft", MergeRule::Number),
    span("total_estimated_cost", MergeRule::Number),
    both("tags", MergeRule::Tags),
];

/// The members from which the server estimates a span's cost.
pub(crate) const COST_SOURCES: [&str; 4] = ["model", "provider", "usage", "metadata"];

/// Returns the index of a member in [`MEMBERS`], or `None` if nothing is known of it.
pub(crate) fn member_index(kind: EntityKind, name: &str) -> Option<usize> {
    // A span has no thread; what the server does with one there is unknown.
    let has = |member: &EntityMember| match kind {
        EntityKind::Trace => !member.span_only,
        _ => member.name != "thread_id",
    };
    MEMBERS.iter().position(|member| member.name == name && has(member))
}

/// Returns whether the server certainly reads this as a given value, and accepts it in an update if it does in a create.
///
/// Null and empty values (`""`, blanks, `{}`, `[]`, numbers that may round to 0) may count as *not given*.
pub(crate) fn is_given(rule: MergeRule, value: &[u8]) -> bool {
    match rule {
        MergeRule::Number => {
            let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<f64>().ok());
            number.is_some_and(|number| number.is_finite() && number >= NUMBER_MIN)
        }
        MergeRule::Tags => is_within_tag_limits(value).unwrap_or(false),
        _ => is_not_empty(value).unwrap_or(false),
    }
}

/// Returns whether the server certainly accepts this value, so that replacing it hides no refusal.
pub(crate) fn is_accepted(rule: MergeRule, value: &[u8]) -> bool {
    let has = |word: &[u8]| value.windows(word.len()).any(|window| window == word);
    let has_type = match rule {
        MergeRule::Text => value.starts_with(b"\""),
        MergeRule::Json => value.starts_with(b"\"") || value.starts_with(b"{"),
        _ => false,
    };
    let brackets = || value.iter().filter(|byte| matches!(byte, b'{' | b'[')).count();
    // An escape may be a lone surrogate, and not every parser reads the extensions of Python's JSON.
    has_type
        && value.len() <= REPLACED_BYTES_MAX
        && brackets() <= REPLACED_BRACKETS_MAX
        && ![&b"\\u"[..], b"NaN", b"Infinity"].into_iter().any(has)
}

fn is_not_empty(value: &[u8]) -> Result<bool, NotJson> {
    let mut scanner = Scanner::new(value)?;
    let mut members = 0_usize;
    let mut count = |scanner: &mut Scanner<'_>| {
        members += 1;
        scanner.skip_value().map(drop)
    };
    match scanner.peek()? {
        JsonKind::Object => scanner.object(|_, scanner| count(scanner))?,
        JsonKind::Array => scanner.array(count)?,
        JsonKind::String => return Ok(!scanner.string()?.trim().is_empty()),
        // None of these members is a number or a boolean: servers may parse such a value differently.
        JsonKind::Null | JsonKind::Scalar => return Ok(false),
    };
    Ok(members > 0)
}

fn is_within_tag_limits(value: &[u8]) -> Result<bool, NotJson> {
    let mut scanner = Scanner::new(value)?;
    if scanner.peek()? != JsonKind::Array {
        return Ok(false);
    }
    let (mut tags, mut fit) = (0, true);
    scanner.array(|scanner| {
        tags += 1;
        if scanner.peek()? != JsonKind::String {
            fit = false;
            return scanner.skip_value().map(drop);
        }
        let tag = scanner.string()?;
        fit &= !tag.trim().is_empty() && tag.len() <= TAG_BYTES_MAX;
        Ok(())
    })?;
    Ok(fit && (1..=TAGS_MAX).contains(&tags))
}
