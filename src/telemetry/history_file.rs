//! The file that carries the plots of the status page over a restart: `<db>-history`, beside the store.
//!
//! # Layout
//!
//! ```text
//! head | 180 slots, one per 5 seconds | 1,440 slots, one per minute        78 KB, always
//! ```
//!
//! A sample is written to the slot of its time, so the file never grows, and a sample that has expired is overwritten.
//! Every slot has a checksum and the server that it is about. Numbers are little-endian, and validated when parsed.
//!
//! # Invariants
//!
//! - It has counts and times, and no name, URL, payload or key: the server is a hash. Only its owner can read it.
//! - Nothing depends on it. Whatever is wrong with it, agents start, store and deliver, and the plots begin with the
//!   agent. A corrupt slot is skipped.
//! - A file that is not ours is left alone: another user's, one with several names, a link, a device, other contents.
//! - It is written in place and never synced: no commit waits for it. It is not created on a disk that is nearly full.
//! - Agents that share a store for several servers share the slots: the last to write has them.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use super::history::{Away, COARSE_INTERVAL, COARSE_MAX, FINE_INTERVAL, FINE_MAX, Past, Sample};

const SUFFIX: &str = "-history";
const SLOT_BYTES: usize = 48;
/// The head fills a slot.
const HEAD: &[u8; SLOT_BYTES] = b"opik-offline history of the status page, v1\n\0\0\0\0";
const FILE_BYTES: usize = SLOT_BYTES * (1 + FINE_MAX + COARSE_MAX);
/// Stands for "not known".
const NONE: u64 = u64::MAX;

/// The file of an agent's history.
#[derive(Debug)]
pub(crate) struct HistoryFile {
    path: PathBuf,
    server: u64,
}

/// The part of the file that a slot is in.
#[derive(Clone, Copy)]
enum Ring {
    Fine,
    Coarse,
}

impl Ring {
    /// Returns the time of a slot, and how many there are.
    fn size(self) -> (Duration, usize) {
        match self {
            Self::Fine => (FINE_INTERVAL, FINE_MAX),
            Self::Coarse => (COARSE_INTERVAL, COARSE_MAX),
        }
    }

    /// Returns where the slot of this time begins.
    fn offset(self, at_ms: i64) -> u64 {
        let first = match self {
            Self::Fine => 1,
            Self::Coarse => 1 + FINE_MAX,
        };
        let (interval, slots) = self.size();
        let number = at_ms.div_euclid(interval.as_millis() as i64).rem_euclid(slots as i64);
        ((first + number as usize) * SLOT_BYTES) as u64
    }
}

impl HistoryFile {
    /// Returns the file beside this store, of what is known about this server. Touches nothing.
    pub(crate) fn beside(store: &Path, server: &str) -> Self {
        let mut name = store.as_os_str().to_owned();
        name.push(SUFFIX);
        Self { path: name.into(), server: hash(server.as_bytes()) }
    }

