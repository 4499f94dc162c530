//! `replay --readdress` and `replay --rekey`: the user gives stored messages another server or credential.
//!
//! Both change where acknowledged data goes and with which credential, so the moves are shown first and need a yes.

use clap::Args;
use serde::Serialize;

use super::selection::server;
use super::{Exit, Failure, confirm, translate};
use crate::config::Config;
use crate::figures::count;
use crate::message::Server;
use crate::printable::name;
use crate::replay::session::reassignment::{LaneMove, Reassignment};
use crate::terminal::render::Renderer;
use crate::terminal::{Shown, is_interactive};

/// Selects lanes that get another destination.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Server moved, key changed")]
pub(super) struct ReassignArgs {
    /// Deliver messages for this server to --upstream instead
    ///
    /// For a server that moved: all messages stored for URL, including rejected ones, are reassigned to the server of
    /// --upstream (or OPIK_URL_OVERRIDE, or the configuration file). The moves are shown first and need confirmation,
    /// because the messages are sent there with the API keys of their clients; --rekey replaces the keys, too.
    #[arg(long, value_name = "URL", value_parser = server, hide_short_help = true)]
    pub readdress: Option<Server>,

    /// Use the configured key for lanes whose key the server rejects
    ///
    /// For a key that was rotated or has expired while messages wait: lanes of the configured server that were answered
    /// with 401 or 403 continue with the key of OPIK_API_KEY or of the configuration file. --workspace and --lane
    /// narrow the selection. The moves are shown first and need confirmation.
    #[arg(long, hide_short_help = true)]
    pub rekey: bool,

    /// With --rekey or --readdress: only this lane, by its number in --dry-run
    ///
    /// May be given more than once. A lane named here gets the configured key even if the server accepts its current
    /// key.
    #[arg(long, value_name = "LANE", hide_short_help = true)]
    pub lane: Vec<i64>,

    /// With --rekey or --readdress: don't ask for confirmation
    #[arg(short, long, hide_short_help = true)]
    pub yes: bool,
}

impl ReassignArgs {
    /// Returns whether lanes get another destination.
    pub(super) fn is_asked(&self) -> bool {
        self.readdress.is_some() || self.rekey
    }

    /// Returns which lanes get which destination.
    pub(super) fn reassignment(&self, config: &Config, workspaces: &[String]) -> Reassignment {
        Reassignment {
            own: translate::lane(config),
            is_server_configured: config.upstream.is_set(),
            readdress: self.readdress.clone(),
            rekey: self.rekey,
            lanes: self.lane.clone(),
            workspaces: workspaces.to_vec(),
        }
    }
}

/// A lane that gets another destination, as reported.
#[derive(Serialize)]
pub(super) struct Reassigned {
    lane: i64,
    server: Option<String>,
    workspace: String,
    /// At most the first four characters.
    key: Option<String>,
    to_server: Option<String>,
    to_key: Option<String>,
    waiting: u64,
    rejected: u64,
    /// Why the lane is held, if it is.
    held: Option<String>,
}

impl From<LaneMove> for Reassigned {
    fn from(LaneMove { from, to }: LaneMove) -> Self {
        let lane = from.lane;
        Self {
            lane: from.id.0,
            server: lane.server.as_ref().map(ToString::to_string),
            workspace: lane.workspace_name().to_owned(),
            key: lane.credential.as_ref().map(ToString::to_string),
            to_server: to.server.as_ref().map(ToString::to_string),
            to_key: to.credential.as_ref().map(ToString::to_string),
            waiting: from.waiting,
            rejected: from.rejected,
            held: from.hold.map(|hold| hold.reason),
        }
    }
}

/// Returns a table of the moves.
pub(super) fn text(renderer: &Renderer, moves: &[Reassigned]) -> Shown {
    let readdressed = moves.iter().any(|it| it.server != it.to_server);
    let rekeyed = moves.iter().any(|it| it.key != it.to_key);
    let mut columns = vec![">lane", "…workspace", ">waiting", ">rejected"];
    if readdressed {
        columns.extend(["server", "new server"]);
    }
    columns.push("key");
    if rekeyed {
        columns.push("new key");
    }
    let mut table = renderer.table(&columns);
    let none = || "none".to_owned();
    for it in moves {
        let mut row = vec![it.lane.to_string(), it.workspace.clone(), it.waiting.to_string(), it.rejected.to_string()];
        if readdressed {
            row.extend([it.server.clone().unwrap_or_else(none), it.to_server.clone().unwrap_or_else(none)]);
        }
        row.push(it.key.clone().unwrap_or_else(none));
        if rekeyed {
            row.push(it.to_key.clone().unwrap_or_else(none));
        }
        table.add_row(row);
    }
    table.shown()
}

/// Returns how many messages move, with the noun.
pub(super) fn sum(moves: &[Reassigned]) -> String {
    count(moves.iter().map(|it| it.waiting + it.rejected).sum(), "message")
}

/// Asks for confirmation on a terminal; fails unless the answer is yes.
pub(super) fn ask(moves: &[LaneMove]) -> Result<(), Failure> {
    let messages = count(moves.iter().map(LaneMove::messages).sum(), "message");
    if !is_interactive() {
        let message = format!("{messages} would get another destination, and there is no terminal to ask on");
        return Err(Failure::new(Exit::Usage, message, Some("check with --dry-run, then add --yes")));
    }
    let mut question = Shown::default();
    for it in moves {
        let key = it.to.credential.as_ref().map_or("no key".to_owned(), ToString::to_string);
        let server = it.to.server.as_ref().map_or("no server".to_owned(), ToString::to_string);
        question.add_line(&format!(
            "lane {} (workspace {}): {} to {server} with key {key}",
            it.from.id.0,
            name(it.from.lane.workspace_name()),
            count(it.messages(), "message"),
        ));
    }
    question.end_line();
    question.add(&super::question(&format!("move {messages} to this destination? [y/N] ")));
    confirm(&question, Failure::new(Exit::Failure, "nothing was changed", Some("answer y to move them")))
}
