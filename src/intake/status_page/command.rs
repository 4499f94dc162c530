//! Commands to copy: complete, with the options that make them about this agent's messages.

use std::ffi::OsStr;

use super::text::escaped;
use crate::hint::OptionsInForce;
use crate::overview::page::CommandOptions;
use crate::printable::shell_word;

/// A command that is longer is no help.
pub(super) const LENGTH_MAX: usize = 1000;

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

    /// Returns a whole command with the options that it does not name.
    pub(super) fn completed(command: &str, options: &CommandOptions) -> Self {
        Self(in_force(options).completed(&format!("`{command}`")).trim_matches('`').to_owned())
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

/// Returns a text of our own as HTML, each command in it completed, and with a button that copies it.
pub(super) fn with_commands(text: &str, options: &CommandOptions) -> String {
    let mut html = String::new();
    for (at, part) in text.split('`').enumerate() {
        // What is in backticks comes second.
        match at % 2 == 1 {
            true if part.starts_with("opik-offline ") => html.push_str(&ShownCommand::completed(part, options).html()),
            true => html.push_str(&format!("<code>{}</code>", escaped(part))),
            false => html.push_str(&escaped(part)),
        }
    }
    html
}

fn in_force(options: &CommandOptions) -> OptionsInForce {
    OptionsInForce {
        db: options.db.strip_prefix("--db ").map(str::to_owned),
        upstream: Some(shell_word(OsStr::new(&options.server))),
        fleet: None,
    }
}
