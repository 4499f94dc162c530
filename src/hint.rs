//! Suggested commands: what a hint, a note or a screen tells people to run can be pasted.
//!
//! A text names a command in backticks, as it is called in general: "see `opik-offline inspect 37`". Such texts come
//! from every room, and only the command line knows which options of this call the next one needs as well: each command
//! gets the options in force that it does not name. Completing is idempotent.
//!
//! Only a text of our own is completed: a command by whoever builds it into a sentence ([`command`]), a whole hint or
//! remedy where it is shown ([`completed`]). A sentence may quote a server, a file or a name, and a command in such a
//! quotation is not ours.
//!
//! A command for another machine is written without the program's name in the backticks: nothing is added to it.

use std::borrow::Cow;
use std::sync::OnceLock;

/// The beginning of a command in a text.
const BEGIN: &str = "`opik-offline ";
/// The commands that are completed, with whether they use the server.
const COMMANDS: [(&str, bool); 6] =
    [("agent", true), ("healthcheck", true), ("status", true), ("replay", true), ("inspect", false), ("purge", false)];

/// The options of this process.
static IN_FORCE: OnceLock<OptionsInForce> = OnceLock::new();

/// The options of this call that another command has to repeat. Each value is one word of a shell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OptionsInForce {
    /// The message store, unless it is the default.
    pub(crate) db: Option<String>,
    /// The server, if a flag named it: the environment and the files apply to the next command as well.
    pub(crate) upstream: Option<String>,
    /// The depot, which texts call `--fleet URL`.
    pub(crate) fleet: Option<String>,
}

/// Sets the options of this process, once.
pub(crate) fn repeat(options: OptionsInForce) {
    IN_FORCE.get_or_init(|| options);
}

/// Returns a text of our own with every command in it completed.
pub(crate) fn completed(text: &str) -> Cow<'_, str> {
    match IN_FORCE.get().filter(|_| text.contains(BEGIN)) {
        Some(options) => Cow::Owned(options.completed(text)),
        None => Cow::Borrowed(text),
    }
}

/// Returns a command of this program in backticks, completed.
pub(crate) fn command(arguments: &str) -> String {
    completed(&format!("{BEGIN}{arguments}`")).into_owned()
}

/// Returns a text of our own in which every command that uses a server names this one, a word of a shell, unless it
/// names another.
pub(crate) fn about_server(text: &str, server: String) -> String {
    OptionsInForce { upstream: Some(server), ..OptionsInForce::default() }.completed(text)
}

/// Returns text of another process for a place where our own hints stand: no command in it looks like ours.
pub(crate) fn foreign(text: &str) -> String {
    text.replace('`', "'")
}

/// Returns the words of a text; a command in backticks is one word, so that it stays on one line.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let from = match text.starts_with(BEGIN) || text.starts_with(&format!("({BEGIN}")) {
            true => text.match_indices('`').nth(1).map_or(0, |(end, _)| end),
            false => 0,
        };
        let end = text[from..].find(' ').map(|end| from + end);
        rest = end.map(|end| &text[end + 1..]);
        Some(&text[..end.unwrap_or(text.len())])
    })
}

impl OptionsInForce {
    /// Returns a text of our own with every command in it completed.
    pub(crate) fn completed(&self, text: &str) -> String {
        let (mut done, mut rest) = (String::new(), text);
        while let Some(at) = rest.find(BEGIN) {
            let (before, after) = rest.split_at(at + BEGIN.len());
            done.push_str(before);
            rest = after;
            let Some(end) = after.find('`') else { break };
            done.push_str(&self.command(&after[..end]));
            // The closing backtick begins no command.
            done.push('`');
            rest = &after[end + 1..];
        }
        done + rest
    }

