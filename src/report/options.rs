//! The options that a suggested command repeats.

use crate::config::{Config, Source};
use crate::printable::shell_word;

/// Returns the flags in force that make another command use the same store and server, with a space before each.
///
/// What comes from the environment or a file applies to the next command anyway.
pub(crate) fn options(config: &Config) -> String {
    let is_flag = |source: &Source| matches!(source, Source::Flag { .. });
    let mut options = String::new();
    if is_flag(&config.db.source) {
        options.push_str(&format!(" --db {}", shell_word(config.db.value.as_os_str())));
    }
    if is_flag(&config.upstream.source) {
        options.push_str(&format!(" --upstream {}", shell_word(config.upstream.value.to_string().as_ref())));
    }
    options
}
