//! Turns every error into a message, a hint and an exit code. No other file knows exit codes.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::agent::AgentError;
use crate::agent::background::BackgroundError;
use crate::agent::child::ChildError;
use crate::agent::hub_lock::HubLockError;
use crate::agent::wrapped::WrappedError;
use crate::config::ConfigError;
use crate::depot::DepotError;
use crate::health::CheckError;
use crate::hint;
use crate::moving::MovingError;
use crate::printable::shell_word;
use crate::protocol::answers::SendFailure;
use crate::replay::session::reassignment::ReassignError;
use crate::replay::session::{ServerAway, SessionError};
use crate::sdk::file::SdkFileError;
use crate::sdk::salvage::SalvageError;
use crate::sealing::SealError;
use crate::signals::SignalError;
use crate::store::{FullLimit, KeyError, StoreError};
use crate::takeover::error::TakeoverError;
use crate::takeover::scratch::ScratchError;
use crate::takeover::unreadable::DepotUnreadable;
use crate::telemetry::log::LogError;
use crate::terminal::pager::PagerError;
use crate::terminal::progress::say_error;
use crate::translate::{FleetError, NamedStoreMissing, NetworkError};
use crate::upstream::UpstreamError;

/// How a command ended; the numbers are part of the contract (man page).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The command failed.
    Failure = 1,
    /// The command line or the configuration is invalid; nothing was done.
    Usage = 2,
    /// The Opik server can't be reached.
    Unreachable = 3,
    /// Messages remain, or a threshold is exceeded.
    Remaining = 4,
    /// The server rejects the API key or the workspace.
    NotAuthorised = 5,
    /// The address of the agent is in use.
    AddressInUse = 6,
    /// A wrapped command can't be executed.
    NotExecutable = 126,
    /// A wrapped command was not found.
    NotFound = 127,
    /// Interrupted by the user.
    Interrupted = 130,
}

impl Exit {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Done,
        Self::Failure,
        Self::Usage,
        Self::Unreachable,
        Self::Remaining,
        Self::NotAuthorised,
        Self::AddressInUse,
        Self::NotExecutable,
        Self::NotFound,
        Self::Interrupted,
    ];
}

/// Why a command failed: what failed, on what, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code of the process.
    pub exit: Exit,
    /// The subject and the cause of the failure. Empty if it was reported already.
    pub message: String,
    /// Advice on what to do next.
    pub hint: Option<String>,
}

impl Failure {
    /// Returns a failure with this message and hint.
    pub fn new(exit: Exit, message: impl Into<String>, hint: Option<&str>) -> Self {
        Self { exit, message: message.into(), hint: hint.map(str::to_owned) }
    }

    /// Writes the failure to stderr.
    pub fn print(&self) {
        say_error(&self.message, self.hint.as_deref());
    }

