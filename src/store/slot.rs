//! A store that may be unavailable for a while.
//!
//! An agent whose store can't be used forwards only writes that overtake nothing, and keeps retrying. It holds a slot
//! instead of a store: either an open one, or the reason why there is none.
//!
//! ```text
//!              opened                    report(unusable, damaged ...)
//!   (start) ─────────▶ open ────────────────────────────────────────▶ unavailable
//!                       ▲  │ file removed or replaced (checked once a second) │
//!                       │  └───────────────────────────────────────────────▶  │
//!                       └────────── get or refresh, every few seconds ◀───────┘
//! ```
//!
//! What opening does depends on why the store became unavailable:
//!
//! - it was **damaged**: the first thread sets its file aside and recovers every whole message;
//! - its file was **deleted** while it was open: we still have it open, and its messages are stored again
//!   (`rescue.rs`);
//! - its file was **moved**: its log is checkpointed, so that the file is whole wherever it is now, and nothing is
//!   copied: the file belongs to the person who moved it;
//! - a write or sync **failed**, here or in another process: it is closed, so that one of its users can open it alone,
//!   rewrite it and sync it (`sqlite/proof.rs`); opening does that, and fails until it is done;
//! - anything else: it is opened again.
//!
//! A store that comes back after a full disk is only known to work once something was written, so a slot that can open
//! it shows it as open; the next failed write is reported and the wait starts over.
//!
//! # Who opens
//!
//! Opening waits for other processes, migrates and recovers, so it may block for long. [`StoreSlot::get`] and
//! [`StoreSlot::with`] are for threads that may wait. A runtime that serves clients calls [`StoreSlot::try_get`] and
//! [`StoreSlot::try_with`], which only read the state, and [`StoreSlot::refresh`], which opens on a thread of its own.
//!
//! # Order while the store is unavailable
//!
//! Live writes must not overtake queued messages, so a slot looks at the backlog of a store that it can't use
//! ([`StoreSlot::backlog_seen`]): through the failed store, whose readers often work when its disk takes no write, or
//! through a connection that needs no key ([`BacklogView`]). What it can't see is unknown, never empty.
//!
//! Every user of the store reports its failures ([`StoreSlot::report`]; [`StoreSlot::with`] does it by itself).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::encryption::key::Keys;
use super::error::StoreError;
use super::limits::Limits;
use super::moved::MovedStores;
use super::open::{self, BacklogView, SlotOpener};
use super::os::FileId;
use super::rejected_room::RejectedRoom;
use super::rescue;
use super::said::Said;
use super::traits::Store;
use super::view::{BacklogSeen, Unproven};
use crate::hint;
use crate::message::{EntityKey, Lane, Message, Server, Touch};
use crate::printable::shell_word;

/// How long a slot waits before it tries to open its store again.
const RETRY_AFTER: Duration = Duration::from_secs(3);
/// How often a slot checks that the file is still the one that it opened.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Minimum interval between two log lines about refused writes.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// How many entities of failed commits are remembered; beyond that all count as uncertain.
const UNCERTAIN_MAX: usize = 100_000;

/// Minimum time between two recoveries: where recovering does not help, a loop would fill the disk.
const RECOVER_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Opens the store; a damaged one is set aside first.
type Opener = Box<dyn Fn(Option<&Damage>) -> Result<Arc<dyn Store>, StoreError> + Send + Sync>;
/// Opens the store without its key.
type KeylessOpener = Box<dyn Fn() -> Result<Arc<dyn Store>, StoreError> + Send + Sync>;
/// Decorates every store that is opened.
pub type Decorator = Arc<dyn Fn(Arc<dyn Store>) -> Arc<dyn Store> + Send + Sync>;
type OnOpen = Box<dyn Fn(&dyn Store) -> Result<(), StoreError> + Send + Sync>;

/// A store, or the reason why there is none right now. Reopens it when it is used.
pub struct StoreSlot {
    /// The file to watch; a store without one (a test double) is never checked.
    file: Option<PathBuf>,
    opener: Opener,
    keyless: Option<KeylessOpener>,
    on_open: Option<OnOpen>,
    inner: Mutex<Inner>,
    /// When a damaged file was set aside.
    recovered_at: Mutex<Option<Instant>>,
    /// Held while the store is opened, which may take as long as other processes keep it locked. Never waited for.
    opening: Mutex<()>,
    /// Whether a background thread is checking or opening the store.
    is_refreshing: AtomicBool,
    /// Whether `opening` is held. Probing that lock itself could make another thread's attempt fail.
    is_in_retry: AtomicBool,
    /// Reads the file's backlog while the store can't be opened.
    view: BacklogView,
    /// Writes that were refused since the start, because they may conflict with what is stored.
    refused: AtomicU64,
    /// When that was logged last.
    refusal_said_at: Mutex<Option<Instant>>,
    /// The entities of writes whose commit failed but may have stored them nonetheless.
    uncertain: Mutex<Uncertain>,
    /// The problems that were logged.
    said: Mutex<Said>,
    /// Stores that were moved away while they held messages.
    moved: MovedStores,
}

