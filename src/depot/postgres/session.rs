//! One session with a server: login, and one statement at a time.
//!
//! Statements go by the extended protocol and have no name, all messages of one in one flight: they need no state on
//! the server from one transaction to the next, so a pooler may hand each transaction to another connection.
//! Encoding and `SCRAM` are those of the crate `postgres-protocol`.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{DataRowBody, ErrorFields, Header, Message};
use postgres_protocol::message::frontend;
use postgres_protocol::{IsNull, Oid};
use rustls::ClientConfig;

use super::socket::PostgresSocket;
use super::url::{PostgresHost, PostgresUrl};

/// The longest message that is read from a server, in bytes: an object of the largest size and its frame.
const MESSAGE_BYTES_MAX: usize = crate::depot::OBJECT_BYTES_MAX + 64 * 1024;
/// The longest text of an error that is shown, in characters.
const REASON_CHARS_MAX: usize = 300;

// Types of parameters, by their fixed numbers (`pg_type`).
pub(super) const BYTEA: Oid = 17;
pub(super) const INT8: Oid = 20;
pub(super) const TEXT: Oid = 25;
pub(super) const TEXT_ARRAY: Oid = 1009;
pub(super) const UUID: Oid = 2950;

/// A statement, and how its parameters and columns are typed.
pub(super) struct PostgresStatement {
    pub(super) sql: &'static str,
    pub(super) types: &'static [Oid],
    /// Whether its first column is `bytea` and comes as it is; all others come as text.
    pub(super) first_is_bytes: bool,
}

/// A value of a parameter.
#[derive(Clone, Copy)]
pub(super) enum PostgresValue<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
}

/// The answer to a statement.
#[derive(Default)]
pub(super) struct PostgresReply {
    pub(super) rows: Vec<Vec<Option<Bytes>>>,
    /// Rows that it wrote.
    pub(super) written: u64,
    /// The server's warning that it stopped waiting for its standby: committed here, and perhaps nowhere else.
    pub(super) unreplicated: Option<String>,
}

/// Why a session or a statement failed.
#[derive(Debug)]
pub(super) enum PostgresFault {
    /// The connection failed, or no answer came in time. The session is unusable.
    Connection { reason: String },
    /// The server refused. After a `fatal` error the session is unusable.
    Refused { code: String, reason: String, fatal: bool },
    /// The server is a standby, or read-only.
    ReadOnly,
}

impl From<io::Error> for PostgresFault {
    fn from(error: io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".to_owned(),
            io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
            _ => error.to_string(),
        };
        Self::Connection { reason }
    }
}

/// A session that is logged in and waits for a statement.
pub(super) struct PostgresSession {
    socket: PostgresSocket,
    received: BytesMut,
}

impl PostgresSession {
    /// Connects and logs in.
    pub(super) fn open(
        url: &PostgresUrl,
        host: &PostgresHost,
        tls: Option<&Arc<ClientConfig>>,
        application: &str,
        deadline: Instant,
    ) -> Result<Self, PostgresFault> {
        let tls = tls.filter(|_| url.uses_tls(host));
        let socket = PostgresSocket::connect(host, tls, deadline)?;
        let mut session = Self { socket, received: BytesMut::new() };
        // Only parameters that every pooler knows.
        let parameters = [
            ("user", url.user.as_str()),
            ("database", url.database.as_str()),
            ("client_encoding", "UTF8"),
            ("application_name", application),
        ];
        let mut startup = BytesMut::new();
        frontend::startup_message(parameters, &mut startup)?;
        session.socket.send(&startup, deadline)?;
        session.log_in(url, tls.is_some() || host.is_local(), deadline)?;
        Ok(session)
    }

