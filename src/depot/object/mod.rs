//! A depot in object storage: S3 and what is compatible, Google Cloud Storage, Azure Blob Storage.
//!
//! The crate `object_store` signs requests, finds credentials and reads the services' XML. It speaks HTTP through the
//! house's own client ([`web`]), which blocks: so its futures wait for nothing, and [`mod@wait`] needs no runtime. Retries
//! are decided here, by what a repeat would mean (`attempts`), so the crate makes none.
//!
//! Opening makes no request and loads no certificate.

mod answer;
mod bucket_rules;
mod build;
mod keys_file;
mod wait;
mod web;

use bytes::Bytes;
use futures_util::StreamExt as _;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{GetOptions, ObjectMeta, ObjectStore, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion};

use self::answer::{Doing, Verdict};
use self::bucket_rules::BucketRules;
use self::wait::wait;
use super::error::DepotError;
use super::name::Name;
use super::settings::{DepotAddress, DepotSettings, ObjectService};
use super::{Created, Depot, DepotDescription, Entry, OBJECT_BYTES_MAX, Version};

/// Attempts of one call, the first included.
const ATTEMPTS: u32 = 3;
/// The pause before the second attempt; it doubles.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(200);
/// The most objects that a service lists or deletes at once.
const PAGE_MAX: usize = 1000;

/// The traits that the crate's stores share.
trait BucketStore: ObjectStore + PaginatedListStore {}

impl<T: ObjectStore + PaginatedListStore> BucketStore for T {}

/// A depot in a bucket.
pub(super) struct ObjectDepot {
    store: Box<dyn BucketStore>,
    service: ObjectService,
    /// The prefix with a slash at its end, or nothing.
    prefix: String,
    /// The URL without secrets.
    at: String,
    /// The host that serves it.
    host: Option<String>,
    /// Asks for the rules of the bucket, where we know how.
    rules: Option<BucketRules>,
}

impl ObjectDepot {
    /// Opens a depot in a bucket; makes no request.
    ///
    /// # Errors
    ///
    /// [`DepotError::Unusable`] for settings that fit no service, [`DepotError::NotAuthorised`] for credentials that
    /// can't be read.
    pub(super) fn open(settings: &DepotSettings) -> Result<Self, DepotError> {
        let at = settings.address.to_string();
        let DepotAddress::Bucket { service, bucket, prefix } = &settings.address else {
            return Err(DepotError::Unusable { at, reason: "it is not a bucket".to_owned() });
        };
        let built = build::bucket(settings, *service, bucket)?;
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { store: built.store, service: *service, prefix, at, host: built.host, rules: built.rules })
    }

    fn key(&self, name: &Name) -> Path {
        Path::from(format!("{}{name}", self.prefix))
    }

    /// Runs one request until it is answered, or a repeat would be unsafe or useless.
    fn attempts<T>(
        &self,
        doing: Doing,
        name: Option<&Name>,
        run: impl Fn() -> Result<T, object_store::Error>,
    ) -> Result<Result<T, Verdict>, DepotError> {
        let mut attempt = 1;
        loop {
            web::forget();
            let error = match run() {
                Ok(value) => return Ok(Ok(value)),
                Err(error) => error,
            };
            let verdict = answer::judge(doing, &error, web::last());
            let is_over = attempt >= ATTEMPTS || !verdict.may_repeat(doing);
            match verdict {
                Verdict::Exists | Verdict::Changed | Verdict::Absent => return Ok(Err(verdict)),
                _ if is_over => return Err(verdict.error(&self.at, doing, name)),
                _ => std::thread::sleep(PAUSE * 2_u32.pow(attempt - 1)),
            }
            attempt += 1;
        }
    }

    fn put(
        &self,
        doing: Doing,
        name: &Name,
        mode: &PutMode,
        bytes: &[u8],
    ) -> Result<Result<PutResult, Verdict>, DepotError> {
        if bytes.len() > OBJECT_BYTES_MAX {
            let (at, name) = (self.at.clone(), name.clone());
            return Err(DepotError::TooLarge { at, name, bytes: bytes.len(), max: OBJECT_BYTES_MAX });
        }
        let (key, bytes) = (self.key(name), Bytes::copy_from_slice(bytes));
        self.attempts(doing, Some(name), || {
            let options = PutOptions { mode: mode.clone(), ..PutOptions::default() };
            wait(self.store.put_opts(&key, PutPayload::from_bytes(bytes.clone()), options))
        })
    }

    /// Returns what the service needs to replace this version only; `None` if the object has another one.
    ///
    /// Google compares generations, which it does not list: the one of the version is looked up, and stays the
    /// condition of the write.
    fn condition(&self, name: &Name, expected: &Version) -> Result<Option<UpdateVersion>, DepotError> {
        let e_tag = quoted(expected.as_str());
        if self.service != ObjectService::Google {
            return Ok(Some(UpdateVersion { e_tag: Some(e_tag), version: None }));
        }
        let key = self.key(name);
        let head = || GetOptions { head: true, ..GetOptions::default() };
        let found = self.attempts(Doing::Get, Some(name), || wait(self.store.get_opts(&key, head())))?;
        let Ok(found) = found else { return Ok(None) };
        let is_expected = found.meta.e_tag.as_deref().map(bare) == Some(expected.as_str());
        Ok(is_expected.then(|| UpdateVersion { e_tag: None, version: found.meta.version.clone() }))
    }

    fn version(&self, name: &Name, e_tag: Option<&str>) -> Result<Version, DepotError> {
        e_tag.map(|e_tag| Version::new(bare(e_tag))).ok_or_else(|| DepotError::Unusable {
            at: self.at.clone(),
            reason: format!("it answered without an ETag for {name}"),
        })
    }

    fn entry(&self, found: &ObjectMeta) -> Option<Entry> {
        let name = Name::new(found.location.as_ref().strip_prefix(&self.prefix)?).ok()?;
        let version = Version::new(bare(found.e_tag.as_deref().unwrap_or_default()));
        Some(Entry { name, bytes: found.size, version })
    }
}

