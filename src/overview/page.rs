//! The part of a snapshot that only the status page shows.

use std::path::Path;

use super::lanes::LargestLanes;
use super::projects::ProjectsOverview;
use super::rejections::RejectionsOverview;
use crate::diagnosis::FileSystemFacts;
use crate::store::mount;
use crate::telemetry::history::Past;

/// Details that only the page of an agent shows. They are empty elsewhere.
#[derive(Clone, Debug, Default)]
pub struct PageDetails {
    pub past: Past,
    pub lanes: LargestLanes,
    pub projects: ProjectsOverview,
    pub rejections: RejectionsOverview,
    pub options: CommandOptions,
    /// Why the store's file system is less durable than a disk, if it is.
    pub(crate) file_system: Option<FileSystemFacts>,
}

/// The options that a command needs to be about this agent's messages, as a shell reads them.
#[derive(Clone, Debug, Default)]
pub struct CommandOptions {
    /// `--db PATH`
    pub db: String,
    /// The base URL of the server's API.
    pub server: String,
}

/// Returns why the file system under a store is less durable than a disk of this machine, if it is.
pub(crate) fn file_system(path: &Path) -> Option<FileSystemFacts> {
    mount::look_at(path).map(|found| FileSystemFacts {
        problem: format!("on {}: {}", found.name, found.problem()),
        remedy: found.hint().to_owned(),
    })
}