    /// Returns a failure that the command's own output has reported already.
    pub fn silent(exit: Exit) -> Self {
        Self { exit, message: String::new(), hint: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self { exit: Exit::Usage, hint: error.hint(), message: error.to_string() }
    }
}

impl From<DepotError> for Failure {
    fn from(error: DepotError) -> Self {
        let exit = match &error {
            DepotError::Unusable { .. } => Exit::Usage,
            DepotError::NotAuthorised { .. } => Exit::NotAuthorised,
            DepotError::Unreachable { .. }
            | DepotError::Missing { .. }
            | DepotError::UnknownOutcome { .. }
            | DepotError::Damaged { .. } => Exit::Unreachable,
            DepotError::Lost { .. }
            | DepotError::TooNew { .. }
            | DepotError::Full { .. }
            | DepotError::TooLarge { .. } => Exit::Failure,
        };
        Self { exit, message: error.to_string(), hint: Some(error.hint()) }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let hint = match &error {
            StoreError::Missing { .. } => "nothing was stored there yet; choose another file with --db",
            StoreError::NotAStore { .. } => "choose the message store with --db; this file was not changed",
            StoreError::NewerSchema { .. } => "use the newer opik-offline that wrote it; the file was not changed",
            StoreError::OlderInUse { .. } => {
                "stop the older opik-offline first; nothing is lost, and the file was not changed"
            }
            StoreError::Damaged { .. } => {
                "start the agent or run `opik-offline replay`: it sets the file aside and recovers what can be read"
            }
            StoreError::Unusable { .. } => {
                "give this user write access to the file and its directory, free disk space, or choose another file with --db"
            }
            StoreError::Unproven { .. } => {
                "check the disk and the system log; the agent and `opik-offline replay` rewrite the store once no other process has it open"
            }
            StoreError::Full { limit: FullLimit::Disk | FullLimit::DiskReserve, .. } => {
                "free disk space: `df -h` and `df -i` show where, and `quota` if you have one"
            }
            StoreError::Full { limit: FullLimit::MaxSize | FullLimit::Rejected, .. } => {
                "replay or purge messages, or raise OPIK_OFFLINE_MAX_SIZE"
            }
            StoreError::Busy { .. } => "try again; another process is writing to the store",
            StoreError::KeyMissing { .. } => {
                "set OPIK_OFFLINE_ENCRYPTION_KEY_FILE to the file with that key; nothing is lost, and the file was not changed"
            }
            StoreError::WrongKey { .. } => {
                "set the key with that name, and after a key rotation the previous key as OPIK_OFFLINE_ENCRYPTION_PREVIOUS_KEY_FILE; nothing is lost, and the file was not changed"
            }
            StoreError::TooManyKeys { .. } => {
                "set both keys of the previous rotation, run `opik-offline healthcheck --reseal`, then rotate the key again"
            }
            StoreError::Key(_) => "correct the setting, or unset it; the message store was not changed",
            StoreError::LeaseHeld { .. } => "it delivers the same messages; wait for it, or stop it first",
            StoreError::AttachmentGone => "send the file again; none of it was kept",
            StoreError::DepotAway { .. } => "nothing is lost; try again when the depot can be reached",
            StoreError::InDepot { at, depot } => {
                let (db, url) = (shell_word(at.as_str().as_ref()), shell_word(depot.as_ref()));
                let hint = format!(
                    "`opik-offline agent --db {db} --fleet {url}` delivers and marks them; once their agent is gone for \
                     good, `opik-offline replay --fleet {url}` delivers the copies"
                );
                return Self::new(Exit::Failure, error.to_string(), Some(&hint));
            }
            StoreError::LeaseLost => "the other process continues; `opik-offline status` shows its progress",
        };
        let exit = if matches!(error, StoreError::Key(_)) { Exit::Usage } else { Exit::Failure };
        Self::new(exit, error.to_string(), Some(hint))
    }
}

impl From<NamedStoreMissing> for Failure {
    fn from(error: NamedStoreMissing) -> Self {
        let path = shell_word(error.path.as_os_str());
        let hint = format!("check the path; an agent makes the file when it starts: `opik-offline agent --db {path}`");
        Self::new(Exit::Usage, error.to_string(), Some(&hint))
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        StoreError::from(error).into()
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        let message = error.to_string();
        let (exit, hint) = match error {
            SessionError::ServerNotRecorded => {
                (Exit::Usage, "set the server that they were accepted for with --upstream; it is recorded")
            }
            SessionError::Damaged { .. } => (
                Exit::Failure,
                "what could be read was recovered, see `opik-offline status`; run the replay again to continue",
            ),
            SessionError::Store(error) => return error.into(),
        };
        Self::new(exit, message, Some(hint))
    }
}

impl From<ServerAway> for Failure {
    fn from(away: ServerAway) -> Self {
        match away {
            ServerAway::NoAnswer(failure) => failure.into(),
            ServerAway::Unusable { hint, .. } => Self::new(Exit::Unreachable, away.to_string(), Some(hint)),
        }
    }
}

impl From<ReassignError> for Failure {
    fn from(error: ReassignError) -> Self {
        let message = error.to_string();
        let hint = match error {
            ReassignError::Store(error) => return error.into(),
            ReassignError::Interrupted => return Self::silent(Exit::Interrupted),
            ReassignError::NoServer => {
                "set it with --upstream, OPIK_URL_OVERRIDE or in the configuration file".to_owned()
            }
            ReassignError::NoCredential => {
                "set OPIK_API_KEY, or api_key in ~/.opik.config; it can't be set on the command line".to_owned()
            }
            ReassignError::NothingStored { stored, .. } if stored.is_empty() => "nothing is stored".to_owned(),
            ReassignError::NothingStored { stored, .. } => {
                format!("there are messages for {}", hint::foreign(&stored.join(", ")))
            }
            ReassignError::NoneRefused => "`opik-offline status` shows which lanes are held and why".to_owned(),
        };
        Self::new(Exit::Usage, message, Some(&hint))
    }
}

impl From<TakeoverError> for Failure {
    fn from(error: TakeoverError) -> Self {
        let message = error.to_string();
        let (exit, hint) = match error {
            TakeoverError::Depot(error) => return error.into(),
            TakeoverError::Store(error) => return error.into(),
            TakeoverError::Scratch(ScratchError::Store(error)) => return error.into(),
            TakeoverError::Scratch(_) => (
                Exit::Failure,
                "give this user write access to the folder of the message store, or choose another with --db",
            ),
            TakeoverError::Keys(_) => (
                Exit::Usage,
                "name the key file with --identity or OPIK_OFFLINE_FLEET_IDENTITY_FILE; `replay --make-identity` and `age-keygen` write one",
            ),
            TakeoverError::FleetFile { .. } => {
                (Exit::Failure, "use the newer opik-offline that wrote it; nothing was changed")
            }
            TakeoverError::KeyFolder { .. } => (
                Exit::Usage,
                "name a folder with one file for each key, with --credentials-dir or OPIK_OFFLINE_FLEET_CREDENTIALS_DIR",
            ),
            TakeoverError::FleetFileExists { .. } => (
                Exit::Failure,
                "make a key pair without --fleet, and add its public key to `recipients` in v1/fleet.json",
            ),
            TakeoverError::NoFleetFile { .. } => (
                Exit::Usage,
                "check the prefix in the URL; `opik-offline replay --make-identity FILE --fleet URL` makes the file",
            ),
            TakeoverError::OwnStreams(_) => {
                (Exit::Failure, "`opik-offline healthcheck` says what is wrong with the store")
            }
            TakeoverError::NotExclusive { .. } => (
                Exit::Usage,
                "where only one replayer ever runs, set fleet_single_replayer: true (OPIK_OFFLINE_FLEET_SINGLE_REPLAYER=true); otherwise use a depot that keeps conditional writes",
            ),
        };
        Self::new(exit, message, Some(hint))
    }
}

impl From<DepotUnreadable> for Failure {
    fn from(error: DepotUnreadable) -> Self {
        Self::new(Exit::Failure, error.to_string(), Some(&error.hint))
    }
}

impl From<CheckError> for Failure {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Store(error) => error.into(),
            CheckError::Key(error) => error.into(),
            CheckError::Send(error) => error.into(),
        }
    }
}

