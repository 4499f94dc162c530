//! Orders: what a person decided about a fleet, who that was, and when. Created once and never changed, for the audit.

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use super::names::ObjectName;
use super::object_names::depot_name;
use crate::depot::{Depot, DepotError};
use crate::printable;
use crate::store::now_ms;

/// The format that this version writes.
pub const FORMAT: u16 = 1;
/// The longest name of a person, in characters; longer ones are cut.
const NAME_CHARS_MAX: usize = 64;

/// The person at whose command something is done, as far as their machine knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Person {
    /// The name that their environment has.
    pub user: Option<String>,
    /// Their number on their machine.
    pub uid: u32,
    /// Their machine.
    pub host: String,
}

impl fmt::Display for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, uid, host } = self;
        match user.as_ref().filter(|user| !user.is_empty()) {
            Some(user) => {
                let short: String = user.chars().take(NAME_CHARS_MAX).collect();
                write!(f, "{} (uid {uid} on {host})", printable::line(&short))
            }
            None => write!(f, "uid {uid} on {host}"),
        }
    }
}

/// A decision, and what belongs to it.
#[derive(Debug)]
pub struct FleetOrder<'a, T> {
    /// Its name among the orders; tells it apart from every other.
    pub id: Uuid,
    /// Its kind: `purge`, `pace`, `hold`, `resume`.
    pub order: &'static str,
    /// Who decided.
    pub by: &'a Person,
    /// The rest.
    pub what: T,
}

#[derive(Serialize)]
struct OrderFields<'a, T> {
    format: u16,
    order: &'static str,
    by: String,
    at_ms: i64,
    #[serde(flatten)]
    what: &'a T,
}

impl<T: Serialize> FleetOrder<'_, T> {
    /// Leaves it in the depot. It is idempotent, so it may be retried.
    ///
    /// # Errors
    ///
    /// If the depot can't be written to: then what it orders must not be done.
    pub fn leave(&self, depot: &dyn Depot) -> Result<(), DepotError> {
        let Self { id, order, by, what } = self;
        let fields = OrderFields { format: FORMAT, order, by: by.to_string(), at_ms: now_ms(), what };
        let name = depot_name(&ObjectName::Order(*id))?;
        let bytes = serde_json::to_vec_pretty(&fields).map_err(|error| {
            let at = depot.describe().url;
            DepotError::Unusable { at, reason: format!("the order can't be written down: {error}") }
        })?;
        depot.create(&name, &bytes).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::model::ModelDepot;

    #[derive(Serialize)]
    struct What {
        messages: u64,
    }

    #[test]
    fn an_order_says_who_decided_what() {
        let depot = ModelDepot::new();
        let by = Person { user: Some("ana\u{1b}[31m".to_owned()), uid: 1000, host: "host-a".to_owned() };
        let order = FleetOrder { id: Uuid::now_v7(), order: "purge", by: &by, what: What { messages: 7 } };
        order.leave(&depot).expect("it answers");
        order.leave(&depot).expect("a repeat is fine");
        let name = depot_name(&ObjectName::Order(order.id)).expect("a name");
        let (bytes, _) = depot.get(&name).expect("it answers").expect("it is there");
        let read: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!((&read["format"], &read["order"], &read["messages"]), (&1.into(), &"purge".into(), &7.into()));
        let by = read["by"].as_str().expect("a text");
        assert!(by.starts_with("ana") && by.ends_with("(uid 1000 on host-a)") && !by.contains('\u{1b}'), "{by}");
        assert!(read["at_ms"].as_i64().is_some_and(|at_ms| at_ms > 0));
        let nameless = Person { user: None, uid: 0, host: "host-b".to_owned() };
        assert_eq!(nameless.to_string(), "uid 0 on host-b");
    }
}