    /// Returns the samples in the file that have not expired: those of the last day.
    ///
    /// # Errors
    ///
    /// Fails if the file can't be read or is not ours. One that does not exist is empty.
    pub(crate) fn read(&self, now_ms: i64) -> io::Result<Past> {
        let mut file = match OpenOptions::new().read(true).custom_flags(flags()).open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Past::default()),
            opened => opened?,
        };
        if check(&file)? != FILE_BYTES as u64 {
            return Ok(Past::default());
        }
        let mut bytes = Vec::with_capacity(FILE_BYTES);
        file.by_ref().take(FILE_BYTES as u64).read_to_end(&mut bytes)?;
        let (slots, _) = bytes.as_chunks::<SLOT_BYTES>();
        let ring = |ring: Ring| {
            let (interval, count) = ring.size();
            let span_ms = interval.as_millis() as i64 * count as i64;
            let in_place = slots
                .iter()
                .zip((0_u64..).step_by(SLOT_BYTES))
                .filter_map(|(slot, offset)| self.sample(slot).filter(|sample| ring.offset(sample.at_ms) == offset));
            let mut samples: Vec<Sample> =
                in_place.filter(|sample| (now_ms - span_ms..now_ms).contains(&sample.at_ms)).collect();
            samples.sort_by_key(|sample| sample.at_ms);
            samples
        };
        Ok(Past { fine: ring(Ring::Fine), coarse: ring(Ring::Coarse) })
    }

    /// Writes a sample and its minute. Creates the file only if `may_create`.
    ///
    /// # Errors
    ///
    /// Fails if the file can't be written, is not ours, or does not exist and may not be created.
    pub(crate) fn write(&self, sample: &Sample, minute: &Sample, may_create: bool) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(may_create).mode(0o600).custom_flags(flags());
        let file = options.open(&self.path)?;
        let length = check(&file)?;
        if file.metadata()?.mode() & 0o077 != 0 {
            file.set_permissions(Permissions::from_mode(0o600))?;
        }
        if length != FILE_BYTES as u64 {
            if !may_create {
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    "it is incomplete, and the disk is nearly full",
                ));
            }
            // Its blocks are taken now, and it never needs others.
            file.set_len(0)?;
            file.write_all_at(&[0; FILE_BYTES], 0)?;
        }
        file.write_all_at(HEAD, 0)?;
        file.write_all_at(&self.slot(sample), Ring::Fine.offset(sample.at_ms))?;
        file.write_all_at(&self.slot(minute), Ring::Coarse.offset(minute.at_ms))
    }

    fn slot(&self, sample: &Sample) -> [u8; SLOT_BYTES] {
        let available = match sample.available {
            None => 0,
            Some(false) => 1,
            Some(true) => 2,
        };
        let words = [
            sample.at_ms as u64,
            self.server,
            sample.waiting.unwrap_or(NONE),
            sample.away.from_ms as u64,
            sample.away.for_ms << 2 | available,
        ];
        let mut slot = [0; SLOT_BYTES];
        let (parts, _) = slot.as_chunks_mut::<8>();
        for (part, word) in parts.iter_mut().zip(words) {
            *part = word.to_le_bytes();
        }
        let checksum = hash(&slot[..SLOT_BYTES - 8]);
        slot[SLOT_BYTES - 8..].copy_from_slice(&checksum.to_le_bytes());
        slot
    }

    /// Parses a slot; `None` if it is empty, corrupt, or about another server.
    fn sample(&self, slot: &[u8; SLOT_BYTES]) -> Option<Sample> {
        let (parts, _) = slot.as_chunks::<8>();
        let mut words = parts.iter().map(|part| u64::from_le_bytes(*part));
        let (at, server, waiting) = (words.next()?, words.next()?, words.next()?);
        let (away_from, state, checksum) = (words.next()?, words.next()?, words.next()?);
        if checksum != hash(&slot[..SLOT_BYTES - 8]) || server != self.server {
            return None;
        }
        let (at_ms, away) = (at as i64, Away { from_ms: away_from as i64, for_ms: state >> 2 });
        // It is within the minute of its sample, or right before it.
        let far = 2 * COARSE_INTERVAL.as_millis() as u64;
        let is_near = away.from_ms.abs_diff(at_ms) <= far && away.for_ms <= far;
        Some(Sample {
            at_ms,
            waiting: Some(waiting).filter(|waiting| *waiting != NONE),
            available: match state & 3 {
                1 => Some(false),
                2 => Some(true),
                _ => None,
            },
            away: if is_near { away } else { Away::default() },
            ..Sample::default()
        })
    }
}

/// No link is followed, and no device or pipe is waited for.
fn flags() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32
}

/// Validates that a file is ours, and returns its length.
fn check(file: &File) -> io::Result<u64> {
    let foreign = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why.to_owned()));
    let facts = file.metadata()?;
    if !facts.is_file() {
        return foreign("it is not a regular file");
    }
    if facts.uid() != rustix::process::geteuid().as_raw() {
        return foreign("it belongs to another user");
    }
    if facts.nlink() > 1 {
        return foreign("it has another name as well");
    }
    let mut head = [0; SLOT_BYTES];
    let wanted = head.len().min(usize::try_from(facts.len()).unwrap_or(usize::MAX));
    file.read_exact_at(&mut head[..wanted], 0)?;
    // All zeros: a crash came before the contents.
    if head[..wanted] != HEAD[..wanted] && head.iter().any(|byte| *byte != 0) {
        return foreign("it has other contents");
    }
    Ok(facts.len())
}

/// FNV-1a: finds corrupt slots, such as torn writes, and keeps nobody from forging a plot.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests;
