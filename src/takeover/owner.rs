//! This process as the owner of a stream.

use crate::fleet::head::HeadOwner;

/// Returns this process as the owner of streams.
pub(crate) fn this_process() -> HeadOwner {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    HeadOwner {
        host: host.trim().to_owned(),
        pod: None,
        pid: std::process::id(),
        nonce: uuid::Uuid::now_v7().simple().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
