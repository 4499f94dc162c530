//! Files that a person names, salvaged one after the other.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::file::SdkFile;
use super::orphan::SDK_STORE_NAME;
use super::salvage::{Salvage, SalvageError, SalvageTarget, Salvaged, remove_source};
use super::trust::FileOwner;
use crate::message::{Lane, Server};
use crate::shutdown::Shutdown;
use crate::store::{Store, StoreError};

/// Why not every file was tried.
#[derive(Debug, Error)]
pub(crate) enum SourcesError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The user stopped it: [`SalvageError::Interrupted`].
    #[error(transparent)]
    Interrupted(SalvageError),
}

/// The outcome for one file.
#[derive(Debug)]
pub(crate) struct SalvagedFile {
    /// The file.
    pub path: PathBuf,
    /// The outcome for its rows.
    pub salvaged: Salvaged,
    /// Whether it was removed.
    pub is_removed: bool,
    /// Why it was not removed, though it should have been.
    pub problem: Option<String>,
}

/// How files are salvaged.
#[derive(Clone, Copy)]
pub(crate) struct SourceFiles<'a> {
    /// The user who owns them.
    pub owner: FileOwner,
    /// A folder for temporary files.
    pub scratch: &'a Path,
    /// More folders from which their attachments may be read.
    pub attachments: &'a [PathBuf],
    /// The lane of their messages.
    pub lane: &'a Lane,
    /// See [`Salvage::is_same_server`].
    pub is_same_server: &'a dyn Fn(&Server) -> bool,
    /// Only counts.
    pub is_dry_run: bool,
    /// Removes each file once its messages are safe.
    pub removes: bool,
    /// Stops it.
    pub shutdown: &'a Shutdown,
}

impl SourceFiles<'_> {
    /// Salvages each file. A file that fails costs the others nothing: its error goes to `report`.
    ///
    /// `open` opens the store; it is not called before there is a file to store. In a dry run it may return `None`.
    ///
    /// # Errors
    ///
    /// [`SourcesError`]; files that were salvaged earlier stay salvaged.
    pub(crate) fn salvage(
        &self,
        paths: Vec<PathBuf>,
        open: &dyn Fn() -> Result<Option<Arc<dyn Store>>, StoreError>,
        report: &mut dyn FnMut(SalvageError),
    ) -> Result<Vec<SalvagedFile>, SourcesError> {
        let mut files = Vec::new();
        let mut store: Option<Arc<dyn Store>> = None;
        for path in paths {
            let mut file = match SdkFile::open(&path, self.scratch, self.owner, self.shutdown) {
                Ok(file) => file,
                Err(error) => {
                    report(unless_interrupted(error.into())?);
                    continue;
                }
            };
            if store.is_none() {
                store = open()?;
            }
            match self.salvage_file(&mut file, store.as_deref()) {
                Ok(salvaged) => files.push(self.finish(&file, path, salvaged, report)),
                Err(error) => report(unless_interrupted(error)?),
            }
        }
        Ok(files)
    }

    fn salvage_file(&self, file: &mut SdkFile, store: Option<&dyn Store>) -> Result<Salvaged, SalvageError> {
        let target = match store {
            Some(store) if !self.is_dry_run => SalvageTarget::Store(store),
            store => SalvageTarget::DryRun(store),
        };
        let salvage = Salvage {
            target,
            folders: &file.attachment_folders(self.scratch, self.attachments),
            lane: self.lane,
            is_same_server: self.is_same_server,
            shutdown: self.shutdown,
        };
        salvage.run(file)
    }

    fn finish(
        &self,
        file: &SdkFile,
        path: PathBuf,
        salvaged: Salvaged,
        report: &mut dyn FnMut(SalvageError),
    ) -> SalvagedFile {
        let (mut is_removed, mut problem) = (false, None);
        if self.removes && !self.is_dry_run {
            match remove_source(file, &salvaged) {
                Ok(()) => is_removed = true,
                Err(error) => {
                    problem = Some(error.to_string());
                    report(error);
                }
            }
        }
        SalvagedFile { path, salvaged, is_removed, problem }
    }
}

fn unless_interrupted(error: SalvageError) -> Result<SalvageError, SourcesError> {
    match error {
        SalvageError::Interrupted { .. } => Err(SourcesError::Interrupted(error)),
        error => Ok(error),
    }
}

/// Returns the files that a name means: the file itself, the SDK's files in a folder, or those that match a pattern.
pub(crate) fn files_named(name: &Path) -> Vec<PathBuf> {
    match name.to_str().filter(|text| text.contains(['*', '?', '[']) && !name.exists()) {
        Some(pattern) => match glob::glob(pattern) {
            Ok(matching) => {
                matching.flatten().flat_map(|path| if path.is_dir() { files_in(&path) } else { vec![path] }).collect()
            }
            Err(_) => Vec::new(),
        },
        None if name.is_dir() => files_in(name),
        None => vec![name.to_owned()],
    }
}

/// Removes repeated paths, and keeps the order.
pub(crate) fn without_repeats(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    paths.retain(|path| seen.insert(path.clone()));
    paths
}

/// Returns the databases in a folder, and the SDK's stores in the folders in it.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter_map(|path| match path.is_dir() {
            true => Some(path.join(SDK_STORE_NAME)).filter(|path| path.is_file()),
            false => path.extension().is_some_and(|extension| extension == "db").then_some(path),
        })
        .collect();
    found.sort();
    found
}
