//! A depot in PostgreSQL: objects as rows of one table, `depot_object`.
//!
//! Measurements on PostgreSQL 15 with a synchronous standby led to these rules:
//!
//! - **A cancelled commit reports success.** While a commit waits for its standby, `pg_cancel_backend` ends the wait with
//!   a warning and the answer "1 row inserted", though no standby has the row. The engine reads that warning and
//!   answers [`DepotError::UnknownOutcome`]. It never sends a cancel request itself.
//! - **A row that is there may be on this server alone**, after such a commit or a restart in the middle of one. So a
//!   create that finds its name locks the row, which makes the commit wait for the standby like the first one, and only
//!   then answers [`Created::AlreadyThere`]; and a [`Depot::get`] of a name whose write had an unknown outcome does the
//!   same.
//! - **Without its standby a commit hangs for good**, whatever the server's own time-outs say. Each call has a deadline
//!   of its own, closes the socket, and answers `UnknownOutcome`. The server does not notice: its process waits on. So
//!   before the next write the engine checks that its last one has ended, and sends none behind it: an agent
//!   leaves one waiting process, not one a retry.
//! - **Settings of roles and databases are not trusted**: each write raises `synchronous_commit` to `on` for itself.
//! - **Any pooler will do**: statements have no name and each is its own transaction (but for the migration); one
//!   connection for each process, and only while it is used.
//!
//! Of several servers the first that accepts writes is used. TLS with a verified certificate is the default; only this
//! machine's own addresses and Unix sockets do without it.

mod desk;
mod durability;
mod schema;
mod session;
mod socket;
mod statements;
mod url;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use uuid::Uuid;

use self::desk::SessionDesk;
use self::schema::{SchemaFault, cell};
use self::session::{PostgresFault, PostgresReply, PostgresSession, PostgresStatement, PostgresValue};
use self::url::PostgresUrl;
use super::error::DepotError;
use super::name::Name;
use super::{Created, Depot, DepotDescription, DepotSettings, Entry, OBJECT_BYTES_MAX, Version};
use crate::upstream::tls::TlsSettings;

/// Names whose last write had an unknown outcome that are remembered; with more, all count as such.
const DOUBTS_MAX: usize = 1024;
/// Objects that one statement deletes.
const DELETES_MAX: usize = 1000;

/// How often a statement is repeated that lost against a concurrent one.
const SERIALIZATIONS_MAX: usize = 10;

/// The engine. Shared between threads, which take turns.
pub struct PostgresDepot {
    /// The URL without the password.
    at: String,
    url: PostgresUrl,
    tls: Option<Arc<ClientConfig>>,
    /// The fleet's id in the table.
    fleet: String,
    /// Names our connections on the server; unique, so that ours are found among others'.
    application: String,
    timeout: Duration,
    desk: Arc<SessionDesk>,
    /// Which server is tried first: the one that accepted writes last.
    first: AtomicUsize,
    /// Whether a write ended without an answer, so that the server may still be at it.
    may_be_stuck: AtomicBool,
    /// Names whose last write had an unknown outcome.
    doubts: Mutex<HashSet<Name>>,
}

/// A call of a verb.
struct PostgresCall<'a> {
    /// The right that it needs.
    action: &'static str,
    /// The object, or the first of several.
    name: Option<&'a Name>,
    /// Whether its commit waits for the standby.
    commits: bool,
}

