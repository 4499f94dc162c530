//! Orphaned stores of the Python SDK, taken in without anybody's asking (`--adopt-orphans`).
//!
//! A process that was killed leaves its store in the temporary folder. The agent looks there at its start and every few
//! seconds, takes in what no living process holds open, and deletes it when every message is safe. A store whose process
//! lives is left alone until it has ended.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing::{info, warn};

use super::file::SdkFile;
use super::orphan::{self, Orphan, OrphanMark};
use super::salvage::{SalvageError, Target, is_agent_at, remove_source, salvage};
use super::trust::FileOwner;
use crate::message::{Lane, Server};
use crate::shutdown::Shutdown;
use crate::store::StoreError;
use crate::store::slot::StoreSlot;

/// How often the temporary folder is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// How orphans are adopted.
#[derive(Clone, Debug)]
pub struct Adoption {
    /// Where they lie, and where their private copies are made.
    pub temp_dir: PathBuf,
    /// Where their messages belong: the files name neither workspace nor key. One that names another server is left.
    pub lane: Lane,
    /// Where the agent listens: clients that were configured for it take that for their server.
    pub listen: SocketAddr,
}

impl Adoption {
    /// Adopts orphans until the shutdown.
    pub fn run(&self, slot: &StoreSlot, shutdown: &Shutdown) {
        // Files that stay although all of them is stored: each is looked at again only when it has changed.
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
            if shutdown.sleep(LOOK_INTERVAL) {
                return;
            }
        }
    }

    /// Adopts one; says whether it need not be tried again.
    fn adopt(&self, slot: &StoreSlot, orphan: &Orphan, shutdown: &Shutdown) -> bool {
        // Without a store there is nowhere to put it, and the slot has said so.
        let Ok(store) = slot.get() else { return false };
        let opened = SdkFile::open(&orphan.path, &self.temp_dir, FileOwner::this_user(), shutdown);
        let salvaged = opened.map_err(SalvageError::from).and_then(|mut file| {
            let is_same = |named: &Server| is_agent_at(named, self.listen);
            let folders = file.attachment_folders(&self.temp_dir, &[]);
            let target = Target::Store(store.as_ref());
            salvage(target, &mut file, &folders, &self.lane, &is_same, shutdown).map(|salvaged| (file, salvaged))
        });
        match salvaged {
            Ok((file, salvaged)) => {
                info!(
                    target: "replay_manager",
                    path = %orphan.path.display(), messages = salvaged.taken, rejected = salvaged.rejected,
                    known = salvaged.known, unread = salvaged.unread,
                    "took in what a Python process left"
                );
                if let Err(error) = remove_source(&file, &salvaged) {
                    warn!(target: "replay_manager", "{error}");
                }
                true
            }
            Err(SalvageError::Interrupted { .. }) => false,
            Err(SalvageError::Store(error)) => {
                warn!(target: "replay_manager", "{} waits: {error}", orphan.path.display());
                // A full store has room again later; one that is sick is for the slot to heal.
                if !matches!(error, StoreError::Full { .. }) {
                    slot.report(&store, &std::sync::Arc::new(error));
                }
                false
            }
            Err(error) => {
                warn!(target: "replay_manager", "an orphaned store is not taken in: {error}");
                true
            }
        }
    }
}