impl From<SalvageError> for Failure {
    fn from(error: SalvageError) -> Self {
        let hint: Cow<'static, str> = match &error {
            SalvageError::File(error) => sdk_file_hint(error),
            SalvageError::Store(_) => "messages stored so far are kept, and the file was not changed; run it again".into(),
            SalvageError::Interrupted { .. } => "run it again to continue".into(),
            SalvageError::OtherServer { .. } => {
                "set its server with --upstream, or give the old one with --readdress if it moved; the file was not changed".into()
            }
            SalvageError::NotRemoved { .. } => "its messages are in the message store; delete the file yourself".into(),
        };
        Self::new(Exit::Failure, error.to_string(), Some(&hint))
    }
}

fn sdk_file_hint(error: &SdkFileError) -> Cow<'static, str> {
    match error {
        SdkFileError::Missing { .. } => "`opik-offline status` lists the stores that were found".into(),
        SdkFileError::OurStore { path } => {
            let path = shell_word(path.as_os_str());
            format!(
                "`opik-offline inspect --db {path}` lists it, and `opik-offline replay --from {path}` moves its messages \
                 into your store; the file was not changed"
            )
            .into()
        }
        SdkFileError::NotADatabase { .. } | SdkFileError::OtherProgram { .. } => {
            "choose an opik_messages.db that a Python process left behind; this file was not changed".into()
        }
        SdkFileError::Live { .. } => {
            "its process still delivers it; try again after that process has ended. The file was not changed".into()
        }
        SdkFileError::Untrusted { path, .. } => {
            format!("its owner can salvage it, and so can root with {}", as_owner(path)).into()
        }
        SdkFileError::Interrupted { .. } => "run it again to continue".into(),
        SdkFileError::Unreadable { .. } => {
            "check that this user can read the file, and that the temporary directory has space for a copy".into()
        }
    }
}