impl PostgresDepot {
    /// Prepares the depot of this URL; connects with the first request. Password and user may be in the variables
    /// `PGPASSWORD` and `PGUSER` instead.
    ///
    /// # Errors
    ///
    /// [`DepotError::Unusable`] for a URL that breaks a rule, or certificates that can't be read.
    pub fn open(url: &str, settings: &DepotSettings) -> Result<Self, DepotError> {
        // The URL may hold a password and can't be shown before it is understood.
        let unusable = |at: &str, reason| DepotError::Unusable { at: at.to_owned(), reason };
        let login = [settings.variable("PGUSER"), settings.variable("PGPASSWORD")];
        let url = PostgresUrl::parse(url, login, settings.is_insecure)
            .map_err(|reason| unusable("the postgres:// URL", reason))?;
        let at = url.to_string();
        let tls = match url.hosts.iter().any(|host| url.uses_tls(host)) {
            false => None,
            true => Some(tls_of(&url, settings).map_err(|reason| unusable(&at, reason))?),
        };
        let own = Uuid::now_v7().simple().to_string();
        Ok(Self {
            fleet: url.fleet_id(),
            // The end of it is random.
            application: format!("opik-offline {}", &own[20..]),
            timeout: settings.timeout,
            desk: Arc::default(),
            first: AtomicUsize::new(0),
            may_be_stuck: AtomicBool::new(false),
            doubts: Mutex::default(),
            at,
            url,
            tls,
        })
    }