    /// Answers the server's questions until it is ready. `private`: nobody else can read what is sent.
    fn log_in(&mut self, url: &PostgresUrl, private: bool, deadline: Instant) -> Result<(), PostgresFault> {
        let mut scram: Option<ScramSha256> = None;
        let password =
            || url.password.as_ref().ok_or_else(|| refused_login("it asks for a password, the URL has none"));
        loop {
            let mut answer = BytesMut::new();
            match self.next(deadline)? {
                Message::AuthenticationSasl(body) => {
                    let offers = body.mechanisms().any(|name| Ok(name == SCRAM_SHA_256))?;
                    if !offers {
                        return Err(refused_login("it offers no SCRAM-SHA-256"));
                    }
                    let begun = ScramSha256::new(password()?.as_bytes(), ChannelBinding::unsupported());
                    frontend::sasl_initial_response(SCRAM_SHA_256, begun.message(), &mut answer)?;
                    scram = Some(begun);
                }
                Message::AuthenticationSaslContinue(body) => {
                    let scram = scram.as_mut().ok_or_else(out_of_order)?;
                    scram.update(body.data())?;
                    frontend::sasl_response(scram.message(), &mut answer)?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    scram.take().ok_or_else(out_of_order)?.finish(body.data())?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(url.user.as_bytes(), password()?.as_bytes(), body.salt());
                    frontend::password_message(hash.as_bytes(), &mut answer)?;
                }
                Message::AuthenticationCleartextPassword if private => {
                    frontend::password_message(password()?.as_bytes(), &mut answer)?;
                }
                Message::AuthenticationCleartextPassword => {
                    return Err(refused_login("it asks for the password in plain text over a network"));
                }
                // A server that skips the end of SCRAM has not shown that it knows the password.
                Message::AuthenticationOk if scram.is_some() => return Err(out_of_order().into()),
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ErrorResponse(body) => return Err(Notice::read(body.fields())?.fault()),
                Message::AuthenticationOk
                | Message::BackendKeyData(_)
                | Message::ParameterStatus(_)
                | Message::NoticeResponse(_) => {}
                _ => return Err(refused_login("it asks for a login that opik-offline does not know")),
            }
            if !answer.is_empty() {
                self.socket.send(&answer, deadline)?;
            }
        }
    }

    /// Runs one statement in a transaction of its own.
    ///
    /// # Errors
    ///
    /// After [`PostgresFault::Connection`] and a fatal refusal it is unknown what the statement did.
    pub(super) fn run(
        &mut self,
        statement: &PostgresStatement,
        values: &[PostgresValue<'_>],
        deadline: Instant,
    ) -> Result<PostgresReply, PostgresFault> {
        let mut request = BytesMut::new();
        frontend::parse("", statement.sql, statement.types.iter().copied(), &mut request)?;
        let formats = values.iter().map(|value| i16::from(matches!(value, PostgresValue::Bytes(_))));
        let write = |value: &PostgresValue<'_>, into: &mut BytesMut| {
            into.extend_from_slice(match value {
                PostgresValue::Text(text) => text.as_bytes(),
                PostgresValue::Bytes(bytes) => bytes,
            });
            Ok(IsNull::No)
        };
        // One code holds for all columns.
        let columns: &[i16] = if statement.first_is_bytes { &[1, 0] } else { &[0] };
        frontend::bind("", "", formats, values, write, columns.iter().copied(), &mut request).map_err(|error| {
            match error {
                frontend::BindError::Conversion(error) => io::Error::other(error.to_string()),
                frontend::BindError::Serialization(error) => error,
            }
        })?;
        frontend::execute("", 0, &mut request)?;
        frontend::sync(&mut request);
        self.exchange(&request, deadline)
    }

    /// Runs statements without parameters, which may begin or end a transaction.
    pub(super) fn run_plain(&mut self, sql: &str, deadline: Instant) -> Result<PostgresReply, PostgresFault> {
        let mut request = BytesMut::new();
        frontend::query(sql, &mut request)?;
        self.exchange(&request, deadline)
    }

    fn exchange(&mut self, request: &[u8], deadline: Instant) -> Result<PostgresReply, PostgresFault> {
        self.socket.send(request, deadline)?;
        let mut reply = PostgresReply::default();
        let mut failure = None;
        loop {
            match self.next(deadline)? {
                Message::DataRow(row) => reply.rows.push(columns_of(&row)?),
                Message::CommandComplete(body) => {
                    let written = body.tag()?.rsplit(' ').next().and_then(|count| count.parse().ok());
                    reply.written = written.unwrap_or(0);
                }
                Message::NoticeResponse(body) => {
                    let notice = Notice::read(body.fields())?;
                    if notice.is_unreplicated() {
                        reply.unreplicated = Some(notice.message);
                    }
                }
                Message::ErrorResponse(body) => {
                    let fault = Notice::read(body.fields())?.fault();
                    if matches!(fault, PostgresFault::Refused { fatal: true, .. }) {
                        return Err(fault);
                    }
                    failure = Some(fault);
                }
                Message::ReadyForQuery(_) => return failure.map_or(Ok(reply), Err),
                Message::ParseComplete
                | Message::BindComplete
                | Message::NoData
                | Message::EmptyQueryResponse
                | Message::RowDescription(_)
                | Message::ParameterStatus(_)
                | Message::NotificationResponse(_) => {}
                _ => return Err(out_of_order().into()),
            }
        }
    }