impl From<MovingError> for Failure {
    fn from(error: MovingError) -> Self {
        let message = error.to_string();
        let hint = match error {
            MovingError::Store(error) => return error.into(),
            MovingError::Sealed { error, .. } => return Self { message, ..error.into() },
            MovingError::Interrupted { .. } => return Self::new(Exit::Interrupted, message, None),
            MovingError::Source { error: StoreError::KeyMissing { .. } | StoreError::WrongKey { .. }, .. } => {
                "set OPIK_OFFLINE_ENCRYPTION_PREVIOUS_KEY_FILE to the file with its key, for this command; the file was not changed"
            }
            MovingError::Source { error, .. } => return Self { message, ..error.into() },
            MovingError::Missing { aside: Some(_), .. } => {
                "`opik-offline replay` delivers what was moved; to move the file again, name it as it is called now"
            }
            MovingError::Missing { aside: None, .. } => "check the path; `ls -l` shows what is there",
            MovingError::Recovering { path } => {
                let path = shell_word(path.as_os_str());
                let hint =
                    format!("finish its recovery with `opik-offline replay --dry-run --db {path}`, then move it");
                return Self::new(Exit::Failure, message, Some(&hint));
            }
            MovingError::Untrusted { path, .. } => {
                let hint = format!("its owner can move it, and so can root with {}", as_owner(&path));
                return Self::new(Exit::Failure, message, Some(&hint));
            }
            MovingError::OwnStore { .. } => "run `opik-offline replay` without --from: it delivers this store",
            MovingError::InUse { .. } => {
                "stop that process first: it delivers the messages itself. The file was not changed"
            }
            MovingError::Unreadable { .. } => "give this user read access to the file and its directory",
            MovingError::Scratch { .. } => {
                "free space there for a copy of the store, or choose a store on a larger disk with --db; the file was not changed"
            }
            MovingError::NotACopy { .. } => {
                "name a file of `replay --to`, and use a version as new as the one that wrote it"
            }
            MovingError::NotSetAside { .. } => {
                "start no agent on it, which would send its messages again; rename or delete the file yourself"
            }
            MovingError::Exists { .. } => "name another file, or delete this one first",
            MovingError::Unwritable { .. } => "choose a directory on a disk with space that this user can write to",
        };
        Self::new(Exit::Failure, message, Some(hint))
    }
}

impl From<SealError> for Failure {
    fn from(error: SealError) -> Self {
        let (exit, hint) = match &error {
            SealError::NoIdentity { .. } => (
                Exit::Failure,
                "name the file with the secret key of a recipient with --identity KEYFILE; `age-keygen -y KEYFILE` shows whose it is",
            ),
            SealError::Truncated | SealError::Changed { .. } | SealError::HeaderChanged | SealError::Header { .. } => {
                (Exit::Failure, "copy the file again from where it was written; no message was stored")
            }
            SealError::TooNew { .. } => (Exit::Failure, "use a newer opik-offline; no message was stored"),
            SealError::NotSealed | SealError::Armoured => {
                (Exit::Failure, "name a file that `replay --to` wrote, as it was written")
            }
            SealError::Random | SealError::Io(_) => (Exit::Failure, "check the disk and the system log"),
            SealError::Recipient { .. } | SealError::NoRecipients => (
                Exit::Usage,
                "name the public key with --recipient age1...; `replay --make-identity KEYFILE` makes one",
            ),
            SealError::TooManyRecipients { .. } => (Exit::Usage, "seal for fewer recipients"),
            SealError::Identity { .. } => (Exit::Usage, "name a file of `replay --make-identity` or of `age-keygen`"),
            SealError::KeyFile { .. } => (Exit::Usage, "name a file of `replay --make-identity` or of `age-keygen`"),
            SealError::NewKeyFile { .. } => {
                (Exit::Usage, "name a new file in a folder that exists and that this user can write to")
            }
        };
        Self::new(exit, error.to_string(), Some(hint))
    }
}

