//! Checks of the store: its file, its encryption, its disk and its file system; and re-encryption.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Health;
use super::check::{Check, FailureCause};
use crate::delivery::id_window;
use crate::figures::{count, size, time, too_old};
use crate::replay::near_id_window;
use crate::store::full_state::remedies;
use crate::store::{
    self, Backlog, Condition, Filter, KeyState, Keys, OpenMode, Resealed, Resealing, Store, StoreError, mount, now_ms,
    place,
};

/// Stores up to this size are read page by page without `--full`.
const SMALL_STORE_BYTES: u64 = 256 * 1024 * 1024;
/// A store counts as nearly full above this percentage of its maximum size.
const NEARLY_FULL_PERCENT: u64 = 90;
/// How often the progress of a long re-encryption is reported.
const RESEAL_REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// The state of the store, as its check reads it.
struct StoreFindings {
    /// Corrupt pages; `None` if the pages were not read.
    problems: Option<Vec<String>>,
    condition: Condition,
    backlog: Backlog,
    /// When the oldest create was accepted that is near the age at which servers reject it.
    near_id_window_ms: Option<i64>,
}

impl Health<'_> {
    /// Checks that the store can be opened, is sound and has room.
    pub(super) fn store(&self) -> Check {
        const NAME: &str = "store";
        let path = self.store_path.display();
        let findings = match self.read_store() {
            Ok(findings) => findings,
            Err(StoreError::Missing { .. }) => return self.missing_store(),
            Err(error) => return Check::error(NAME, error),
        };
        if let Some(problems) = findings.problems.as_ref().filter(|problems| !problems.is_empty()) {
            let text = format!("{path}: {}", problems.join("; "));
            return Check::failed(
                NAME,
                FailureCause::Failure,
                text,
                "keep a copy of the file, and replay what can be read",
            );
        }
        let mut text = self.store_text(&findings);
        let StoreFindings { condition, backlog, near_id_window_ms, .. } = findings;
        if let Some(full) = &condition.full {
            let since = condition.full_record.since_ms.map_or(String::new(), |at_ms| format!(" since {}", time(at_ms)));
            text.push_str(&format!("; it is full{since}: {}", full.reason));
            let remedies = remedies(full.limit, backlog.waiting(), backlog.rejected(), &self.store_flags);
            return Check::failed(NAME, FailureCause::Failure, text, remedies.join("; "));
        }
        if let Some(last) = condition.recoveries.iter().rfind(|recovery| recovery.is_kept) {
            let (recovered, lost) = (last.recovered, last.lost);
            let recovered = count(recovered, "message");
            text.push_str(&format!("; its file was damaged: {recovered} recovered, {lost} lost"));
            let aside = &last.set_aside;
            return Check::warning(NAME, text, format!("check the disk; delete {aside} once you don't need it"));
        }
        // Free pages are used again before the file grows.
        let used = condition.file_bytes.saturating_sub(condition.free_bytes);
        let is_nearly_full = used > self.store_limits.size_max / 100 * NEARLY_FULL_PERCENT;
        match is_nearly_full {
            true => Check::warning(NAME, text, "replay or purge messages, or raise OPIK_OFFLINE_MAX_SIZE"),
            false if backlog.held() > 0 || near_id_window_ms.is_some() => Check::warning(NAME, text, id_window::REMEDY),
            false => Check::good(NAME, text),
        }
    }

    /// Returns the check of a store that is not there. Before the first start of an agent that is as it should be, but
    /// whoever names a path may have misspelled it.
    fn missing_store(&self) -> Check {
        const NAME: &str = "store";
        let path = self.store_path.display();
        let Some(origin) = &self.store_named_by else {
            return Check::note(NAME, format!("{path}: nothing was stored yet"));
        };
        let folder = self.store_path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let folder = folder.map_or(String::new(), |folder| format!(", nor a folder {}", folder.display()));
        Check::warning(
            NAME,
            format!("{path}: there is no message store{folder}, named by {origin}"),
            "check the path; an agent makes the file when it starts",
        )
    }

    /// Reads the state of the store. A store whose last sync failed is proven first.
    fn read_store(&self) -> Result<StoreFindings, StoreError> {
        let keys = (self.store_keys)();
        store::prove(self.store_path)?;
        let store = store::open_with(self.store_path, OpenMode::Existing, self.store_limits, &keys?)?;
        let condition = store.condition()?;
        let is_read = self.full || condition.file_bytes <= SMALL_STORE_BYTES;
        let backlog = store.backlog(&Filter::default())?;
        let near_id_window_ms = near_id_window(store.as_ref(), now_ms())?;
        let problems = if is_read { Some(store.check()?) } else { None };
        Ok(StoreFindings { problems, condition, backlog, near_id_window_ms })
    }

    /// Returns how a sound store is described.
    fn store_text(&self, findings: &StoreFindings) -> String {
        let StoreFindings { problems, condition, backlog, near_id_window_ms } = findings;
        let looked = if problems.is_some() { "sound" } else { "can be opened (--full reads every page)" };
        let (used, max) = (size(condition.file_bytes), size(self.store_limits.size_max));
        let mut text = format!("{}: {looked}, {used} of at most {max}", self.store_path.display());
        for (dropped, why) in [
            (condition.dropped, "because the store was full"),
            (condition.rejected_dropped, "because rejected ones held more than rejected_share"),
            (condition.expired, too_old(condition.expired)),
        ] {
            if dropped > 0 {
                let were = if dropped == 1 { "was" } else { "were" };
                text.push_str(&format!("; {} {were} dropped {why}", count(dropped, "message")));
            }
        }
        if backlog.held() > 0 {
            let (are, their) = if backlog.held() == 1 { ("is", "its") } else { ("are", "their") };
            let held = count(backlog.held(), "message");
            text.push_str(&format!("; {held} {are} held, because {their} ids are outside the server's window"));
        } else if let Some(at_ms) = near_id_window_ms {
            let since = time(*at_ms);
            text.push_str(&format!("; a create has been waiting since {since}: servers may refuse ids older than 24h"));
        }
        if condition.full_record.refused > 0 {
            let refused = count(condition.full_record.refused, "write");
            text.push_str(&format!("; {refused} got a 503 because it was full"));
        }
        text
    }

    /// Checks whether stored messages are encrypted as configured, and whether the keys are there.
    pub(super) fn encryption(&self) -> Check {
        const NAME: &str = "encryption";
        const RESEAL: &str = "run `opik-offline healthcheck --reseal`";
        let keys = match (self.store_keys)() {
            Ok(keys) => keys,
            Err(error) => return Check::error(NAME, error),
        };
        let condition = self.store_without_key().and_then(|store| store.condition().ok());
        let Some(encryption) = condition.map(|condition| condition.encryption) else {
            return match &keys.current {
                Some(key) => Check::good(NAME, format!("on for the store when it is created, with key {}", key.id())),
                None => Check::note(NAME, "off"),
            };
        };
        match (encryption.sealed_with, encryption.key) {
            (_, KeyState::Missing | KeyState::Wrong) => {
                let needed = [encryption.sealed_with, encryption.previous].into_iter().flatten();
                let needed = needed.map(|key| key.to_string()).collect::<Vec<_>>().join(" and ");
                let given = [&keys.current, &keys.previous].into_iter().flatten();
                let given = given.map(|key| key.id().to_string()).collect::<Vec<_>>().join(" and ");
                let text = match given.is_empty() {
                    true => format!("the store needs key {needed}, and none is set"),
                    false => format!("the store needs key {needed}, and {given} is set"),
                };
                Check::failed(
                    NAME,
                    FailureCause::Failure,
                    text,
                    "set the key with that name; status and purge work without it",
                )
            }
            (Some(key), KeyState::Usable) if !encryption.is_complete => {
                let text = format!("on, with key {key}; the files may still hold unencrypted older data");
                Check::warning(NAME, text, RESEAL)
            }
            (Some(key), KeyState::Usable) if keys.current.as_ref().is_some_and(|current| current.id() != key) => {
                Check::warning(NAME, format!("on, with the previous key {key}"), RESEAL)
            }
            (Some(key), KeyState::Usable) => Check::good(NAME, format!("on, with key {key}")),
            (None, KeyState::Usable) if !encryption.is_complete => {
                Check::warning(NAME, "off; older messages may still be encrypted", RESEAL)
            }
            (None, KeyState::Usable) if keys.current.is_some() => {
                Check::warning(NAME, "off, although a key is set: the store is older than the setting", RESEAL)
            }
            (None, KeyState::Usable) => Check::note(NAME, "off"),
        }
    }

    /// Opens the store even if its key is missing, for what needs no contents.
    fn store_without_key(&self) -> Option<Arc<dyn Store>> {
        // A key that can't be used counts as missing; [`Self::encryption`] reports why.
        let keys: Keys = (self.store_keys)().unwrap_or_default();
        store::open_with(self.store_path, OpenMode::WithoutKey, self.store_limits, &keys).ok()
    }

    /// Checks the directory where the store is or will be. An open store may hide that the disk is full.
    pub(super) fn disk(&self) -> Check {
        const NAME: &str = "disk";
        let place = match place::look_at(self.store_path) {
            Ok(place) => place,
            Err(error) => {
                let text = format!("cannot examine {}: {error}", self.store_path.display());
                return Check::failed(NAME, FailureCause::Failure, text, "choose another file with --db");
            }
        };
        let reserved = self.store_limits.disk_reserve;
        let (found, free, reserve) = (place.found.display(), size(place.free_bytes), size(reserved));
        if !place.is_writable {
            let text = format!("this user cannot write to {found}");
            let hint = "give this user write access, or choose another file with --db";
            return Check::failed(NAME, FailureCause::Failure, text, hint);
        }
        if place.free_bytes <= reserved {
            let text = format!("{free} free, and {reserve} are reserved: no new message can be stored");
            let hint =
                "free disk space, lower OPIK_OFFLINE_FREE_DISK_RESERVE, or choose a file on another disk with --db";
            return Check::failed(NAME, FailureCause::Failure, text, hint);
        }
        Check::good(NAME, format!("{free} free, of which {reserve} are reserved"))
    }

    /// Checks the file system of the store; `None` if it is as durable as a local disk.
    pub(super) fn file_system(&self) -> Option<Check> {
        let path = self.store_path.display();
        let found = mount::look_at(self.store_path)?;
        let text = format!("{path} is on {}: {}", found.name, found.problem());
        Some(Check::warning("file system", text, found.hint()))
    }

    /// Re-encrypts or decrypts the store to match the settings; reports progress to `note` and stops once `go_on` is
    /// false.
    ///
    /// # Errors
    ///
    /// Fails with a sentence for people if it was interrupted.
    pub(crate) fn reseal(&self, note: &dyn Fn(&str), go_on: &dyn Fn() -> bool) -> Result<Check, String> {
        const NAME: &str = "reseal";
        let done = |done: Resealing| format!("{} ({})", count(done.done, "value"), size(done.bytes));
        let keys = match (self.store_keys)() {
            Ok(keys) => keys,
            Err(error) => return Ok(Check::error(NAME, error)),
        };
        let mut reported = Instant::now();
        let mut on_progress = |so_far: Resealing| {
            if reported.elapsed() >= RESEAL_REPORT_INTERVAL {
                reported = Instant::now();
                note(&format!("resealed {} so far", done(so_far)));
            }
            go_on()
        };
        let again = "finished work is kept; run it again to continue";
        Ok(match store::reseal(self.store_path, self.store_limits, &keys, &mut on_progress) {
            Ok(Resealed::Complete(Resealing { done: 0, .. })) => {
                Check::good(NAME, "the store already matches the settings")
            }
            Ok(Resealed::Complete(all)) => {
                Check::good(NAME, format!("resealed {}; no old data is left in the files", done(all)))
            }
            Ok(Resealed::Remnants { done: all, reason }) => {
                let done = done(all);
                let text = format!("resealed {done}; unused parts of the files may still hold old data: {reason}");
                Check::failed(NAME, FailureCause::Failure, text, again)
            }
            Ok(Resealed::Stopped(so_far)) => return Err(format!("interrupted after {}; {again}", done(so_far))),
            Err(StoreError::Missing { .. }) => Check::note(NAME, "nothing was stored yet"),
            Err(error) => Check::error(NAME, error),
        })
    }
}
