//! `replay --readdress` and `replay --rekey`: a person gives what is stored another server or another credential.
//!
//! Both change where acknowledged data goes and under which key, so they are shown first and never a default. What is
//! moved keeps its order; the lease keeps everybody else from sending it meanwhile.

use std::io::{self, BufRead};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::selection::server;
use super::{Exit, Failure, translate};
use crate::config::Config;
use crate::figures::count;
use crate::message::{Lane, Server};
use crate::printable::name;
use crate::replay::reassign::move_lanes;
use crate::shutdown::Shutdown;
use crate::store::{LaneId, LaneListed, Owner, Store, StoreError, now_ms};
use crate::terminal::progress::Progress;
use crate::terminal::render::Renderer;
use crate::terminal::{Shown, Stream, is_interactive};

/// Which lanes get another destination.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Server moved, key changed")]
pub struct ReassignArgs {
    /// Deliver what was accepted for this server to --upstream instead
    ///
    /// For a server that moved: everything that is stored for URL, rejected messages included, belongs to the server that
    /// --upstream (or OPIK_URL_OVERRIDE, or the configuration file) names from now on. It is shown first and needs a yes,
    /// because the messages go there with the API keys of their clients; --rekey replaces those, too.
    #[arg(long, value_name = "URL", value_parser = server, hide_short_help = true)]
    pub readdress: Option<Server>,

    /// Give lanes whose key the server refuses the configured key
    ///
    /// For a key that was rotated or has expired while messages wait: the lanes of the configured server that were answered
    /// with 401 or 403 go on with the key of OPIK_API_KEY or of the configuration file. --workspace and --lane select among
    /// them. It is shown first and needs a yes.
    #[arg(long, hide_short_help = true)]
    pub rekey: bool,

    /// With --rekey or --readdress: only this lane, by the number that a --dry-run of it shows
    ///
    /// May be given more than once. A lane that is named needs not be refused to get another key.
    #[arg(long, value_name = "LANE", hide_short_help = true)]
    pub lane: Vec<i64>,

    /// With --rekey or --readdress: do not ask
    #[arg(short, long, hide_short_help = true)]
    pub yes: bool,
}

impl ReassignArgs {
    /// Returns whether anything is to be moved.
    pub fn is_asked(&self) -> bool {
        self.readdress.is_some() || self.rekey
    }
}

/// A lane that gets another destination, for people.
#[derive(Serialize)]
pub struct Reassigned {
    lane: i64,
    server: Option<String>,
    workspace: String,
    /// At most its first four characters.
    key: Option<String>,
    to_server: Option<String>,
    to_key: Option<String>,
    waiting: u64,
    rejected: u64,
    /// Why it is held, if it is.
    held: Option<String>,
}

/// A lane, and where its messages are to go.
struct Move {
    from: LaneId,
    to: Lane,
    shown: Reassigned,
}