/// Returns the command with which root takes in a file of another user.
fn as_owner(path: &Path) -> String {
    let owner = std::fs::symlink_metadata(path).map_or("USER".to_owned(), |found| found.uid().to_string());
    let path = shell_word(path.as_os_str());
    format!("`opik-offline replay --from {path} --owner {owner}`; the file was not changed")
}

impl From<NetworkError> for Failure {
    fn from(error: NetworkError) -> Self {
        let message = error.to_string();
        match error {
            NetworkError::Config(error) => error.into(),
            NetworkError::Upstream(error) => error.into(),
            NetworkError::HubToken { .. } => {
                Self::new(Exit::Usage, message, Some("write the token that the hub requires into it, or unset it"))
            }
            NetworkError::Headers { .. } => {
                Self::new(Exit::Usage, message, Some("write one `Name: value` per line, or unset it"))
            }
        }
    }
}

impl From<FleetError> for Failure {
    fn from(error: FleetError) -> Self {
        let message = error.to_string();
        let hint = match error {
            FleetError::Depot(error) => return error.into(),
            FleetError::Key(error) => return error.into(),
            FleetError::Recipient { .. } => "name public keys that begin with age1, separated by commas",
            FleetError::NoDepot { .. } => "name the depot with --fleet URL, or unset acknowledge",
            FleetError::NothingToReplay { .. } => "name the depot with --fleet URL, or unset fleet_replay",
            FleetError::NoIdentity { .. } | FleetError::Identity { .. } => {
                "name the private key of a replayer with OPIK_OFFLINE_FLEET_IDENTITY_FILE, or unset fleet_replay"
            }
        };
        Self::new(Exit::Usage, message, Some(hint))
    }
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Self {
        let hint = match &error {
            UpstreamError::CaFile { .. } | UpstreamError::NoCertificates { .. } => {
                "set SSL_CERT_FILE to a readable PEM file, or SSL_CERT_DIR to a directory of them, or unset it"
            }
            UpstreamError::ClientCertificate { .. } => {
                "set OPIK_OFFLINE_CLIENT_CERT_FILE and OPIK_OFFLINE_CLIENT_KEY_FILE to a certificate and its key in PEM format"
            }
            UpstreamError::Tls { .. } => "check SSL_CERT_FILE",
        };
        Self::new(Exit::Usage, error.to_string(), Some(hint))
    }
}

impl From<SignalError> for Failure {
    fn from(error: SignalError) -> Self {
        let hint = "check this user's limits on processes (ulimit -u) and open files (ulimit -n)";
        Self::new(Exit::Failure, error.to_string(), Some(hint))
    }
}

impl From<PagerError> for Failure {
    fn from(error: PagerError) -> Self {
        match error {
            PagerError::Signals(error) => error.into(),
            PagerError::Output(error) => error.into(),
            PagerError::NotRun => {
                Self::new(Exit::Failure, error.to_string(), Some("set PAGER to an existing program, or use --no-pager"))
            }
        }
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Listen { ref source, .. } => {
                let hint = match source.kind() {
                    io::ErrorKind::AddrInUse => {
                        "another agent or program listens there: use it, stop it, or choose another address with --listen"
                    }
                    io::ErrorKind::PermissionDenied => "choose a port above 1023 with --listen",
                    _ => "choose an address of this machine with --listen",
                };
                let exit = match source.kind() {
                    // It may be free later, unlike an address that is wrong.
                    io::ErrorKind::AddrInUse => Exit::AddressInUse,
                    _ => Exit::Usage,
                };
                Self::new(exit, error.to_string(), Some(hint))
            }
            AgentError::UpstreamIsSelf { .. } => Self::new(
                Exit::Usage,
                error.to_string(),
                Some(
                    "set the real Opik server with --upstream or OPIK_OFFLINE_UPSTREAM; OPIK_URL_OVERRIDE may keep pointing the application at the agent",
                ),
            ),
            AgentError::HubLock(HubLockError::Held { .. }) => Self::new(
                Exit::Failure,
                error.to_string(),
                Some(
                    "run one hub per store: stop that process, or give this hub a store of its own with --db and split the \
                     edges by workspace",
                ),
            ),
            AgentError::HubLock(HubLockError::NoLock { .. }) => Self::new(
                Exit::Failure,
                error.to_string(),
                Some(
                    "a hub needs a folder that it can write to, on a file system with locks: a block volume, not a network \
                     file system; choose one with --db",
                ),
            ),
            AgentError::System { .. } => Self::new(
                Exit::Failure,
                error.to_string(),
                Some("check this user's limits on processes and open files"),
            ),
        }
    }
}

