//! The identity of a background agent: whose it is, and where its folder is.

use std::path::{Path, PathBuf};

use rustix::system::uname;

use super::error::BackgroundError;
use super::folder::RuntimeFolder;
use super::record::InstanceRecord;
use crate::config::Config;
use crate::intake::identity;

/// The one background agent of this user for a server and a store, running or not.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(super) folder: RuntimeFolder,
    pub(super) server: String,
    pub(super) store: PathBuf,
}

impl Instance {
    /// Opens the folder of the agent for the configured server and store, and creates it if it is not there.
    ///
    /// # Errors
    ///
    /// [`BackgroundError`] if the folder can't be created or trusted.
    pub(crate) fn of(config: &Config, state_dir: Option<PathBuf>) -> Result<Self, BackgroundError> {
        Self::of_server(config, config.upstream.value.to_string(), state_dir)
    }

    /// Opens the folder of the agent for another server and the configured store.
    ///
    /// # Errors
    ///
    /// As [`Self::of`].
    pub(crate) fn of_server(
        config: &Config,
        server: String,
        state_dir: Option<PathBuf>,
    ) -> Result<Self, BackgroundError> {
        let state_dir = state_dir.filter(|dir| dir.is_absolute()).ok_or(BackgroundError::NoFolder)?;
        let store = &config.db.value;
        let store = std::path::absolute(store).unwrap_or_else(|_| store.clone());
        let folder = RuntimeFolder::open(&state_dir, &key(&server, &store))?;
        Ok(Self { folder, server, store })
    }

    /// Returns the base URL of its server.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Returns the path of its store.
    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    /// Returns what its last agent recorded about itself; that agent may have ended.
    pub(crate) fn recorded(&self) -> Option<InstanceRecord> {
        InstanceRecord::read(self).ok().flatten()
    }

    /// Returns the path of its log.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.log()
    }
}

/// Returns the name of the folder for a server and a store as they are seen from here.
fn key(server: &str, store: &Path) -> String {
    let name = uname();
    // The same path in another spelling, as far as it exists.
    let real = store.parent().and_then(|folder| Some(folder.canonicalize().ok()?.join(store.file_name()?)));
    // Of a process outside, neither the port nor the process id means anything here.
    let namespace = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap_or_default();
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in [
        server.trim_end_matches('/').as_bytes(),
        real.as_deref().unwrap_or(store).as_os_str().as_encoded_bytes(),
        name.nodename().to_bytes(),
        namespace("net").as_os_str().as_encoded_bytes(),
        namespace("pid").as_os_str().as_encoded_bytes(),
    ] {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    identity::hex(context.finish().as_ref().get(..8).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_and_store_has_its_own_agent() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = folder.path().join("store.db");
        let own = key("http://one/api", &store);
        assert_eq!(own, key("http://one/api/", &store));
        assert_eq!(own, key("http://one/api", &folder.path().join("./store.db")));
        assert_ne!(own, key("http://two/api", &store), "messages would go to another server");
        assert_ne!(own, key("http://one/api", &folder.path().join("other.db")), "messages would be in another store");
    }
}