#[derive(Default)]
struct Uncertain {
    entities: HashSet<EntityKey>,
    /// Whether there are too many, or one of the writes names none.
    is_all: bool,
}

impl Uncertain {
    fn may_hold(&self, touches: &[Touch]) -> bool {
        let is_any = self.is_all || !self.entities.is_empty();
        is_any && (self.is_all || touches.is_empty() || touches.iter().any(|touch| self.entities.contains(&touch.key)))
    }
}

enum Inner {
    Open { store: Arc<dyn Store>, file: Option<FileId>, beside: Vec<(PathBuf, FileId)>, looked_at: Instant },
    Unavailable(Unavailable),
}

/// Why there is no store, and what can still be read.
struct Unavailable {
    error: Arc<StoreError>,
    since: Instant,
    tried_at: Option<Instant>,
    cause: Cause,
    /// The store that failed, where its readers may still work.
    failed: Option<Arc<dyn Store>>,
    /// Writes that were refused since, because they may conflict with what is stored.
    refused: u64,
}

impl Unavailable {
    fn new(error: Arc<StoreError>, tried_at: Option<Instant>, cause: Cause, failed: Option<Arc<dyn Store>>) -> Self {
        Self { error, since: Instant::now(), tried_at, cause, failed, refused: 0 }
    }

    fn is_retry_due(&self) -> bool {
        self.tried_at.is_none_or(|tried_at| tried_at.elapsed() >= RETRY_AFTER)
    }

    /// Takes out the failed store, to be closed. One whose file is gone stays open: it is the only way to its messages.
    fn take_failed(&mut self) -> Option<Arc<dyn Store>> {
        self.failed.take().filter(|_| !matches!(self.cause, Cause::Deleted(_) | Cause::Moved(_)))
    }
}

/// Marks that a thread opens the store, until it is dropped.
struct InRetry<'a>(&'a AtomicBool);

impl<'a> InRetry<'a> {
    fn new(flag: &'a AtomicBool) -> Self {
        flag.store(true, Ordering::Release);
        Self(flag)
    }
}

impl Drop for InRetry<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The one thread that refreshes a slot, until it is dropped.
struct Refreshing(Arc<StoreSlot>);

impl Drop for Refreshing {
    fn drop(&mut self) {
        self.0.is_refreshing.store(false, Ordering::Release);
    }
}

/// What has to be done before a store is opened again.
#[derive(Clone)]
enum Cause {
    Nothing,
    Damaged(Damage),
    /// Its file was deleted, and this is the only way to it.
    Deleted(Detached),
    Moved(Detached),
}

/// A store whose file was deleted or moved.
#[derive(Clone)]
struct Detached {
    store: Arc<dyn Store>,
    /// The engine's files beside it, which may have stayed where they were.
    beside: Vec<(PathBuf, FileId)>,
}

impl Detached {
    /// Checkpoints the store's log into its file, wherever that is, and removes the files beside it: a new store would
    /// read the log as its own and map the shared memory of the old one.
    ///
    /// With `only_if_written` a log that could not be checkpointed stays: its file is elsewhere without it, and the
    /// process that opens a store here next recovers its messages.
    fn checkpoint_and_detach(&self, only_if_written: bool) {
        if let Err(error) = self.store.compact() {
            warn!(target: "db_manager", "cannot checkpoint the log of the moved or deleted file: {error}");
        }
        for (path, file) in &self.beside {
            let is_empty = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0);
            let is_log = path.as_os_str().as_encoded_bytes().ends_with(b"-wal");
            if FileId::at(path) == Some(*file)
                && (is_empty || !is_log || !only_if_written)
                && let Err(error) = std::fs::remove_file(path)
            {
                warn!(target: "db_manager", "cannot remove {} of an earlier file: {error}", path.display());
            }
        }
    }
}

/// A file that was found damaged while it was open, and what is wrong with it.
#[derive(Clone)]
struct Damage {
    file: FileId,
    reason: String,
}

