//! Weaknesses of a server's durability, derived from its settings, in sentences for people.

use std::time::Duration;

use super::schema::cell;
use super::session::PostgresReply;

/// A transaction that is open for longer keeps vacuum from what was deleted since.
const SNAPSHOT_MAX: Duration = Duration::from_secs(3600);

/// The settings and standbys of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PostgresDurability {
    pub(super) standby_names: String,
    pub(super) fsync: bool,
    pub(super) full_page_writes: bool,
    /// Connected standbys, synchronous or not.
    pub(super) standbys: u64,
    /// Those that a commit waits for.
    pub(super) synchronous: u64,
    /// Those whose state this role may not see.
    pub(super) hidden: u64,
    /// The age of the oldest transaction that holds a snapshot, among those that this role may see.
    pub(super) snapshot: Duration,
}

/// Reads the answer of [`super::statements::DURABILITY`].
pub(super) fn read(reply: &PostgresReply) -> PostgresDurability {
    let text = |column| cell(reply, column).unwrap_or_default();
    let number = |column| text(column).parse().unwrap_or(0);
    PostgresDurability {
        standby_names: text(0).to_owned(),
        fsync: text(1) == "on",
        full_page_writes: text(2) == "on",
        standbys: number(3),
        synchronous: number(4),
        hidden: number(5),
        snapshot: Duration::from_secs(number(6)),
    }
}

impl PostgresDurability {
    /// Returns a sentence for each weakness, none for a server that keeps what it acknowledged.
    pub(super) fn weaknesses(&self) -> Vec<String> {
        let mut found = Vec::new();
        if !self.fsync || !self.full_page_writes {
            found.push(
                "fsync or full_page_writes is off: a power cut can lose or corrupt what it has; set both to on"
                    .to_owned(),
            );
        }
        match (self.standby_names.is_empty(), self.standbys, self.synchronous) {
            (true, 0, _) => found.push(
                "one server: what it has is lost with it; give it a standby and name it in synchronous_standby_names"
                    .to_owned(),
            ),
            (true, standbys, _) => found.push(format!(
                "{standbys} standbys follow, and no write waits for them: a failover loses what they don't have yet; \
                 name them in synchronous_standby_names"
            )),
            (false, _, 0) if self.hidden == 0 => found.push(
                "no synchronous standby is connected: every write waits until one is, and bundles stay with their \
                 agents; start the standby, or see pg_stat_replication"
                    .to_owned(),
            ),
            (false, _, 0) => found.push(
                "it can't be seen whether a synchronous standby is connected; GRANT pg_monitor to this role to see it"
                    .to_owned(),
            ),
            (false, _, _) => {}
        }
        if self.snapshot > SNAPSHOT_MAX {
            found.push(format!(
                "a transaction is open for {} minutes: deleted bundles take room until it ends; see pg_stat_activity",
                self.snapshot.as_secs() / 60
            ));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> PostgresDurability {
        PostgresDurability {
            standby_names: "ANY 1 (a, b)".to_owned(),
            fsync: true,
            full_page_writes: true,
            standbys: 2,
            synchronous: 2,
            ..PostgresDurability::default()
        }
    }

    #[track_caller]
    fn assert_warns(server: &PostgresDurability, of: &str) {
        let found = server.weaknesses();
        assert!(found.len() == 1 && found[0].contains(of), "no warning about {of}: {found:?}");
    }

    #[test]
    fn a_server_that_can_lose_what_it_acknowledged_is_named_as_such() {
        assert!(sound().weaknesses().is_empty());
        let alone = PostgresDurability { standby_names: String::new(), standbys: 0, synchronous: 0, ..sound() };
        assert_warns(&alone, "one server: what it has is lost with it");
        assert_warns(&PostgresDurability { standbys: 1, ..alone }, "no write waits for them");
        let standby_away = PostgresDurability { standbys: 0, synchronous: 0, ..sound() };
        assert_warns(&standby_away, "no synchronous standby is connected");
        assert_warns(&PostgresDurability { hidden: 1, synchronous: 0, ..sound() }, "can't be seen");
        assert_warns(&PostgresDurability { fsync: false, ..sound() }, "power cut");
        assert_warns(&PostgresDurability { full_page_writes: false, ..sound() }, "power cut");
        assert_warns(&PostgresDurability { snapshot: Duration::from_secs(7200), ..sound() }, "open for 120 minutes");
    }
}