impl From<BackgroundError> for Failure {
    fn from(error: BackgroundError) -> Self {
        let message = error.to_string();
        let (exit, hint) = match error {
            BackgroundError::Agent(error) => return error.into(),
            BackgroundError::NoFolder => (Exit::Usage, "set XDG_STATE_HOME to a folder that this user can write to"),
            BackgroundError::Untrusted { .. } | BackgroundError::Unusable { .. } => (
                Exit::Failure,
                "the folder has to belong to this user: set XDG_STATE_HOME to another one, or mend its owner",
            ),
            BackgroundError::NotStarted { .. } => {
                (Exit::Failure, "check this user's limits on processes (ulimit -u) and memory")
            }
            BackgroundError::Ended { code, .. } => {
                let exit = match code {
                    Some(2) => Exit::Usage,
                    Some(6) => Exit::AddressInUse,
                    _ => Exit::Failure,
                };
                (exit, "run `opik-offline agent` without --background to see all that it says")
            }
            BackgroundError::NotReady { .. } => (
                Exit::Failure,
                "it goes on starting: run the same command again, or stop it with `opik-offline agent --stop`",
            ),
            BackgroundError::Unprotected { .. } => (
                Exit::Failure,
                "choose another store with --db, or mend this one: `opik-offline healthcheck` shows more",
            ),
            BackgroundError::NoStarter => (Exit::Usage, "use `opik-offline agent --background`"),
            BackgroundError::Stuck { .. } => (
                Exit::Failure,
                "see its log beside the port file; as a last resort end that process with `kill -9`: nothing stored is lost",
            ),
        };
        Self::new(exit, message, Some(hint))
    }
}

impl From<WrappedError> for Failure {
    fn from(error: WrappedError) -> Self {
        let message = error.to_string();
        match error {
            WrappedError::Agent(error) => error.into(),
            WrappedError::Child(error) => error.into(),
            WrappedError::Signals(error) => error.into(),
            WrappedError::Lost { .. } => {
                let hint = "start the agent with the default SIGCHLD: a process that ignores it can't learn how its children ended";
                Self::new(Exit::Failure, message, Some(hint))
            }
        }
    }
}

impl From<ChildError> for Failure {
    fn from(error: ChildError) -> Self {
        let (exit, hint) = match &error {
            ChildError::NotFound { .. } => {
                (Exit::NotFound, "check the spelling and PATH; after -- comes a program with its arguments")
            }
            ChildError::NotExecutable { .. } => {
                (Exit::NotExecutable, "make it executable (chmod +x), or run it with its interpreter")
            }
        };
        Self::new(exit, error.to_string(), Some(hint))
    }
}

impl From<SendFailure> for Failure {
    fn from(error: SendFailure) -> Self {
        let hint = "check that the Opik server is running and that --upstream is its URL; `opik-offline healthcheck` shows more";
        Self::new(Exit::Unreachable, error.to_string(), Some(hint))
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Self::new(Exit::Usage, error.to_string(), Some("set OPIK_LOGGING_FILE to a writable file, or unset it"))
    }
}

