//! The place of a store that may be missing for a while.
//!
//! An agent whose store can't be used goes on as a plain proxy and tries again (design.md, section 5). This is what it
//! holds instead of a store: either an open one, or the reason why there is none.
//!
//! ```text
//!              opened                    report(unusable, damaged ...)
//!   (start) ─────────▶ open ────────────────────────────────────────▶ away
//!                       ▲  │ file removed or replaced (seen once a second)  │
//!                       │  └────────────────────────────────────────────────▶│
//!                       └────────────── get, every few seconds ◀─────────────┘
//! ```
//!
//! A store that comes back after a full disk is only known to work once something was written, so a slot that found it
//! openable again shows it as open; the next failed write is reported and the wait starts over.
//!
//! Whoever uses the store says how it failed ([`StoreSlot::report`], or by itself through [`StoreSlot::with`]).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{error, info};

use super::sqlite::FileId;
use super::{Keys, Limits, OpenMode, Store, StoreError};

/// How long a slot waits before it tries to open its store again.
const RETRY_AFTER: Duration = Duration::from_secs(3);
/// How often a slot looks whether the file is still the one that it opened.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Opener = Box<dyn Fn() -> Result<Arc<dyn Store>, StoreError> + Send + Sync>;
type OnOpen = Box<dyn Fn(&dyn Store) + Send + Sync>;

/// A store, or the reason why there is none right now. Heals by itself when it is used.
pub struct StoreSlot {
    /// The file to watch; a store without one (a test double) is never looked after.
    file: Option<PathBuf>,
    opener: Opener,
    on_open: Option<OnOpen>,
    inner: Mutex<Inner>,
    /// Held while the store is opened, which may take as long as other processes keep it locked. Nobody waits for it.
    opening: Mutex<()>,
}

enum Inner {
    Open { store: Arc<dyn Store>, file: Option<FileId>, looked_at: Instant },
    Away { error: Arc<StoreError>, since: Instant, tried_at: Option<Instant> },
}

impl Inner {
    fn open(store: Arc<dyn Store>, path: Option<&Path>) -> Self {
        Self::Open { store, file: path.and_then(FileId::at), looked_at: Instant::now() }
    }
}

/// Says what the user has to know when a store went away. Once for each time, and not while it stays away.
fn warn_of_loss(error: &StoreError) {
    error!(
        target: "db_manager",
        "some network resiliency features were disabled, writes are only passed on until the store can be used: {error}"
    );
}

/// How a slot stands, for `status`.
#[derive(Clone, Debug)]
pub enum SlotState {
    /// The store is open.
    Open,
    /// There is none that could be used.
    Away {
        /// Why.
        error: Arc<StoreError>,
        /// For how long.
        lasting: Duration,
    },
}

impl StoreSlot {
    /// Returns the slot of the store at this path, and tries to open it, making it where there is none.
    ///
    /// Never fails: why there is no store is the slot's state.
    pub fn at(path: &Path, limits: Limits) -> Self {
        Self::at_with(path, limits, Keys::default())
    }

    /// Returns the slot of the store at this path, sealed with these keys; else as [`StoreSlot::at`].
    pub fn at_with(path: &Path, limits: Limits, keys: Keys) -> Self {
        let owned = path.to_owned();
        let opener = move || super::open_with(&owned, OpenMode::CreateIfMissing, limits, &keys);
        Self::opened_by(Some(path.to_owned()), Box::new(opener))
    }

    /// Returns a slot that always holds this store.
    pub fn holding(store: Arc<dyn Store>) -> Self {
        Self::opened_by(None, Box::new(move || Ok(Arc::clone(&store))))
    }

    fn opened_by(file: Option<PathBuf>, opener: Opener) -> Self {
        let inner = match opener() {
            Ok(store) => Inner::open(store, file.as_deref()),
            Err(error) => {
                warn_of_loss(&error);
                Inner::Away { error: Arc::new(error), since: Instant::now(), tried_at: Some(Instant::now()) }
            }
        };
        Self { file, opener, on_open: None, inner: Mutex::new(inner), opening: Mutex::new(()) }
    }

    /// Does this with every store that is opened, the one that is open already included: what has to be in it has to be
    /// in the next one, too.
    #[must_use]
    pub fn whenever_opened(mut self, work: impl Fn(&dyn Store) + Send + Sync + 'static) -> Self {
        if let Ok(store) = self.current() {
            work(store.as_ref());
        }
        self.on_open = Some(Box::new(work));
        self
    }