impl Inner {
    fn open(store: Arc<dyn Store>, path: Option<&Path>) -> Self {
        let mut beside = Vec::new();
        if let Some(real) = path.and_then(|path| std::fs::canonicalize(path).ok()) {
            for suffix in ["-wal", "-shm"] {
                let mut name = real.clone().into_os_string();
                name.push(suffix);
                let name = PathBuf::from(name);
                beside.extend(FileId::at(&name).map(|file| (name, file)));
            }
        }
        Self::Open { store, file: path.and_then(FileId::at), beside, looked_at: Instant::now() }
    }
}

/// Logs that the store became unavailable: once per reason, however often that recurs.
fn warn_of_loss(said: &mut Said, error: &StoreError) {
    if !said.is_new(&error.to_string(), Instant::now()) {
        return;
    }
    error!(
        target: "db_manager",
        "NOT PROTECTED: some network resiliency features were disabled: until the store can be used, nothing is stored, \
         and writes are forwarded only if they overtake none of its messages: {error}"
    );
}

/// The state of a slot, for `status`.
#[derive(Clone, Debug)]
pub enum SlotState {
    /// The store is open.
    Open,
    /// No store can be used.
    Unavailable {
        /// Why.
        error: Arc<StoreError>,
        /// Since when, as a duration.
        lasting: Duration,
        /// How many writes were refused since, because they may conflict with stored messages.
        refused: u64,
    },
}

impl StoreSlot {
    /// Returns the slot of the store at this path, and tries to open it, creating it if there is none.
    ///
    /// Never fails: why there is no store is the slot's state.
    pub fn at(path: &Path, limits: Limits) -> Self {
        Self::at_with(path, limits, Keys::default())
    }

    /// Returns the slot of the store at this path, encrypted with these keys; otherwise as [`StoreSlot::at`].
    pub fn at_with(path: &Path, limits: Limits, keys: Keys) -> Self {
        Self::with_rejected_room(path, limits, keys, RejectedRoom::default())
    }

    /// Returns the slot of a store in which rejected messages may keep this much; otherwise as [`StoreSlot::at_with`].
    pub fn with_rejected_room(path: &Path, limits: Limits, keys: Keys, rejected: RejectedRoom) -> Self {
        Self::decorated(path, limits, keys, rejected, None)
    }

    /// Returns the slot of a store that is used through a decorator; otherwise as [`StoreSlot::with_rejected_room`].
    pub fn decorated(
        path: &Path,
        limits: Limits,
        keys: Keys,
        rejected: RejectedRoom,
        decorator: Option<Decorator>,
    ) -> Self {
        let opening = SlotOpener { path: path.to_owned(), limits, keys, rejected };
        let keyless = opening.clone();
        let keyless = move || keyless.open_without_key();
        let opener = move |damage: Option<&Damage>| {
            let store = match damage {
                None => opening.open(),
                Some(Damage { file, reason }) => opening.recover(*file, reason),
            }?;
            Ok(match &decorator {
                None => store,
                Some(decorate) => decorate(store),
            })
        };
        Self { keyless: Some(Box::new(keyless)), ..Self::opened_by(Some(path.to_owned()), Box::new(opener)) }
    }

    /// Returns a slot that always holds this store.
    pub fn holding(store: Arc<dyn Store>) -> Self {
        Self::opened_by(None, Box::new(move |_| Ok(Arc::clone(&store))))
    }

    fn opened_by(file: Option<PathBuf>, opener: Opener) -> Self {
        let mut said = Said::default();
        let inner = match opener(None) {
            Ok(store) => Inner::open(store, file.as_deref()),
            Err(error) => {
                warn_of_loss(&mut said, &error);
                Inner::Unavailable(Unavailable::new(Arc::new(error), Some(Instant::now()), Cause::Nothing, None))
            }
        };
        let (recovered_at, opening) = (Mutex::new(None), Mutex::new(()));
        let (view, refused, refusal_said_at) = (BacklogView::default(), AtomicU64::new(0), Mutex::new(None));
        let (inner, uncertain) = (Mutex::new(inner), Mutex::default());
        let (said, moved) = (Mutex::new(said), MovedStores::default());
        Self {
            file,
            opener,
            keyless: None,
            on_open: None,
            inner,
            recovered_at,
            opening,
            is_refreshing: AtomicBool::new(false),
            is_in_retry: AtomicBool::new(false),
            view,
            refused,
            refusal_said_at,
            uncertain,
            said,
            moved,
        }
    }

