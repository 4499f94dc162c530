//! The part of `opik-offline replay` that moves whole stores: in, with `--from`, and sealed out, with `--to`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::salvage::SourceReport;
use super::{Common, Exit, Failure, stop_on_signals, translate};
use crate::config::{Config, ProcessEnvironment, temp_dir};
use crate::figures::{count, size};
use crate::hint;
use crate::moving::{Moved, MovedFile, MovingError, MovingIn, SealedCopy, SealingJob, SourceKind};
use crate::sdk::trust::FileOwner;
use crate::sealing::{Identity, Recipient, SealError, make_identity, read_identities, read_recipients};
use crate::shutdown::Shutdown;
use crate::store::{self, OpenMode, Store, StoreError};
use crate::terminal::Shown;
use crate::terminal::progress;

/// Moves whole stores.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Moving a store")]
pub(super) struct MovingArgs {
    /// Write a sealed copy of the store to FILE, and send nothing
    ///
    /// For a machine that can't reach the server, or is about to be switched off. Only the holder of a recipient's
    /// identity can open the copy: `replay --from FILE --identity KEYFILE` on another machine moves its messages in
    /// there. An existing file is never overwritten. The messages also stay here: once the copy was moved in, delete
    /// them with `purge`. A later copy may contain them again: each is moved in once.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, conflicts_with_all = NOT_SENDING, hide_short_help = true)]
    pub to: Option<PathBuf>,

    /// Seal the copy for this public key, `age1...`
    ///
    /// May be given more than once: each recipient can open it. `replay --make-identity` or `age-keygen` makes a key.
    #[arg(long, value_name = "KEY", requires = "to", hide_short_help = true)]
    pub recipient: Vec<String>,

    /// Seal the copy for the public keys in this file, one a line
    #[arg(long, value_name = "FILE", requires = "to", hide_short_help = true, value_hint = clap::ValueHint::FilePath)]
    pub recipients_file: Vec<PathBuf>,

    /// Open what is sealed, in copies of --from or in the depot of --fleet, with the secret key in this file
    ///
    /// A file of --make-identity or of `age-keygen`; may be given more than once.
    #[arg(long, value_name = "KEYFILE", value_hint = clap::ValueHint::FilePath, hide_short_help = true)]
    pub identity: Vec<PathBuf>,

    /// Make a key pair: write the secret key to KEYFILE, and print the public key for --recipient
    ///
    /// With --fleet, also make the depot's fleet.json, which names the fleet and this public key: agents seal for it.
    #[arg(long, value_name = "KEYFILE", hide_short_help = true, value_hint = clap::ValueHint::FilePath)]
    #[arg(conflicts_with_all = ["to", "from", "dry_run"], conflicts_with_all = NOT_SENDING)]
    pub make_identity: Option<PathBuf>,
}

/// The options of a replay that sends something.
const NOT_SENDING: [&str; 23] = [
    "pace",
    "hold",
    "resume",
    "batch_size",
    "delay",
    "limit",
    "timeout",
    "verify",
    "from",
    "status",
    "rejected",
    "types",
    "workspace",
    "server",
    "project",
    "ids",
    "trace",
    "older_than",
    "newer_than",
    "readdress",
    "rekey",
    "lane",
    "yes",
];

/// A sealed copy that was written, or would be.
#[derive(Serialize)]
pub(super) struct SealedReport {
    path: String,
    /// The public keys that it is sealed for.
    recipients: Vec<String>,
    /// Messages in it that wait for the server.
    messages: u64,
    /// Messages in it that the server rejected.
    rejected: u64,
    /// Messages in it that are held.
    held: u64,
    /// Messages that are damaged, and not in it.
    unread: u64,
    /// Its size; 0 if it was not written.
    bytes: u64,
}

/// A key pair that was made.
#[derive(Serialize)]
pub(super) struct IdentityReport {
    file: String,
    pub recipient: String,
}

/// Makes a key pair.
pub(super) fn new_identity(common: &Common, path: &Path) -> Result<IdentityReport, Failure> {
    let recipient = make_identity(path)?;
    if !common.quiet {
        let file = path.display();
        progress::say(&format!("wrote the secret key to {file}: keep it, nothing else opens what is sealed for it"));
        progress::say("seal for it elsewhere with `replay --to FILE --recipient KEY`; the key is:");
    }
    Ok(IdentityReport { file: path.display().to_string(), recipient: recipient.to_string() })
}

pub(super) fn identity_text(made: &IdentityReport) -> Shown {
    Shown::line(&made.recipient)
}

/// Writes a sealed copy of the store; `None` if nothing is stored.
pub(super) fn seal(
    config: &Config,
    args: &MovingArgs,
    to: &Path,
    dry_run: bool,
    shutdown: &Shutdown,
) -> Result<Option<SealedReport>, Failure> {
    let recipients = recipients(args)?;
    stop_on_signals(shutdown)?;
    let job = SealingJob {
        own: &config.db.value,
        limits: translate::store_limits(config),
        keys: &translate::store_keys(config)?,
        recipients: &recipients,
        is_dry_run: dry_run,
        shutdown,
    };
    let report = |copy: SealedCopy| {
        let SealedCopy { path, moved: Moved { taken, rejected, held, unread, .. }, bytes } = copy;
        let recipients = recipients.iter().map(Recipient::to_string).collect();
        SealedReport { path: path.display().to_string(), recipients, messages: taken, rejected, held, unread, bytes }
    };
    Ok(job.write(to)?.map(report))
}