    /// Returns the arguments of a command, completed.
    fn command(&self, arguments: &str) -> String {
        let subcommand = arguments.split(' ').next().unwrap_or_default();
        let known = COMMANDS.iter().find(|(name, _)| *name == subcommand);
        let Some((_, uses_server)) = known.filter(|_| !arguments.contains("--help")) else {
            return arguments.to_owned();
        };
        // Behind it is a wrapped command.
        let (own, wrapped) = arguments.split_once(" -- ").map_or((arguments, None), |(own, after)| (own, Some(after)));
        let mut own = match &self.fleet {
            Some(fleet) => own.replace("--fleet URL", &format!("--fleet {fleet}")),
            None => own.to_owned(),
        };
        let names = |own: &str, flag: &str| own.split([' ', '=']).any(|word| word == flag);
        // A command about a depot uses no message store of ours, except an agent.
        let uses_store = subcommand == "agent" || !names(&own, "--fleet");
        for (flag, value, is_used) in [("--db", &self.db, uses_store), ("--upstream", &self.upstream, *uses_server)] {
            if let Some(value) = value.as_ref().filter(|_| is_used && !names(&own, flag)) {
                own.push_str(&format!(" {flag} {value}"));
            }
        }
        match wrapped {
            Some(wrapped) => format!("{own} -- {wrapped}"),
            None => own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> OptionsInForce {
        OptionsInForce {
            db: Some("'/my store/x.db'".to_owned()),
            upstream: Some("http://127.0.0.1:5173/api".to_owned()),
            fleet: Some("s3://bucket/prefix".to_owned()),
        }
    }

    #[test]
    fn every_command_repeats_the_options_in_force() {
        let (db, url) = ("--db '/my store/x.db'", "--upstream http://127.0.0.1:5173/api");
        for (text, expected) in [
            ("run `opik-offline replay --id 37`", format!("run `opik-offline replay --id 37 {db} {url}`")),
            (
                "`opik-offline inspect 1`, `opik-offline purge --id 1`",
                format!("`opik-offline inspect 1 {db}`, `opik-offline purge --id 1 {db}`"),
            ),
            ("`opik-offline agent -- COMMAND`", format!("`opik-offline agent {db} {url} -- COMMAND`")),
            ("`opik-offline replay --db y`", format!("`opik-offline replay --db y {url}`")),
            ("`opik-offline status --db=y`", format!("`opik-offline status --db=y {url}`")),
            ("`opik-offline status --fleet URL`", format!("`opik-offline status --fleet s3://bucket/prefix {url}`")),
            ("`opik-offline agent --fleet URL`", format!("`opik-offline agent --fleet s3://bucket/prefix {db} {url}`")),
            ("`opik-offline inspect --help` lists types", "`opik-offline inspect --help` lists types".to_owned()),
            ("`opik-offline python`, `replay --from FILE`", "`opik-offline python`, `replay --from FILE`".to_owned()),
            ("cut `opik-offline replay", "cut `opik-offline replay".to_owned()),
            ("no command", "no command".to_owned()),
        ] {
            assert_eq!(options().completed(text), expected);
            assert_eq!(options().completed(&expected), expected, "completing is idempotent");
        }
        assert_eq!(OptionsInForce::default().completed("`opik-offline replay`"), "`opik-offline replay`");
        let about = about_server("`opik-offline replay --rekey`, `opik-offline inspect`", "http://a/api".to_owned());
        assert_eq!(about, "`opik-offline replay --rekey --upstream http://a/api`, `opik-offline inspect`");
    }

    #[test]
    fn a_command_is_one_word() {
        let words = |text| words(text).collect::<Vec<_>>();
        let text = "see `opik-offline inspect 37 --db x`, then (`opik-offline purge`) it";
        assert_eq!(words(text), ["see", "`opik-offline inspect 37 --db x`,", "then", "(`opik-offline purge`)", "it"]);
        assert_eq!(words("cut `opik-offline replay now"), ["cut", "`opik-offline", "replay", "now"]);
        assert_eq!(words("two  spaces "), ["two", "", "spaces", ""]);
        assert_eq!(words(""), [""]);
    }
}
