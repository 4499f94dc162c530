//! Files that processes of the Python SDK left behind, and their messages into the store.

pub mod adoption;
pub mod file;
pub mod orphan;
pub mod rows;
pub mod salvage;
pub mod trust;