pub(super) fn sealed_text(sealed: Option<&SealedReport>, dry_run: bool) -> Shown {
    let Some(sealed) = sealed else { return Shown::line("nothing is stored: there is nothing to seal") };
    let all = count(sealed.messages + sealed.rejected + sealed.held, "message");
    let whom = count(sealed.recipients.len() as u64, "recipient");
    let of_them = |number: u64, what: &str| if number > 0 { format!(", {number} {what}") } else { String::new() };
    let of_them = of_them(sealed.rejected, "of them rejected") + &of_them(sealed.held, "of them held");
    if dry_run {
        return Shown::line(&format!("would seal {all}{of_them} for {whom} in {}", sealed.path));
    }
    let mut shown =
        Shown::line(&format!("sealed {all}{of_them} for {whom} in {} ({})", sealed.path, size(sealed.bytes)));
    shown.end_line();
    if sealed.unread > 0 {
        let damaged = count(sealed.unread, "message");
        let see = hint::command("healthcheck");
        shown.add_line(&format!("{damaged} not in it, because of damage: see {see}"));
    }
    shown.add_line("move them in elsewhere with `replay --from FILE --identity KEYFILE`");
    let purge = hint::command("purge");
    shown
        .add_line(&format!("they also stay here: after that, delete them with {purge}, so that nothing is sent twice"));
    shown
}

/// Returns whom to seal for, each once.
fn recipients(args: &MovingArgs) -> Result<Vec<Recipient>, Failure> {
    let mut recipients = Vec::new();
    for text in &args.recipient {
        // Never quoted: it may be the secret key.
        let parsed = text.trim().parse().map_err(|error: SealError| {
            Failure::new(Exit::Usage, format!("--recipient: {error}"), Some(RECIPIENT_HINT))
        })?;
        recipients.push(parsed);
    }
    for path in &args.recipients_file {
        recipients.extend(read_recipients(path)?);
    }
    let mut once: Vec<Recipient> = Vec::new();
    recipients.into_iter().for_each(|recipient| {
        if !once.contains(&recipient) {
            once.push(recipient);
        }
    });
    if once.is_empty() {
        return Err(Failure::new(Exit::Usage, "--to: for whom shall it be sealed?", Some(RECIPIENT_HINT)));
    }
    Ok(once)
}

const RECIPIENT_HINT: &str = "name the public key with --recipient age1...; on the machine that shall open it, `replay \
                              --make-identity KEYFILE` makes one and prints it";

/// The stores to move in, as the command line names them.
pub(super) struct GivenStores<'a> {
    pub owner: FileOwner,
    pub identities: &'a [PathBuf],
    pub removes: bool,
    pub is_dry_run: bool,
}

/// Moves in the messages of these stores. Also returns whether one failed, which costs the others nothing.
pub(super) fn move_in(
    config: &Config,
    given: &GivenStores<'_>,
    stores: &[(PathBuf, SourceKind)],
    shutdown: &Shutdown,
) -> Result<(Vec<SourceReport>, bool), Failure> {
    let mut identities: Vec<Identity> = Vec::new();
    for path in given.identities {
        identities.extend(read_identities(path)?);
    }
    if stores.is_empty() {
        return Ok((Vec::new(), false));
    }
    let keys = translate::store_keys(config)?;
    let moving = MovingIn {
        owner: given.owner,
        own: &config.db.value,
        temp_dir: &temp_dir(&ProcessEnvironment),
        keys: &keys,
        identities: &identities,
        is_dry_run: given.is_dry_run,
        removes: given.removes,
        shutdown,
    };
    let mut own: Option<Arc<dyn Store>> = None;
    let mut open = || -> Result<Option<Arc<dyn Store>>, StoreError> {
        if own.is_none() {
            own = match given.is_dry_run {
                true => translate::existing_store(config)?,
                false => {
                    let (path, limits) = (&config.db.value, translate::store_limits(config));
                    Some(store::open_with(path, OpenMode::CreateIfMissing, limits, &keys)?)
                }
            };
        }
        Ok(own.clone())
    };
    let (mut reports, mut failed) = (Vec::new(), false);
    for (path, kind) in stores {
        match moving.run(path, *kind, &mut open) {
            Ok(MovedFile { problem, path, moved, aside, is_removed }) => {
                let reason = problem.as_ref().map(ToString::to_string);
                if let Some(problem) = problem {
                    failed = true;
                    Failure::from(problem).print();
                }
                reports.push(SourceReport::of_store(&path, moved, aside, is_removed, reason));
            }
            Err(error @ MovingError::Interrupted { .. }) => {
                return Err(Failure::new(Exit::Interrupted, error.to_string(), None));
            }
            Err(error) => {
                failed = true;
                Failure::from(error).print();
            }
        }
    }
    Ok((reports, failed))
}