impl From<io::Error> for Failure {
    /// Output that can't be written. A closed pipe (`| head`) is not an error.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(Exit::Done),
            _ => Self::new(
                Exit::Failure,
                format!("cannot write the output: {error}"),
                Some("free space where the output goes, or write it elsewhere"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Server;

    #[test]
    fn exit_codes_are_those_of_the_manual() {
        assert_eq!(Exit::ALL.map(|exit| exit as u8), [0, 1, 2, 3, 4, 5, 6, 126, 127, 130]);
        let store = StoreError::Missing { at: "x".into() };
        assert_eq!(Failure::from(store).exit, Exit::Failure);
        let url = String::from("http://127.0.0.1:1");
        assert_eq!(Failure::from(SendFailure::Broken { url, reason: "reset".into() }).exit, Exit::Unreachable);
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)), Failure::silent(Exit::Done));
    }

    /// One of every error of moving a store.
    fn moving_failures() -> impl Iterator<Item = Failure> {
        let path = || std::path::PathBuf::from("/folder/file");
        let reason = || "why".to_owned();
        let seal = [
            SealError::Recipient { reason: "why" },
            SealError::Identity { reason: "why" },
            SealError::KeyFile { path: path(), reason: reason() },
            SealError::NewKeyFile { path: path(), reason: reason() },
            SealError::NoRecipients,
            SealError::TooManyRecipients { given: 65 },
            SealError::Random,
            SealError::NotSealed,
            SealError::Armoured,
            SealError::TooNew { version: "v2".into() },
            SealError::Header { reason: "why" },
            SealError::HeaderChanged,
            SealError::NoIdentity { named: Vec::new(), recipients: 1, passphrase: false },
            SealError::Truncated,
            SealError::Changed { at: 0 },
        ];
        let moving = [
            MovingError::Missing { path: path(), aside: None },
            MovingError::Missing { path: path(), aside: Some(path()) },
            MovingError::Recovering { path: path() },
            MovingError::Untrusted { path: path(), reason: reason() },
            MovingError::OwnStore { path: path() },
            MovingError::InUse { path: path(), pid: Some(7), name: "opik-offline".into() },
            MovingError::Unreadable { path: path(), reason: reason() },
            MovingError::Scratch { path: path(), folder: path(), reason: reason() },
            MovingError::Source { path: path(), copy: path(), error: StoreError::AttachmentGone },
            MovingError::NotACopy { path: path(), reason: "why" },
            MovingError::NotSetAside { path: path(), reason: reason() },
            MovingError::Exists { path: path() },
            MovingError::Unwritable { path: path(), reason: reason() },
        ];
        seal.into_iter().map(Failure::from).chain(moving.into_iter().map(Failure::from))
    }

    /// One of every error of an agent in the background.
    fn background_failures() -> impl Iterator<Item = Failure> {
        let path = || std::path::PathBuf::from("/folder/file");
        let reason = || "why".to_owned();
        let errors = [
            BackgroundError::NoFolder,
            BackgroundError::Untrusted { path: path(), reason: reason() },
            BackgroundError::Unusable { path: path(), reason: reason() },
            BackgroundError::NotStarted { reason: reason() },
            BackgroundError::Ended { code: Some(6), said: reason() },
            BackgroundError::NotReady { seconds: 60, reason: reason(), log: path() },
            BackgroundError::Unprotected { reason: reason() },
            BackgroundError::NoStarter,
            BackgroundError::Stuck { pid: None, reason: reason() },
        ];
        errors.into_iter().map(Failure::from)
    }

    /// One of every error that a user can get.
    fn all_failures() -> Vec<Failure> {
        use crate::config::{Config, Environment, Flags};
        struct Nothing;
        impl Environment for Nothing {
            fn variable(&self, _: &str) -> Option<std::ffi::OsString> {
                None
            }
            fn home_dir(&self) -> Option<std::path::PathBuf> {
                None
            }
            fn config_dir(&self) -> Option<std::path::PathBuf> {
                None
            }
            fn data_dir(&self) -> Option<std::path::PathBuf> {
                None
            }
        }
        let path = || std::path::PathBuf::from("/folder/file");
        let reason = || "why".to_owned();
        let url = || "http://127.0.0.1:1/api".to_owned();
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let owner = crate::store::Owner::this_process("replay");
        let bad = Flags { max_size: Some("big".into()), ..Flags::default() };
        let store = [
            StoreError::Missing { at: path().into() },
            StoreError::NotAStore { at: path().into(), reason: reason() },
            StoreError::NewerSchema { at: path().into(), found: 9, known: 1 },
            StoreError::OlderInUse { at: path().into(), found: 8, known: 11, pids: vec![7] },
            StoreError::Damaged { at: path().into(), reason: reason() },
            StoreError::Unusable { at: path().into(), reason: reason() },
            StoreError::Full { at: path().into(), limit: FullLimit::MaxSize, needed: 1, reason: reason() },
            StoreError::Unproven { at: path().into(), reason: reason() },
            StoreError::Busy { at: path().into(), waited_ms: 5 },
            StoreError::LeaseHeld { owner },
            StoreError::AttachmentGone,
            StoreError::DepotAway { reason: reason() },
            StoreError::InDepot { at: path().into(), depot: "file:///depot".into() },
            StoreError::LeaseLost,
        ];
        let file = [
            SdkFileError::Missing { path: path() },
            SdkFileError::NotADatabase { path: path() },
            SdkFileError::OurStore { path: path() },
            SdkFileError::OtherProgram { path: path(), reason: reason() },
            SdkFileError::Live { path: path(), pid: 1, name: reason() },
            SdkFileError::Untrusted { path: path(), reason: reason() },
            SdkFileError::Interrupted { path: path() },
            SdkFileError::Unreadable { path: path(), reason: reason() },
        ];
        let config = [
            Config::resolve(&Flags::default(), &Nothing).expect_err("there is no data directory"),
            Config::resolve(&bad, &Nothing).expect_err("big is not a size"),
            ConfigError::Read { path: path(), source: denied() },
            ConfigError::Malformed { path: path(), line: Some(3), reason: reason() },
            ConfigError::UnknownKey { path: path(), key: reason(), hint: "did you mean that?".to_owned() },
        ];
        let mut all: Vec<Failure> = store.into_iter().map(Failure::from).collect();
        all.extend(file.into_iter().map(|error| Failure::from(SalvageError::File(error))));
        all.extend(config.into_iter().map(Failure::from));
        let salvage = [
            SalvageError::Store(StoreError::LeaseLost),
            SalvageError::Interrupted { path: path() },
            SalvageError::NotRemoved { path: path(), reason: reason() },
            SalvageError::OtherServer {
                path: path(),
                named: Server::new("http://a"),
                configured: Server::new("http://b"),
            },
        ];
        all.extend(salvage.into_iter().map(Failure::from));
        all.extend(moving_failures());
        let upstream = || {
            [
                UpstreamError::CaFile { path: path(), reason: reason() },
                UpstreamError::NoCertificates { path: path() },
                UpstreamError::ClientCertificate { path: path(), reason: reason() },
                UpstreamError::Tls { reason: reason() },
            ]
        };
        all.extend(upstream().into_iter().map(Failure::from));
        all.extend(upstream().into_iter().map(Failure::from));
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 6745));
        for kind in [io::ErrorKind::AddrInUse, io::ErrorKind::PermissionDenied, io::ErrorKind::AddrNotAvailable] {
            all.push(AgentError::Listen { address, source: kind.into() }.into());
        }
        all.push(AgentError::UpstreamIsSelf { url: url(), address }.into());
        all.push(AgentError::System { reason: reason() }.into());
        all.push(AgentError::HubLock(HubLockError::Held { store: path(), holder: reason() }).into());
        all.push(AgentError::HubLock(HubLockError::NoLock { path: path(), reason: reason() }).into());
        all.extend(background_failures());
        all.push(NetworkError::HubToken { path: path(), origin: reason(), reason: reason() }.into());
        all.push(ChildError::NotFound { program: reason() }.into());
        all.push(ChildError::NotExecutable { program: reason(), source: denied() }.into());
        all.push(LogError::OpenFile { path: path(), source: denied() }.into());
        all.push(LogError::AlreadySetUp.into());
        all.push(SignalError::new(&denied()).into());
        all.push(SendFailure::Broken { url: url(), reason: reason() }.into());
        all.push(denied().into());
        all.push(NamedStoreMissing { path: path(), origin: reason() }.into());
        all.push(WrappedError::Lost { name: "python".to_owned(), error: denied() }.into());
        all
    }

    #[test]
    fn every_error_has_a_hint() {
        for failure in all_failures() {
            let hint = failure.hint.as_deref().unwrap_or_default();
            assert!(hint.len() > 10, "{:?} has no hint", failure.message);
            assert!(!failure.message.is_empty() && !failure.message.ends_with('.'), "{failure}");
            for filler in ["please", "simply", "Error {", "Os {"] {
                assert!(!failure.to_string().contains(filler), "{failure}");
            }
        }
    }

    #[test]
    fn a_failure_is_displayed_as_message_and_hint() {
        let failure = Failure::new(Exit::Usage, "cannot do it", Some("do that"));
        assert_eq!(failure.to_string(), "error: cannot do it\nhint: do that");
    }
}