    /// Returns the next message.
    fn next(&mut self, deadline: Instant) -> io::Result<Message> {
        loop {
            let length = Header::parse(&self.received)?.map_or(0, Header::len);
            if usize::try_from(length).map_or(true, |length| length > MESSAGE_BYTES_MAX) {
                return Err(io::Error::other("it sends a message that is too long"));
            }
            if let Some(message) = Message::parse(&mut self.received)? {
                return Ok(message);
            }
            self.socket.receive(&mut self.received, deadline)?;
        }
    }

    /// Returns whether the session can be used again after a pause.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.received.is_empty() && self.socket.is_quiet()
    }

    /// Ends the session properly, which saves the server a line in its log.
    pub(super) fn close(mut self, deadline: Instant) {
        let mut farewell = BytesMut::new();
        frontend::terminate(&mut farewell);
        // The connection is closed either way.
        let _ = self.socket.send(&farewell, deadline);
    }
}

fn columns_of(row: &DataRowBody) -> io::Result<Vec<Option<Bytes>>> {
    let bytes = row.buffer_bytes();
    row.ranges().map(|range| Ok(range.map(|range| bytes.slice(range)))).collect()
}

fn refused_login(reason: &str) -> PostgresFault {
    PostgresFault::Refused { code: "28000".to_owned(), reason: reason.to_owned(), fatal: true }
}

fn out_of_order() -> io::Error {
    io::Error::other("its answer is not PostgreSQL's")
}

/// An error or a notice of the server.
struct Notice {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, ...: not translated.
    severity: String,
    code: String,
    message: String,
    /// The function in the server's source that said it.
    routine: String,
}

impl Notice {
    fn read(mut fields: ErrorFields<'_>) -> io::Result<Self> {
        let mut notice =
            Self { severity: String::new(), code: String::new(), message: String::new(), routine: String::new() };
        while let Some(field) = fields.next()? {
            let text = String::from_utf8_lossy(field.value_bytes());
            let text = || text.chars().take(REASON_CHARS_MAX).collect::<String>();
            match field.type_() {
                b'V' => notice.severity = text(),
                // Translated, and alone in the answers of some poolers.
                b'S' if notice.severity.is_empty() => notice.severity = text(),
                b'C' => notice.code = text(),
                b'M' => notice.message = text(),
                b'R' => notice.routine = text(),
                _ => {}
            }
        }
        Ok(notice)
    }

    /// Returns whether a commit stopped waiting for the standby, which is reported as a success. The text may be
    /// translated, the routine is not.
    fn is_unreplicated(&self) -> bool {
        self.routine == "SyncRepWaitForLSN" || self.message.contains("synchronous replication")
    }

    fn fault(self) -> PostgresFault {
        match self.code.as_str() {
            // The server became read-only under an open session: a failover.
            "25006" => PostgresFault::ReadOnly,
            _ => PostgresFault::Refused { fatal: self.severity != "ERROR", reason: self.message, code: self.code },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(routine: &str, message: &str) -> Notice {
        Notice {
            severity: "WARNING".to_owned(),
            code: "01000".to_owned(),
            message: message.to_owned(),
            routine: routine.to_owned(),
        }
    }

    #[test]
    fn a_commit_that_gave_up_on_its_standby_is_recognised_in_any_language() {
        let english = "canceling wait for synchronous replication due to user request";
        assert!(notice("", english).is_unreplicated());
        let german = "storniere Warten auf synchrone Replikation wegen Benutzeraufforderung";
        assert!(
            notice("SyncRepWaitForLSN", german).is_unreplicated(),
            "a bundle that only a lost server had would count as shipped"
        );
        assert!(!notice("exec_simple_query", "there is already a transaction in progress").is_unreplicated());
    }

    #[test]
    fn only_an_error_of_the_statement_leaves_the_session_usable() {
        for (severity, fatal) in [("ERROR", false), ("FATAL", true), ("PANIC", true), ("", true)] {
            let mut said = notice("", "x");
            severity.clone_into(&mut said.severity);
            assert!(
                matches!(said.fault(), PostgresFault::Refused { fatal: found, .. } if found == fatal),
                "{severity}"
            );
        }
    }
}
