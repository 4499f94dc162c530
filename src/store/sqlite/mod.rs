//! The SQLite engine.
use super::*;
use std::path::Path;
/// A store in one SQLite file.
pub struct SqliteStore;