    /// Runs `work` on every store that is opened, including the one that is open already: a record that has to be in it
    /// has to be in the next one, too. A store for which it fails counts as one that could not be opened.
    #[must_use]
    pub fn whenever_opened(
        mut self,
        work: impl Fn(&dyn Store) -> Result<(), StoreError> + Send + Sync + 'static,
    ) -> Self {
        if let Ok(store) = self.current()
            && let Err(error) = work(store.as_ref())
        {
            warn_of_loss(&mut self.said(), &error);
            let tried_at = Some(Instant::now());
            // Every process has to close an unproven store before it is used again.
            let failed = match error.is_unproven() {
                true => {
                    store.close();
                    None
                }
                false => Some(store),
            };
            *self.inner() = Inner::Unavailable(Unavailable::new(Arc::new(error), tried_at, Cause::Nothing, failed));
        }
        self.on_open = Some(Box::new(work));
        self
    }

    /// Runs `work` on the store, and reports its failure to the slot.
    ///
    /// # Errors
    ///
    /// Why there is no store, or how the work failed.
    pub fn with<T>(&self, work: impl FnOnce(&dyn Store) -> Result<T, StoreError>) -> Result<T, Arc<StoreError>> {
        let store = self.get()?;
        work(store.as_ref()).map_err(|error| {
            let error = Arc::new(error);
            self.report(&store, &error);
            error
        })
    }

    /// Returns the store, or why there is none.
    ///
    /// Reopens it if it is unavailable and the last try was some seconds ago, which may block for as long as other
    /// processes keep it locked; concurrent callers get the reason at once.
    ///
    /// # Errors
    ///
    /// The error of the last try.
    pub fn get(&self) -> Result<Arc<dyn Store>, Arc<StoreError>> {
        {
            self.check_replaced();
            match &*self.inner() {
                Inner::Open { store, .. } => return Ok(Arc::clone(store)),
                Inner::Unavailable(unavailable) if unavailable.is_retry_due() => {}
                Inner::Unavailable(Unavailable { error, .. }) => return Err(Arc::clone(error)),
            }
        }
        self.retry()
    }

    /// Returns the store if it is open, or why it is not. Reads the state only, so that it may be called on a runtime
    /// that serves clients; see [`StoreSlot::refresh`].
    ///
    /// # Errors
    ///
    /// The error of the last try.
    pub fn try_get(&self) -> Result<Arc<dyn Store>, Arc<StoreError>> {
        self.current()
    }

    /// Runs `work` on the store if it is open, and reports its failure to the slot; opens nothing, as
    /// [`StoreSlot::try_get`].
    ///
    /// # Errors
    ///
    /// Why there is no store, or how the work failed.
    pub fn try_with<T>(&self, work: impl FnOnce(&dyn Store) -> Result<T, StoreError>) -> Result<T, Arc<StoreError>> {
        let store = self.try_get()?;
        work(store.as_ref()).map_err(|error| {
            let error = Arc::new(error);
            self.try_report(&store, &error);
            error
        })
    }

    /// Checks the store, and opens it if it is unavailable, on a thread of its own, when either is due. Calls `done` at
    /// the end.
    ///
    /// Returns whether that began. It does not while another thread does it, or if nothing is due: then `done` is
    /// dropped, and [`StoreSlot::try_get`] returns the current state.
    pub fn refresh(self: &Arc<Self>, done: impl FnOnce() + Send + 'static) -> bool {
        if !self.is_due() || self.is_refreshing.swap(true, Ordering::AcqRel) {
            return false;
        }
        let refreshing = Refreshing(Arc::clone(self));
        let refresh = move || {
            // Why there is no store is the slot's state.
            drop(refreshing.0.get());
            drop(refreshing);
            done();
        };
        let spawned = thread::Builder::new().name("store-opener".into()).spawn(refresh);
        if let Err(error) = &spawned {
            warn!(target: "db_manager", "cannot start a thread to open the message store: {error}");
        }
        spawned.is_ok()
    }

    /// Returns whether a check or an attempt to open the store is due, and no other thread is opening it.
    pub(crate) fn is_due(&self) -> bool {
        match &*self.inner() {
            Inner::Open { looked_at, .. } => self.file.is_some() && looked_at.elapsed() >= LOOK_EVERY,
            Inner::Unavailable(unavailable) => unavailable.is_retry_due() && !self.is_in_retry.load(Ordering::Acquire),
        }
    }

