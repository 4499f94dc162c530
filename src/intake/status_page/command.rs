//! Commands to copy: complete, with the options that make them about this agent's messages.

use std::ffi::OsStr;

use super::text::escaped;
use crate::overview::page::CommandOptions;
use crate::printable::shell_word;

/// A command of `opik-offline` about the store of this agent.
pub(super) struct ShownCommand(String);

impl ShownCommand {
    /// Returns `opik-offline WORDS --db PATH`.
    pub(super) fn new(words: &str, options: &CommandOptions) -> Self {
        let db = match options.db.as_str() {
            "" => String::new(),
            db => format!(" {db}"),
        };
        Self(format!("opik-offline {words}{db}"))
    }

    /// Adds an option with the URL of a server.
    pub(super) fn with_server(self, option: &str, url: &str) -> Self {
        Self(format!("{} {option} {}", self.0, shell_word(OsStr::new(url))))
    }

    /// Returns it with a button that copies it, which shows only where script runs.
    pub(super) fn html(&self) -> String {
        let command = escaped(&self.0);
        format!(
            r#"<span class="cmd"><code>{command}</code><button type="button" class="copy" aria-label="Copy {command}">Copy</button></span>"#
        )
    }
}
