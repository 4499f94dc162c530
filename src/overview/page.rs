//! The part of a snapshot that only the status page shows.

use super::lanes::LargestLanes;
use super::projects::ProjectsOverview;
use super::rejections::RejectionsOverview;
use crate::telemetry::history::Past;

/// Details that only the page of an agent shows. They are empty elsewhere.
#[derive(Clone, Debug, Default)]
pub struct PageDetails {
    pub past: Past,
    pub lanes: LargestLanes,
    pub projects: ProjectsOverview,
    pub rejections: RejectionsOverview,
    pub options: CommandOptions,
}

/// The options that a command needs to be about this agent's messages, as a shell reads them.
#[derive(Clone, Debug, Default)]
pub struct CommandOptions {
    /// `--db PATH`
    pub db: String,
    /// The base URL of the server's API.
    pub server: String,
}