    /// Opens the store now, unless it is open or another thread is opening it.
    ///
    /// # Errors
    ///
    /// Why it could not be opened, now or by the other thread.
    pub fn retry(&self) -> Result<Arc<dyn Store>, Arc<StoreError>> {
        let Ok(_opening) = self.opening.try_lock() else { return self.current() };
        let _in_retry = InRetry::new(&self.is_in_retry);
        if let Ok(store) = self.current() {
            return Ok(store);
        }
        // This process or another one may need exclusive access to the file.
        self.view.release();
        if self.file.as_deref().is_some_and(|path| open::unproven(path).is_some()) {
            self.close_failed();
        }
        let cause = match &*self.inner() {
            Inner::Unavailable(Unavailable { cause, .. }) => cause.clone(),
            Inner::Open { .. } => Cause::Nothing,
        };
        let opened = self.open_after(&cause).and_then(|store| match &self.on_open {
            Some(on_open) => on_open(store.as_ref()).map(|()| store),
            None => Ok(store),
        });
        let mut inner = self.inner();
        match opened {
            Ok(store) => {
                let was_unproven = matches!(&*inner, Inner::Unavailable(away) if away.error.is_unproven());
                let how = if was_unproven { ", after it was rewritten and synced" } else { "" };
                info!(target: "db_manager", "the message store can be used again{how}");
                self.said().works(Instant::now());
                *inner = Inner::open(Arc::clone(&store), self.file.as_deref());
                drop(inner);
                self.view.close();
                // From now on, the store itself shows whether they are stored.
                *self.uncertain() = Uncertain::default();
                Ok(store)
            }
            Err(error) => {
                let error = Arc::new(error);
                let tried_at = Some(Instant::now());
                // A proof that fails, for example, has a reason and a remedy of its own.
                if self.said().is_new(&error.to_string(), Instant::now()) {
                    error!(target: "db_manager", "the message store still can't be used: {error}");
                }
                match &mut *inner {
                    Inner::Unavailable(away) => (away.error, away.tried_at) = (Arc::clone(&error), tried_at),
                    Inner::Open { .. } => {
                        *inner = Inner::Unavailable(Unavailable::new(Arc::clone(&error), tried_at, cause, None))
                    }
                }
                drop(inner);
                if error.is_unproven() {
                    self.close_failed();
                }
                Err(error)
            }
        }
    }

    /// Closes the failed store, also for threads that still hold it while they wait for a server: as long as any
    /// process has it open, none can prove it.
    fn close_failed(&self) {
        let failed = match &mut *self.inner() {
            Inner::Unavailable(away) => away.take_failed(),
            Inner::Open { .. } => None,
        };
        // Closing takes a while, so the lock is not held.
        if let Some(failed) = failed {
            failed.close();
        }
    }

    /// Does what its cause requires, and opens the store.
    fn open_after(&self, cause: &Cause) -> Result<Arc<dyn Store>, StoreError> {
        match cause {
            Cause::Nothing => (self.opener)(None),
            Cause::Damaged(damage) => {
                let mut recovered_at = self.recovered_at.lock().unwrap_or_else(PoisonError::into_inner);
                if recovered_at.is_some_and(|at| at.elapsed() < RECOVER_AGAIN_AFTER) {
                    let at = self.file.as_deref().unwrap_or(Path::new("")).into();
                    return Err(StoreError::Damaged { at, reason: format!("{}, once more", damage.reason) });
                }
                let store = (self.opener)(Some(damage))?;
                *recovered_at = Some(Instant::now());
                Ok(store)
            }
            Cause::Deleted(gone) => {
                gone.checkpoint_and_detach(false);
                let store = (self.opener)(None)?;
                let rescued = rescue::rescue(gone.store.as_ref(), store.as_ref())?;
                warn!(target: "db_manager", rescued, "the messages of the deleted file are stored again");
                Ok(store)
            }
            Cause::Moved(gone) => {
                gone.checkpoint_and_detach(true);
                (self.opener)(None)
            }
        }
    }

    /// Returns whether notes about updates can be written now, as far as that is known.
    pub fn may_note(&self) -> bool {
        match &*self.inner() {
            Inner::Open { .. } => true,
            Inner::Unavailable(Unavailable { error, .. }) => error.lacks_key(),
        }
    }