    /// Does this with the store, and tells the slot when that failed.
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
    /// Opens it again when it is away and the last try was some seconds ago, which may block for as long as other
    /// processes keep it locked; callers that come meanwhile get the reason at once.
    ///
    /// # Errors
    ///
    /// The error of the last try.
    pub fn get(&self) -> Result<Arc<dyn Store>, Arc<StoreError>> {
        {
            let mut inner = self.inner();
            self.look_after(&mut inner);
            match &*inner {
                Inner::Open { store, .. } => return Ok(Arc::clone(store)),
                Inner::Away { error, tried_at, .. } => {
                    if tried_at.is_some_and(|tried_at| tried_at.elapsed() < RETRY_AFTER) {
                        return Err(Arc::clone(error));
                    }
                }
            }
        }
        self.retry()
    }

    /// Opens the store now, unless it is open or another thread is at it.
    ///
    /// # Errors
    ///
    /// Why it could not be opened, now or by the thread that is at it.
    pub fn retry(&self) -> Result<Arc<dyn Store>, Arc<StoreError>> {
        let Ok(_opening) = self.opening.try_lock() else { return self.current() };
        if let Ok(store) = self.current() {
            return Ok(store);
        }
        let opened = (self.opener)();
        if let (Ok(store), Some(on_open)) = (&opened, &self.on_open) {
            on_open(store.as_ref());
        }
        let mut inner = self.inner();
        match opened {
            Ok(store) => {
                info!(target: "db_manager", "the message store can be used again");
                *inner = Inner::open(Arc::clone(&store), self.file.as_deref());
                Ok(store)
            }
            Err(error) => {
                let error = Arc::new(error);
                let since = match &*inner {
                    Inner::Away { since, .. } => *since,
                    Inner::Open { .. } => Instant::now(),
                };
                *inner = Inner::Away { error: Arc::clone(&error), since, tried_at: Some(Instant::now()) };
                Err(error)
            }
        }
    }

    /// Tells the slot how this store failed, so that it is opened anew where that can help.
    ///
    /// Takes the store out when it can't be used or is damaged; one that is full or busy, or whose lease was lost, works.
    pub fn report(&self, failed: &Arc<dyn Store>, error: &Arc<StoreError>) {
        let lost = match **error {
            StoreError::Missing { .. }
            | StoreError::NotAStore { .. }
            | StoreError::NewerSchema { .. }
            | StoreError::Damaged { .. }
            | StoreError::KeyMissing { .. }
            | StoreError::WrongKey { .. }
            | StoreError::TooManyKeys { .. }
            | StoreError::Key(_)
            | StoreError::Unusable { .. } => true,
            StoreError::Full { .. }
            | StoreError::Busy { .. }
            | StoreError::AttachmentGone
            | StoreError::LeaseHeld { .. }
            | StoreError::LeaseLost => false,
        };
        let mut inner = self.inner();
        let Inner::Open { store, file, .. } = &*inner else { return };
        if lost && Arc::ptr_eq(store, failed) {
            // Another file at the path is a reason to look at once, a sick disk is one to wait.
            let replaced = self.file.as_deref().is_some_and(|path| FileId::at(path) != *file);
            let tried_at = (!replaced).then(Instant::now);
            warn_of_loss(error);
            *inner = Inner::Away { error: Arc::clone(error), since: Instant::now(), tried_at };
        }
    }

    /// Says whether a thread opens the store just now, which takes as long as there is to recover or to bring up to date.
    pub fn is_opening(&self) -> bool {
        self.opening.try_lock().is_err()
    }

    /// Returns how the slot stands, without trying anything.
    pub fn state(&self) -> SlotState {
        match &*self.inner() {
            Inner::Open { .. } => SlotState::Open,
            Inner::Away { error, since, .. } => SlotState::Away { error: Arc::clone(error), lasting: since.elapsed() },
        }
    }

    fn current(&self) -> Result<Arc<dyn Store>, Arc<StoreError>> {
        match &*self.inner() {
            Inner::Open { store, .. } => Ok(Arc::clone(store)),
            Inner::Away { error, .. } => Err(Arc::clone(error)),
        }
    }

    /// Takes the store out when its file is not the one at the path any more.
    fn look_after(&self, inner: &mut Inner) {
        let (Some(path), Inner::Open { file, looked_at, .. }) = (self.file.as_deref(), &mut *inner) else { return };
        if looked_at.elapsed() < LOOK_EVERY {
            return;
        }
        *looked_at = Instant::now();
        if FileId::at(path) != *file {
            let reason = "its file was removed or replaced while it was open".into();
            let error = Arc::new(StoreError::Unusable { path: path.to_owned(), reason });
            warn_of_loss(&error);
            *inner = Inner::Away { error, since: Instant::now(), tried_at: None };
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change is one assignment, so a panic elsewhere left it whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