impl Depot for ObjectDepot {
    fn create(&self, name: &Name, bytes: &[u8]) -> Result<Created, DepotError> {
        let answer = self.put(Doing::Create, name, &PutMode::Create, bytes)?;
        Ok(if answer.is_ok() { Created::New } else { Created::AlreadyThere })
    }

    fn get(&self, name: &Name) -> Result<Option<(Vec<u8>, Version)>, DepotError> {
        let key = self.key(name);
        let answer = self.attempts(Doing::Get, Some(name), || {
            let found = wait(self.store.get_opts(&key, GetOptions::default()))?;
            let (meta, e_tag) = (found.meta.size, found.meta.e_tag.clone());
            Ok((wait(found.bytes())?, meta, e_tag))
        })?;
        let Ok((bytes, size, e_tag)) = answer else { return Ok(None) };
        if bytes.len() as u64 != size {
            let reason = format!("{} of its {size} bytes arrived", bytes.len());
            return Err(DepotError::Damaged { at: self.at.clone(), name: name.clone(), reason });
        }
        let version = self.version(name, e_tag.as_deref())?;
        Ok(Some((bytes.into(), version)))
    }

    fn swap(&self, name: &Name, expected: Option<&Version>, bytes: &[u8]) -> Result<Version, DepotError> {
        let lost = || DepotError::Lost { at: self.at.clone(), name: name.clone() };
        let mode = match expected {
            None => PutMode::Create,
            Some(expected) => PutMode::Update(self.condition(name, expected)?.ok_or_else(lost)?),
        };
        let answer = self.put(Doing::Swap, name, &mode, bytes)?;
        let made = answer.map_err(|_| lost())?;
        self.version(name, made.e_tag.as_deref())
    }

    fn list(&self, under: &Name, after: Option<&Name>, limit: usize) -> Result<Vec<Entry>, DepotError> {
        let prefix = format!("{}{under}/", self.prefix);
        let offset_of = |after: &Name| format!("{}{after}", self.prefix);
        if after.is_some_and(|after| offset_of(after) > prefix && !offset_of(after).starts_with(&prefix)) {
            // Behind everything in the folder; not every service takes such an offset.
            return Ok(Vec::new());
        }
        let mut entries: Vec<Entry> = Vec::new();
        let (mut behind, mut token) = (after.cloned(), None::<String>);
        while entries.len() < limit {
            let listed = self.attempts(Doing::List, None, || {
                let offset = behind.as_ref().map(offset_of).filter(|offset| *offset > prefix);
                let options = PaginatedListOptions {
                    // A token continues where its page ended.
                    offset: offset.filter(|_| token.is_none()),
                    max_keys: Some(limit.min(PAGE_MAX)),
                    page_token: token.clone(),
                    ..PaginatedListOptions::default()
                };
                wait(self.store.list_paginated(Some(&prefix), options))
            })?;
            // An absent prefix of a bucket that is there is an empty one.
            let Ok(page) = listed else { break };
            let (found, before) = (page.result.objects.iter().filter_map(|found| self.entry(found)), entries.len());
            // Some services ignore the offset, or include it.
            entries.extend(found.filter(|entry| behind.as_ref().is_none_or(|behind| entry.name > *behind)));
            match page.page_token {
                Some(next) if token.as_ref() != Some(&next) => token = Some(next),
                // A service that repeats its token may have more.
                Some(_) if entries.len() > before => {
                    (behind, token) = (entries.iter().map(|entry| entry.name.clone()).max(), None);
                }
                _ => break,
            }
        }
        entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        entries.truncate(limit);
        Ok(entries)
    }

    fn delete(&self, names: &[Name]) -> Result<(), DepotError> {
        for names in names.chunks(PAGE_MAX) {
            let answer = self.attempts(Doing::Delete, names.first(), || {
                let keys: Vec<_> = names.iter().map(|name| Ok(self.key(name))).collect();
                let deleted = self.store.delete_stream(futures_util::stream::iter(keys).boxed());
                let failed = |result: Result<Path, object_store::Error>| match result {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => None,
                    Err(error) => Some(error),
                };
                // Every result is waited for: the rest is deleted though one is refused.
                wait(deleted.collect::<Vec<_>>()).into_iter().find_map(failed).map_or(Ok(()), Err)
            })?;
            match answer {
                Ok(()) | Err(Verdict::Absent) => {}
                Err(verdict) => return Err(verdict.error(&self.at, Doing::Delete, names.first())),
            }
        }
        Ok(())
    }

    fn describe(&self) -> DepotDescription {
        DepotDescription { url: self.at.clone(), engine: self.service.scheme(), host: self.host.clone() }
    }

    fn weaknesses(&self) -> Result<Vec<String>, DepotError> {
        Ok(match &self.rules {
            Some(rules) => rules.weaknesses(),
            None => vec![
                "not checked: whether the bucket keeps old versions, locks objects, or deletes them within an outage"
                    .to_owned(),
            ],
        })
    }
}

/// Returns an `ETag` without its quotes, which some answers have and others have not.
fn bare(e_tag: &str) -> &str {
    e_tag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(e_tag)
}

fn quoted(e_tag: &str) -> String {
    if e_tag.starts_with("W/") { e_tag.to_owned() } else { format!("\"{e_tag}\"") }
}