    /// Notes updates of entities that reach the server before their create ([`super::Intake::note_updates_ahead`]),
    /// also in a store whose key is missing: notes are not encrypted, and processes that have the key need them.
    ///
    /// # Errors
    ///
    /// Why they could not be written.
    pub fn note_updates_ahead(
        &self,
        notes: &[(Lane, EntityKey)],
        unsure_before_ms: i64,
    ) -> Result<(), Arc<StoreError>> {
        let error = match self.with(|store| store.note_updates_ahead(notes, unsure_before_ms)) {
            Err(error) if error.lacks_key() => error,
            result => return result,
        };
        let failed = match &*self.inner() {
            Inner::Open { store, .. } => Some(Arc::clone(store)),
            Inner::Unavailable(away) => away.failed.clone(),
        };
        let store = match (failed, &self.keyless) {
            (Some(store), _) => store,
            (None, Some(open)) => open()?,
            (None, None) => return Err(error),
        };
        Ok(store.note_updates_ahead(notes, unsure_before_ms)?)
    }

    /// Reports how this store failed, so that it is reopened where that can help.
    ///
    /// Takes the store out of the slot if it can't be used or is damaged; one that is full or busy, or whose lease was
    /// lost, works.
    pub fn report(&self, failed_store: &Arc<dyn Store>, error: &Arc<StoreError>) {
        // Outside the lock: a write of another thread may still be going on in it.
        if self.take_failed(failed_store, error) {
            failed_store.close();
        }
    }

    /// The same for a runtime that serves clients: what has to be closed is closed by a thread of its own.
    pub fn try_report(&self, failed_store: &Arc<dyn Store>, error: &Arc<StoreError>) {
        if !self.take_failed(failed_store, error) {
            return;
        }
        let failed = Arc::clone(failed_store);
        if thread::Builder::new().name("store-closer".into()).spawn(move || failed.close()).is_err() {
            failed_store.close();
        }
    }

    /// Takes the store out of the slot if the error says that it can't be used; returns whether it has to be closed.
    fn take_failed(&self, failed_store: &Arc<dyn Store>, error: &Arc<StoreError>) -> bool {
        let lost = match **error {
            StoreError::Missing { .. }
            | StoreError::NotAStore { .. }
            | StoreError::NewerSchema { .. }
            | StoreError::OlderInUse { .. }
            | StoreError::Damaged { .. }
            | StoreError::KeyMissing { .. }
            | StoreError::WrongKey { .. }
            | StoreError::TooManyKeys { .. }
            | StoreError::Key(_)
            | StoreError::Unproven { .. }
            | StoreError::Unusable { .. } => true,
            StoreError::Full { .. }
            | StoreError::Busy { .. }
            | StoreError::AttachmentGone
            | StoreError::LeaseHeld { .. }
            | StoreError::DepotAway { .. }
            | StoreError::InDepot { .. }
            | StoreError::LeaseLost => false,
        };
        if let StoreError::Busy { .. } = **error
            && self.said().is_new(&error.to_string(), Instant::now())
        {
            warn!(
                target: "db_manager",
                "{error}; meanwhile nothing is stored, and writes that the Opik server does not take at once are refused with 503"
            );
        }
        let mut inner = self.inner();
        let Inner::Open { store, file, beside, .. } = &*inner else { return false };
        if lost && Arc::ptr_eq(store, failed_store) {
            let replaced = self.file.as_deref().is_some_and(|path| FileId::at(path) != *file);
            let cause = match (&**error, *file) {
                (_, Some(file)) if replaced => self.gone(store, file, beside),
                // It was one when it was opened.
                (StoreError::Damaged { reason, .. } | StoreError::NotAStore { reason, .. }, Some(file)) => {
                    Cause::Damaged(Damage { file, reason: reason.clone() })
                }
                _ => Cause::Nothing,
            };
            // A known remedy is applied at once; a failing disk is given time.
            let tried_at = (!replaced && matches!(cause, Cause::Nothing)).then(Instant::now);
            warn_of_loss(&mut self.said(), error);
            // Every process has to close an unproven store before it is used again. One of a newer schema can't be
            // read by this version, and an open handle would block the next migration.
            let is_of_use = !error.is_unproven() && !matches!(**error, StoreError::NewerSchema { .. });
            let failed = is_of_use.then(|| Arc::clone(store));
            let is_gone = matches!(cause, Cause::Deleted(_) | Cause::Moved(_));
            *inner = Inner::Unavailable(Unavailable::new(Arc::clone(error), tried_at, cause, failed));
            return error.is_unproven() && !is_gone;
        }
        false
    }