    /// Runs one statement.
    fn run(
        &self,
        asked: &PostgresCall<'_>,
        statement: &PostgresStatement,
        values: &[PostgresValue<'_>],
    ) -> Result<PostgresReply, DepotError> {
        let deadline = Instant::now() + self.timeout;
        let busy = || self.unreachable("another request took all the time".to_owned());
        let mut turn = self.desk.take(deadline).ok_or_else(busy)?;
        let mut kept = turn.session.take();
        if !kept.as_mut().is_some_and(PostgresSession::is_quiet) {
            kept = None;
        }
        let mut session = kept.map_or_else(|| self.connect(deadline), Ok)?;
        if asked.commits && self.may_be_stuck.load(Ordering::Relaxed) {
            self.check_not_stuck(&mut session, deadline)?;
        }
        match run_serialized(&mut session, statement, values, deadline) {
            Ok(reply) => {
                turn.session = Some(session);
                match reply.unreplicated {
                    Some(reason) if asked.commits => Err(self.unknown(asked, reason)),
                    _ => Ok(reply),
                }
            }
            Err(fault) => {
                if matches!(&fault, PostgresFault::Refused { fatal: false, code, .. } if code != "42P01") {
                    turn.session = Some(session);
                }
                Err(self.failed(asked, fault))
            }
        }
    }

    /// Connects to the first server that accepts writes.
    fn connect(&self, deadline: Instant) -> Result<PostgresSession, DepotError> {
        let hosts = &self.url.hosts;
        let first = self.first.load(Ordering::Relaxed);
        let mut refusal = None;
        let mut reasons = Vec::new();
        for tried in 0..hosts.len() {
            let nr = (first + tried) % hosts.len();
            let host = &hosts[nr];
            // A server that swallows everything leaves the next ones their share.
            let share = deadline.saturating_duration_since(Instant::now())
                / u32::try_from(hosts.len() - tried).unwrap_or(u32::MAX);
            let until = Instant::now() + share;
            let opened = PostgresSession::open(&self.url, host, self.tls.as_ref(), &self.application, until);
            let prepared = opened.map_err(SchemaFault::Session).and_then(|mut session| {
                schema::prepare(&mut session, until)?;
                Ok(session)
            });
            match prepared {
                Ok(session) => {
                    self.first.store(nr, Ordering::Relaxed);
                    return Ok(session);
                }
                Err(fault) => match self.unusable_server(fault) {
                    DepotError::Unreachable { reason, .. } => reasons.push(format!("{host}: {reason}")),
                    error => refusal = Some(error),
                },
            }
        }
        Err(refusal.unwrap_or_else(|| self.unreachable(reasons.join("; "))))
    }

    /// Returns the error for a server that cannot be used, before any statement was sent.
    fn unusable_server(&self, fault: SchemaFault) -> DepotError {
        let at = self.at.clone();
        match fault {
            SchemaFault::Session(PostgresFault::Refused { code, reason, .. }) if code.starts_with("28") => {
                DepotError::NotAuthorised { at, action: "log in", reason }
            }
            SchemaFault::Session(PostgresFault::Refused { code, reason, .. }) if code == "3D000" => {
                DepotError::Missing { at, reason }
            }
            SchemaFault::Session(PostgresFault::Refused { code, reason, .. }) if code == "42501" => {
                let reason = format!(
                    "{reason}; let its owner run `opik-offline healthcheck --fleet` once, then {}",
                    schema::GRANTS
                );
                DepotError::NotAuthorised { at, action: "use its tables", reason }
            }
            SchemaFault::Session(fault) => {
                self.failed(&PostgresCall { action: "connect", name: None, commits: false }, fault)
            }
            SchemaFault::TooNew(reader) => DepotError::Unusable {
                at,
                reason: format!("its tables need an opik-offline that knows version {reader} of them; update this one"),
            },
        }
    }

    /// Refuses to write behind a write that still waits on the server.
    fn check_not_stuck(&self, session: &mut PostgresSession, deadline: Instant) -> Result<(), DepotError> {
        let asked = PostgresCall { action: "read pg_stat_activity", name: None, commits: false };
        let values = [PostgresValue::Text(&self.application)];
        let reply = session.run(&statements::STUCK, &values, deadline).map_err(|fault| self.failed(&asked, fault))?;
        match cell(&reply, 0).unwrap_or("0") {
            "0" => {
                self.may_be_stuck.store(false, Ordering::Relaxed);
                Ok(())
            }
            count => {
                let what = match cell(&reply, 1) {
                    Some("t") => "its synchronous standby; start that, or see synchronous_standby_names",
                    _ => "something; see pg_stat_activity",
                };
                Err(self.unreachable(format!("{count} earlier write still waits in the database for {what}")))
            }
        }
    }

    /// Returns the error for a fault after a statement was sent.
    fn failed(&self, asked: &PostgresCall<'_>, fault: PostgresFault) -> DepotError {
        let at = self.at.clone();
        match fault {
            PostgresFault::Connection { reason } | PostgresFault::Refused { reason, fatal: true, .. } => {
                if !asked.commits {
                    return self.unreachable(reason);
                }
                self.may_be_stuck.store(true, Ordering::Relaxed);
                self.unknown(asked, reason)
            }
            PostgresFault::ReadOnly => self.unreachable("it is a standby, or read-only".to_owned()),
            PostgresFault::Refused { code, reason, .. } => match code.as_str() {
                "42501" => DepotError::NotAuthorised { at, action: asked.action, reason },
                "53100" => DepotError::Full { at, reason },
                "42P01" => DepotError::Missing { at, reason },
                // Tables that somebody changed, a server that is none: trying again changes nothing.
                code if code.starts_with("42") => {
                    DepotError::Unusable { at, reason: format!("{reason} (SQLSTATE {code})") }
                }
                code => self.unreachable(format!("{reason} (SQLSTATE {code})")),
            },
        }
    }

    fn unreachable(&self, reason: String) -> DepotError {
        DepotError::Unreachable { at: self.at.clone(), reason }
    }

    fn unknown(&self, asked: &PostgresCall<'_>, reason: String) -> DepotError {
        let Some(name) = asked.name else { return self.unreachable(reason) };
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        if doubts.len() < DOUBTS_MAX {
            doubts.insert(name.clone());
        }
        DepotError::UnknownOutcome { at: self.at.clone(), name: name.clone(), reason }
    }

    fn is_doubtful(&self, name: &Name) -> bool {
        let doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        doubts.len() >= DOUBTS_MAX || doubts.contains(name)
    }

    fn settle_doubt(&self, name: &Name) {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    fn check_size(&self, name: &Name, bytes: &[u8]) -> Result<(), DepotError> {
        if bytes.len() <= OBJECT_BYTES_MAX {
            return Ok(());
        }
        let (at, name) = (self.at.clone(), name.clone());
        Err(DepotError::TooLarge { at, name, bytes: bytes.len(), max: OBJECT_BYTES_MAX })
    }

    /// Creates an object with this version.
    fn insert(&self, name: &Name, version: &str, bytes: &[u8]) -> Result<Created, DepotError> {
        self.check_size(name, bytes)?;
        let asked = PostgresCall { action: "write", name: Some(name), commits: true };
        let values = [
            PostgresValue::Text(&self.fleet),
            PostgresValue::Text(name.as_str()),
            PostgresValue::Text(version),
            PostgresValue::Bytes(bytes),
        ];
        let reply = self.run(&asked, &statements::CREATE, &values)?;
        self.settle_doubt(name);
        Ok(if reply.written == 1 { Created::New } else { Created::AlreadyThere })
    }
}

/// Builds TLS that verifies certificate and name, also if the Opik server's is not verified.
fn tls_of(url: &PostgresUrl, settings: &DepotSettings) -> Result<Arc<ClientConfig>, String> {
    let mut tls = TlsSettings { check_certificate: true, client_certificate: None, ..settings.tls.clone() };
    if url.root_certificates.is_some() {
        tls.ca_file.clone_from(&url.root_certificates);
    }
    tls.config().map(Arc::new).map_err(|error| error.to_string())
}

impl Drop for PostgresDepot {
    fn drop(&mut self) {
        self.desk.close();
    }
}

/// Runs a statement again that lost against a concurrent one and wrote nothing, which happens where the isolation of
/// transactions was raised: the second look sees what the other wrote.
fn run_serialized(
    session: &mut PostgresSession,
    statement: &PostgresStatement,
    values: &[PostgresValue<'_>],
    deadline: Instant,
) -> Result<PostgresReply, PostgresFault> {
    for _ in 0..SERIALIZATIONS_MAX {
        match session.run(statement, values, deadline) {
            Err(PostgresFault::Refused { code, fatal: false, .. }) if matches!(code.as_str(), "40001" | "40P01") => {}
            answer => return answer,
        }
    }
    session.run(statement, values, deadline)
}

/// Returns a version that no other write has: an object that was deleted and created anew must not look unchanged.
fn new_version() -> String {
    let random = Uuid::now_v7().as_u64_pair().1;
    // As a positive bigint.
    (random >> 1).to_string()
}

impl Depot for PostgresDepot {
    fn create(&self, name: &Name, bytes: &[u8]) -> Result<Created, DepotError> {
        self.insert(name, &new_version(), bytes)
    }

    fn get(&self, name: &Name) -> Result<Option<(Vec<u8>, Version)>, DepotError> {
        let is_doubtful = self.is_doubtful(name);
        let asked = PostgresCall { action: "read", name: Some(name), commits: is_doubtful };
        let statement = if is_doubtful { &statements::GET_REPLICATED } else { &statements::GET };
        let values = [PostgresValue::Text(&self.fleet), PostgresValue::Text(name.as_str())];
        let reply = match self.run(&asked, statement, &values) {
            // A repeat of a read is always safe.
            Err(DepotError::UnknownOutcome { at, reason, .. }) => return Err(DepotError::Unreachable { at, reason }),
            reply => reply?,
        };
        if is_doubtful {
            self.settle_doubt(name);
        }
        let Some(row) = reply.rows.into_iter().next() else { return Ok(None) };
        let mut columns = row.into_iter().flatten();
        let version = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(Version::new);
        match (columns.next(), columns.next().as_deref().and_then(version)) {
            (Some(bytes), Some(version)) => Ok(Some((bytes.into(), version))),
            _ => Err(self.unreachable("its answer has no bytes or no version".to_owned())),
        }
    }

    fn swap(&self, name: &Name, expected: Option<&Version>, bytes: &[u8]) -> Result<Version, DepotError> {
        let version = new_version();
        let lost = || DepotError::Lost { at: self.at.clone(), name: name.clone() };
        let Some(expected) = expected else {
            return match self.insert(name, &version, bytes)? {
                Created::New => Ok(Version::new(version)),
                Created::AlreadyThere => Err(lost()),
            };
        };
        self.check_size(name, bytes)?;
        // The version of a row is always a bigint.
        if expected.as_str().parse::<i64>().is_err() {
            return Err(lost());
        }
        let asked = PostgresCall { action: "write", name: Some(name), commits: true };
        let values = [
            PostgresValue::Text(&self.fleet),
            PostgresValue::Text(name.as_str()),
            PostgresValue::Text(&version),
            PostgresValue::Bytes(bytes),
            PostgresValue::Text(expected.as_str()),
        ];
        let reply = self.run(&asked, &statements::SWAP, &values)?;
        if reply.written != 1 {
            return Err(lost());
        }
        self.settle_doubt(name);
        Ok(Version::new(version))
    }

    fn list(&self, under: &Name, after: Option<&Name>, limit: usize) -> Result<Vec<Entry>, DepotError> {
        let folder = format!("{under}/");
        let mut from = after.map(Name::as_str).filter(|after| *after > folder.as_str()).unwrap_or(&folder).to_owned();
        // The character behind the slash.
        let until = format!("{under}0");
        let asked = PostgresCall { action: "list", name: Some(under), commits: false };
        let text = |row: &[Option<bytes::Bytes>], column: usize| {
            std::str::from_utf8(row.get(column)?.as_deref()?).ok().map(ToOwned::to_owned)
        };
        let entry = |row: &Vec<Option<bytes::Bytes>>| {
            let name = Name::new(&text(row, 0)?).ok()?;
            Some(Entry { name, bytes: text(row, 1)?.parse().ok()?, version: Version::new(text(row, 2)?) })
        };
        let mut entries: Vec<Entry> = Vec::new();
        // Skips rows with invalid names: another program inserted them.
        loop {
            let missing = limit.saturating_sub(entries.len());
            let most = i64::try_from(missing).unwrap_or(i64::MAX).to_string();
            let values = [&self.fleet, &from, &until, &most].map(|value| PostgresValue::Text(value));
            let reply = self.run(&asked, &statements::LIST, &values)?;
            entries.extend(reply.rows.iter().filter_map(entry));
            if reply.rows.len() < missing || entries.len() >= limit {
                return Ok(entries);
            }
            from = reply.rows.last().and_then(|row| text(row, 0)).ok_or_else(|| DepotError::Unusable {
                at: self.at.clone(),
                reason: "another program's row of its table has a name with invalid UTF-8: delete that row".to_owned(),
            })?;
        }
    }

    fn delete(&self, names: &[Name]) -> Result<(), DepotError> {
        for part in names.chunks(DELETES_MAX) {
            // Names need no escaping: see `Name`.
            let array: Vec<String> = part.iter().map(|name| format!("\"{name}\"")).collect();
            let array = format!("{{{}}}", array.join(","));
            let asked = PostgresCall { action: "delete", name: part.first(), commits: true };
            let values = [PostgresValue::Text(&self.fleet), PostgresValue::Text(&array)];
            self.run(&asked, &statements::DELETE, &values)?;
            part.iter().for_each(|name| self.settle_doubt(name));
        }
        Ok(())
    }

    fn weaknesses(&self) -> Result<Vec<String>, DepotError> {
        let asked = PostgresCall { action: "read its settings", name: None, commits: false };
        let reply = self.run(&asked, &statements::DURABILITY, &[])?;
        let mut found = durability::read(&reply).weaknesses();
        if self.url.hosts.iter().any(|host| !host.is_local() && !self.url.uses_tls(host)) {
            found.push("the connection is not encrypted (--fleet-insecure); heads and names can be read".to_owned());
        }
        Ok(found)
    }

    fn describe(&self) -> DepotDescription {
        let host = self.url.hosts.first().and_then(|host| host.name()).map(str::to_owned);
        DepotDescription { url: self.at.clone(), engine: "postgres", host }
    }
}
