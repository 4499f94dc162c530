//! Adoption: orphaned stores of the Python SDK are salvaged without a request (`--adopt-orphans`).
//!
//! A process that was killed leaves its store in the temporary folder. The agent looks there when it starts and every
//! few seconds, salvages each store that no living process holds open, and deletes it once every message is safe. The
//! store of a living process is left alone until the process has ended.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing::{info, warn};

use super::file::SdkFile;
use super::orphan::{self, Orphan, OrphanMark};
use super::salvage::{Salvage, SalvageError, SalvageTarget, is_agent_at, remove_source};
use super::trust::FileOwner;
use crate::message::{Lane, Server};
use crate::shutdown::Shutdown;
use crate::store::StoreError;
use crate::store::slot::StoreSlot;

/// How often the temporary folder is searched.
const SEARCH_INTERVAL: Duration = Duration::from_secs(10);

/// How orphans are adopted.
#[derive(Clone, Debug)]
pub(crate) struct Adoption {
    /// Where they are, and where their private copies are made.
    pub temp_dir: PathBuf,
    /// The lane of their messages: the files name neither workspace nor key. A file that names another server is left.
    pub lane: Lane,
    /// Where the agent listens: clients that were configured for it name it as their server.
    pub listen: SocketAddr,
}

impl Adoption {
    /// Adopts orphans until shutdown.
    pub(crate) fn run(&self, slot: &StoreSlot, shutdown: &Shutdown) {
        // Files that stay although all of their rows are stored: a salvage is retried only after a change.
        let mut done: Vec<OrphanMark> = Vec::new();
        loop {
            let orphans = orphan::find(&self.temp_dir);
            done.retain(|mark| orphans.iter().any(|orphan| orphan.mark == *mark));
            for orphan in orphans {
                if shutdown.is_requested() {
                    return;
                }
                if !done.contains(&orphan.mark) && self.adopt(slot, &orphan, shutdown) {
                    done.push(orphan.mark);
                }
            }
            if shutdown.sleep(SEARCH_INTERVAL) {
                return;
            }
        }
    }

    /// Adopts one orphan; returns whether it need not be retried.
    fn adopt(&self, slot: &StoreSlot, orphan: &Orphan, shutdown: &Shutdown) -> bool {
        // Without a store there is nowhere to put its rows; the slot has reported that.
        let Ok(store) = slot.get() else { return false };
        let opened = SdkFile::open(&orphan.path, &self.temp_dir, FileOwner::this_user(), shutdown);
        let salvaged = opened.map_err(SalvageError::from).and_then(|mut file| {
            let salvage = Salvage {
                target: SalvageTarget::Store(store.as_ref()),
                folders: &file.attachment_folders(&self.temp_dir, &[]),
                lane: &self.lane,
                is_same_server: &|named: &Server| is_agent_at(named, self.listen),
                shutdown,
            };
            salvage.run(&mut file).map(|salvaged| (file, salvaged))
        });
        match salvaged {
            Ok((file, salvaged)) => {
                info!(
                    target: "replay_manager",
                    path = %orphan.path.display(), messages = salvaged.taken, rejected = salvaged.rejected,
                    known = salvaged.known, unread = salvaged.unread,
                    "stored the messages that a Python process left"
                );
                if let Err(error) = remove_source(&file, &salvaged) {
                    warn!(target: "replay_manager", "{error}");
                }
                true
            }
            Err(SalvageError::Interrupted { .. }) => false,
            Err(SalvageError::Store(error)) => {
                warn!(target: "replay_manager", "cannot salvage {} yet, will retry: {error}", orphan.path.display());
                // A full store has room again later; any other failure is for the slot to heal.
                if !matches!(error, StoreError::Full { .. }) {
                    slot.report(&store, &std::sync::Arc::new(error));
                }
                false
            }
            Err(error) => {
                warn!(target: "replay_manager", "cannot salvage an orphaned store: {error}");
                true
            }
        }
    }
}