    /// Returns what can be seen of this server's messages while the store is unavailable: whether a write that touches
    /// these entities may conflict with it.
    ///
    /// A failed look-up makes it unknown. If the file was moved or deleted while it was open, its messages count
    /// together with those at the path by now.
    pub fn backlog_seen(&self, server: &Server, touches: &[Touch]) -> BacklogSeen {
        let (error, cause, failed) = match &*self.inner() {
            Inner::Open { store, .. } => (None, Cause::Nothing, Some(Arc::clone(store))),
            Inner::Unavailable(away) => (Some(Arc::clone(&away.error)), away.cause.clone(), away.failed.clone()),
        };
        let through = |store: &Arc<dyn Store>| store.backlog_seen(server, touches).ok();
        let at_path = || self.file.as_deref().map(|path| self.view.look(path, server, touches));
        let seen = match (error.as_deref(), &cause) {
            (_, Cause::Damaged(_)) => None,
            (_, Cause::Deleted(gone) | Cause::Moved(gone)) => {
                let (before, now) = (through(&gone.store), at_path());
                before.zip(now).map(|(before, now)| before.and(now))
            }
            (Some(StoreError::NewerSchema { .. } | StoreError::Damaged { .. }), _) => None,
            // Checked when it was opened: nothing in it is ours.
            (Some(StoreError::NotAStore { .. }), _) => Some(BacklogSeen::NeverWas),
            (_, Cause::Nothing) => failed.as_ref().and_then(through).or_else(at_path),
        };
        let seen = seen.unwrap_or(BacklogSeen::Unknown);
        match seen != BacklogSeen::Unknown && self.uncertain().may_hold(touches) {
            true => BacklogSeen::Holds { waiting: true, conflicting: true },
            false => seen,
        }
    }

    /// Notes that the commit of these messages failed with an I/O error. Their frames may be whole nonetheless: then
    /// the proof finds them, and they are delivered after what their client sends meanwhile. So until the store can be
    /// used again, writes about the same entities conflict with them.
    pub(super) fn note_uncertain(&self, messages: &[Message]) {
        let mut uncertain = self.uncertain();
        for message in messages {
            uncertain.is_all |= message.touches.is_empty() || uncertain.entities.len() > UNCERTAIN_MAX;
            if !uncertain.is_all {
                uncertain.entities.extend(message.touches.iter().map(|touch| touch.key));
            }
        }
    }