/// How long the lease of another process is waited for.
const LEASE_PATIENCE: Duration = Duration::from_secs(60);
const LEASE_LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Moves what was asked for after it was shown, and returns it. Shows only with `dry_run`.
pub fn reassign(
    store: &dyn Store,
    config: &Config,
    args: &ReassignArgs,
    workspaces: &[String],
    dry_run: bool,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<Vec<Reassigned>, Failure> {
    let moves = plan(&store.lane_list(now_ms())?, config, args, workspaces)?;
    if moves.is_empty() {
        return Err(nothing(store, args)?);
    }
    if !dry_run {
        if !args.yes {
            ask(&moves)?;
        }
        apply(store, &moves, progress, shutdown)?;
    }
    Ok(moves.into_iter().map(|it| it.shown).collect())
}

/// Decides which lanes move where.
fn plan(
    lanes: &[LaneListed],
    config: &Config,
    args: &ReassignArgs,
    workspaces: &[String],
) -> Result<Vec<Move>, Failure> {
    let own = translate::server(config);
    if !config.upstream.is_set() {
        let hint = "name it with --upstream, OPIK_URL_OVERRIDE or in the configuration file";
        return Err(Failure::new(Exit::Usage, "no server is configured that the messages could go to", Some(hint)));
    }
    let key = translate::lane(config).credential;
    if args.rekey && key.is_none() {
        let hint = "set OPIK_API_KEY, or api_key in ~/.opik.config; it is never given on the command line";
        return Err(Failure::new(Exit::Usage, "no API key is configured that the lanes could get", Some(hint)));
    }
    let mut moves = Vec::new();
    for listed in lanes {
        let lane = &listed.lane;
        let is_named = args.lane.contains(&listed.id.0);
        let is_refused = listed.hold.as_ref().is_some_and(crate::store::Hold::is_credential_refused);
        let is_meant = match &args.readdress {
            Some(old) => lane.server.as_ref() == Some(old),
            None => lane.server.as_ref() == Some(&own) && (is_refused || is_named),
        };
        let is_selected = (args.lane.is_empty() || is_named)
            && (workspaces.is_empty() || workspaces.iter().any(|name| name == lane.workspace_name()));
        let to = Lane {
            server: Some(own.clone()),
            workspace: lane.workspace.clone(),
            credential: if args.rekey { key.clone() } else { lane.credential.clone() },
        };
        if is_meant && is_selected && to != *lane {
            let shown = Reassigned {
                lane: listed.id.0,
                server: lane.server.as_ref().map(ToString::to_string),
                workspace: lane.workspace_name().to_owned(),
                key: lane.credential.as_ref().map(ToString::to_string),
                to_server: to.server.as_ref().map(ToString::to_string),
                to_key: to.credential.as_ref().map(ToString::to_string),
                waiting: listed.waiting,
                rejected: listed.rejected,
                held: listed.hold.as_ref().map(|hold| hold.reason.clone()),
            };
            moves.push(Move { from: listed.id, to, shown });
        }
    }
    Ok(moves)
}

/// Says why there is nothing to move.
fn nothing(store: &dyn Store, args: &ReassignArgs) -> Result<Failure, StoreError> {
    let lanes = store.lane_list(now_ms())?;
    let mut servers: Vec<&str> =
        lanes.iter().filter_map(|listed| listed.lane.server.as_ref().map(Server::base_url)).collect();
    servers.sort_unstable();
    servers.dedup();
    let stored = match servers.is_empty() {
        true => "nothing is stored".to_owned(),
        false => format!("there are messages for {}", servers.join(", ")),
    };
    Ok(match &args.readdress {
        Some(old) => {
            Failure::new(Exit::Usage, format!("nothing is stored for {old} that could be moved"), Some(&stored))
        }
        None => Failure::new(
            Exit::Usage,
            "no selected lane of the configured server is refused for its key, or it has the configured key already",
            Some("`opik-offline status` shows which lanes are held and why"),
        ),
    })
}

/// Returns the table of what is moved.
pub fn text(renderer: &Renderer, moves: &[Reassigned]) -> Shown {
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

/// Returns how many messages are moved, in words.
pub fn sum(moves: &[Reassigned]) -> String {
    count(moves.iter().map(|it| it.waiting + it.rejected).sum(), "message")
}

/// Asks a person on a terminal; anything else than yes ends the command.
fn ask(moves: &[Move]) -> Result<(), Failure> {
    let messages = count(moves.iter().map(|it| it.shown.waiting + it.shown.rejected).sum(), "message");
    if !is_interactive() {
        let message = format!("{messages} would get another destination, and there is nobody to ask");
        return Err(Failure::new(Exit::Usage, message, Some("look with --dry-run, then give --yes")));
    }
    let mut question = Shown::default();
    for it in moves {
        let key = it.shown.to_key.as_deref().unwrap_or("no key");
        question.add_line(&format!(
            "lane {} (workspace {}): {} to {} with key {key}",
            it.shown.lane,
            name(&it.shown.workspace),
            count(it.shown.waiting + it.shown.rejected, "message"),
            it.shown.to_server.as_deref().unwrap_or("no server"),
        ));
    }
    question.end_line();
    question.add_text(&format!("give {messages} this destination? [y/N] "));
    Stream::Err.show(&question)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Failure, "nothing was changed", Some("answer y to change it"))),
    }
}

/// Moves under the lease: nothing changes its destination while it is being sent.
fn apply(store: &dyn Store, moves: &[Move], progress: &Progress, shutdown: &Shutdown) -> Result<(), Failure> {
    let owner = Owner::this_process("replay");
    let moves: Vec<_> = moves.iter().map(|it| (it.from, it.to.clone())).collect();
    let mut waited = Duration::ZERO;
    loop {
        match move_lanes(store, &owner, &moves, shutdown) {
            Ok((_, true)) => return Ok(()),
            Ok((_, false)) => return Err(Failure::silent(Exit::Interrupted)),
            Err(StoreError::LeaseHeld { owner }) if waited < LEASE_PATIENCE => {
                if waited.is_zero() {
                    progress.note(&format!("waiting: {owner} replays this store"));
                }
                waited += LEASE_LOOK_INTERVAL;
                if shutdown.sleep(LEASE_LOOK_INTERVAL) {
                    return Err(Failure::silent(Exit::Interrupted));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}