    fn uncertain(&self) -> MutexGuard<'_, Uncertain> {
        // A panic leaves it valid.
        self.uncertain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a write that was refused because it may conflict with stored messages, and logs it at a limited rate: a
    /// store on a failing disk comes and goes every few seconds.
    pub fn note_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let error = match &mut *self.inner() {
            Inner::Unavailable(away) => {
                away.refused += 1;
                Arc::clone(&away.error)
            }
            Inner::Open { .. } => {
                let words = "writes that may conflict with what waits in";
                if let Some(path) = self.moved.paths().first()
                    && self.said().is_new(&format!("{words} {}", path.display()), Instant::now())
                {
                    warn!(
                        target: "db_manager",
                        "{words} {0} are refused with 503: it was moved away while it was in use; move it back, or deliver \
                         what it holds with {1}",
                        path.display(),
                        hint::command(&format!("replay --db {}", shell_word(path.as_os_str())))
                    );
                }
                return;
            }
        };
        let mut said_at = self.refusal_said_at.lock().unwrap_or_else(PoisonError::into_inner);
        if said_at.is_none_or(|at| at.elapsed() >= SAY_AGAIN_AFTER) {
            *said_at = Some(Instant::now());
            warn!(
                target: "db_manager",
                "writes that may conflict with what waits in the message store are refused with 503: {error}"
            );
        }
    }

    /// Returns the path of the store; `None` for a store without a file (a test double).
    pub fn path(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Returns how many writes were refused since the start, because they may conflict with what is stored.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Returns whether a thread is opening the store, which takes as long as recovery or migration takes.
    pub fn is_opening(&self) -> bool {
        self.opening.try_lock().is_err()
    }

    /// Returns since when and why the store has to be rewritten and synced before it is used again.
    pub fn unproven(&self) -> Option<Unproven> {
        open::unproven(self.file.as_deref()?)
    }

    /// Returns the state of the slot, without opening anything.
    pub fn state(&self) -> SlotState {
        match &*self.inner() {
            Inner::Open { .. } => SlotState::Open,
            Inner::Unavailable(Unavailable { error, since, refused, .. }) => {
                SlotState::Unavailable { error: Arc::clone(error), lasting: since.elapsed(), refused: *refused }
            }
        }
    }

    fn current(&self) -> Result<Arc<dyn Store>, Arc<StoreError>> {
        match &*self.inner() {
            Inner::Open { store, .. } => Ok(Arc::clone(store)),
            Inner::Unavailable(Unavailable { error, .. }) => Err(Arc::clone(error)),
        }
    }

    /// Takes the store out if its file is no longer the one at the path, or an I/O error made it unproven.
    fn check_replaced(&self) {
        let to_close = self.take_replaced(&mut self.inner());
        // Closing waits for the writes of other threads, and nobody waits for it.
        if let Some(store) = to_close {
            store.close();
        }
    }

    /// The locked part of [`StoreSlot::check_replaced`]; returns a store that has to be closed.
    fn take_replaced(&self, inner: &mut Inner) -> Option<Arc<dyn Store>> {
        let path = self.file.as_deref()?;
        let (store, file, beside, looked_at) = match &mut *inner {
            Inner::Open { store, file, beside, looked_at } => (store, file, beside, looked_at),
            // A store can't be proven while this process keeps it open only to read it.
            Inner::Unavailable(away) if away.failed.is_some() && open::unproven(path).is_some() => {
                return away.take_failed();
            }
            Inner::Unavailable(_) => return None,
        };
        if looked_at.elapsed() < LOOK_EVERY {
            return None;
        }
        *looked_at = Instant::now();
        if Arc::strong_count(store) == 1 && store.has_to_be_reopened() {
            let reason = "it is opened again now that its disk has room".into();
            let error = Arc::new(StoreError::Unusable { at: path.into(), reason });
            *inner = Inner::Unavailable(Unavailable::new(error, None, Cause::Nothing, None));
            return None;
        }
        if FileId::at(path) != *file {
            let reason = "its file was removed or replaced while it was open".into();
            let error = Arc::new(StoreError::Unusable { at: path.into(), reason });
            warn_of_loss(&mut self.said(), &error);
            let cause = file.map_or(Cause::Nothing, |file| self.gone(store, file, beside));
            let failed = Some(Arc::clone(store));
            *inner = Inner::Unavailable(Unavailable::new(error, None, cause, failed));
        } else if let Some(Unproven { reason, .. }) = open::unproven(path) {
            // Another process, or another thread of this one, has seen an error. All have to close it before it is
            // proven.
            let error = Arc::new(StoreError::Unproven { at: path.into(), reason });
            warn_of_loss(&mut self.said(), &error);
            let to_close = Arc::clone(store);
            *inner = Inner::Unavailable(Unavailable::new(error, Some(Instant::now()), Cause::Nothing, None));
            return Some(to_close);
        }
        None
    }

    /// Returns what happened to the file of an open store that is no longer at its path.
    fn gone(&self, store: &Arc<dyn Store>, file: FileId, beside: &[(PathBuf, FileId)]) -> Cause {
        let Some(path) = self.file.as_deref() else { return Cause::Nothing };
        if file.is_deleted() {
            error!(target: "db_manager", "{} was deleted while it was in use; its messages are stored again", path.display());
            return Cause::Deleted(Detached { store: Arc::clone(store), beside: beside.to_vec() });
        }
        if open::is_set_aside(file, path) {
            // Another process recovers it, or has done so.
            return Cause::Nothing;
        }
        error!(
            target: "db_manager",
            "{} was moved while it was in use; its messages are delivered once it is moved back or named with --db",
            path.display()
        );
        self.moved.watch(file);
        Cause::Moved(Detached { store: Arc::clone(store), beside: beside.to_vec() })
    }

    /// Returns the combined backlog for this server in stores that were moved away; `None` if there is none.
    ///
    /// Call it after [`StoreSlot::get`], which detects that a store was moved.
    pub fn seen_in_moved(&self, server: &Server, touches: &[Touch]) -> Option<BacklogSeen> {
        let open = match &*self.inner() {
            Inner::Open { file, .. } => *file,
            Inner::Unavailable(_) => None,
        };
        self.moved.seen(open, server, touches)
    }

    /// Returns whether this message may conflict with what waits in a store that was moved away.
    pub(super) fn is_behind_moved(&self, message: &Message) -> bool {
        let Some(server) = &message.lane.server else { return false };
        let seen = self.seen_in_moved(server, &message.touches);
        matches!(seen, Some(BacklogSeen::Unknown | BacklogSeen::Holds { conflicting: true, .. }))
    }

    /// Returns whether a store was moved away with messages in it, as far as is known.
    pub(crate) fn has_moved(&self) -> bool {
        !self.moved.is_empty()
    }

    /// Returns the current paths of stores that were moved away with messages in them.
    pub fn moved(&self) -> Vec<PathBuf> {
        self.moved.paths()
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change is one assignment, so a panic elsewhere leaves it consistent.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
