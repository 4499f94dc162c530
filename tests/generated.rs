//! `man/` and `completions/` match the command line, and the tables in `docs/` match the settings and metrics.
//!
//! They are rendered from the clap definition, the settings and the metrics, and compared with what is committed. To
//! write them anew: `OPIK_OFFLINE_UPDATE=1 cargo test --test generated`.

#![allow(clippy::disallowed_methods, reason = "a test is not part of the configuration")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use opik_offline::config::{Keeps, SETTINGS, Setting};
use opik_offline::telemetry::metrics::{DESCRIPTIONS, Description, MetricKind};

const NAME: &str = "opik-offline";

#[test]
fn the_manual_pages_are_current() {
    let mut command = opik_offline::cli::command();
    // Fills in what subcommands inherit.
    command.build();
    let mut pages = BTreeMap::from([(format!("{NAME}.1"), page(&command, NAME))]);
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        let name = format!("{NAME}-{}", subcommand.get_name());
        pages.insert(format!("{name}.1"), page(subcommand, &name));
    }
    assert_current("man", &pages);
}

#[test]
fn the_completions_are_current() {
    let mut scripts = BTreeMap::new();
    for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut opik_offline::cli::command(), NAME, &mut script);
        let name = clap_complete::Generator::file_name(&shell, NAME);
        let script = String::from_utf8(script).expect("a script is text");
        // clap_complete 4.6 sets one name for a program with a hyphen and looks for another: bash found no subcommand.
        let script = script.replace("opik__subcmd__offline", "opik__offline");
        scripts.insert(name, with_values(shell, script));
    }
    assert_current("completions", &scripts);
}

/// Flags whose values are in the store, and what the hidden `__values` calls them.
const VALUES: [(&str, &str); 3] = [("workspace", "workspaces"), ("project", "projects"), ("id", "ids")];

/// Makes bash offer the ids where `inspect` takes one, and its flags after a dash only.
fn bash_asks_for_id(script: &str) -> String {
    let begin = script.find("        opik__offline__subcmd__inspect)\n").expect("bash completes inspect");
    let (before, section) = script.split_at(begin);
    let (section, after) = section.split_at(section.find("            ;;\n        opik").expect("the section ends"));
    let flags = "COMPREPLY=( $(compgen -W \"${opts}\" -- \"${cur}\") )";
    let ids = "COMPREPLY=($(compgen -W \"$(_opik_offline_values ids)\" -- \"${cur}\"))";
    let section = section.replace(" || ${COMP_CWORD} -eq 2 ]]", " ]]");
    let (first, last) = section.rsplit_once(flags).expect("it ends with its flags");
    let section = format!("{first}{ids}{last}")
        .replace("*)\n                    COMPREPLY=()", &format!("*)\n                    {ids}"));
    format!("{before}{section}{after}")
}

/// Makes a script ask for values that only the store knows, where the shell has a way.
fn with_values(shell: Shell, script: String) -> String {
    let before = script.clone();
    let after = match shell {
        Shell::Bash => {
            let script = bash_asks_for_id(&script);
            VALUES.iter().fold(script, |script, (flag, kind)| {
                let files = format!("--{flag})\n                    COMPREPLY=($(compgen -f \"${{cur}}\"))");
                let values = format!(
                    "--{flag})\n                    local IFS=$'\\n'\n                    \
                 COMPREPLY=($(compgen -W \"$(_opik_offline_values {kind})\" -- \"${{cur}}\"))"
                );
                script.replace(&files, &values)
            }) + r#"
_opik_offline_values() {
    local i db=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        [[ "${COMP_WORDS[i]}" == --db ]] && db=(--db "${COMP_WORDS[i+1]}")
    done
    "${COMP_WORDS[0]}" __values "$1" "${db[@]}" 2>/dev/null | cut -f 1
}
"#
        }
        Shell::Zsh => {
            let line = |line: &str| {
                let kind = VALUES.iter().find(|(flag, _)| line.starts_with(&format!("'*--{flag}=[")));
                match (kind, line.rsplit_once(":_default'")) {
                    (Some((_, kind)), Some((spec, end))) => format!("{spec}:{{_opik_offline_values {kind}}}'{end}\n"),
                    _ => format!("{line}\n"),
                }
            };
            let script: String = script.lines().map(line).collect();
            let script = script.replace(
                "Show this message in full:_default'",
                "Show this message in full:{_opik_offline_values ids}'",
            );
            let ask = r#"_opik_offline_values() {
    # The whole line: _arguments takes --db out of $words when it precedes other flags of a subcommand.
    local -a db values line=(${(Q)${(z)LBUFFER}})
    local at=${line[(i)--db]}
    (( at < $#line )) && db=(--db "${line[at+1]}")
    values=(${(f)"$(_call_program values opik-offline __values $1 ${(q)db} 2>/dev/null)"})
    compadd -- ${values%%$'\t'*}
}

"#;
            script.replacen("_opik-offline() {", &format!("{ask}_opik-offline() {{"), 1)
        }
        Shell::Fish => {
            let line = |line: &str| {
                let kind = VALUES.iter().find(|(flag, _)| line.contains(&format!(" -l {flag} -d ")));
                match kind {
                    Some((_, kind)) if line.ends_with(" -r") => {
                        format!("{line} -f -a '(__opik_offline_values {kind})'\n")
                    }
                    _ => format!("{line}\n"),
                }
            };
            let mut script: String = script.lines().map(line).collect();
            script.push_str(
                "function __opik_offline_values
    set -l words (commandline -opc)
    if set -l at (contains -i -- --db $words)
        opik-offline __values $argv[1] --db $words[(math $at + 1)] 2>/dev/null
    else
        opik-offline __values $argv[1] 2>/dev/null
    end
end
complete -c opik-offline -n \"__fish_opik_offline_using_subcommand inspect\" -f -a '(__opik_offline_values ids)'
",
            );
            // No file can stand where these end; flags that take one say so.
            for command in ["healthcheck", "status", "replay", "purge"] {
                script.push_str(&format!(
                    "complete -c opik-offline -n \"__fish_opik_offline_using_subcommand {command}\" -f\n"
                ));
            }
            script
        }
        _ => return script,
    };
    assert_ne!(before, after, "clap_complete writes {shell} in another way now");
    after
}

#[test]
fn the_tables_in_docs_are_current() {
    assert_table_is_current("docs/configuration.md", "settings", &settings_table());
    assert_table_is_current("docs/operations.md", "metrics", &metrics_table());
}

/// Compares the table between its marks in a page with what the program defines, or rewrites it when asked to.
fn assert_table_is_current(page: &str, name: &str, table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let committed = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {page}: {error}"));
    let begin = format!("<!-- {name}: written by OPIK_OFFLINE_UPDATE=1 cargo test --test generated -->\n");
    let end = format!("<!-- end of {name} -->");
    let (before, rest) = committed.split_once(&begin).unwrap_or_else(|| panic!("no mark in {page} begins {name}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no mark in {page} ends {name}"));
    let current = format!("{before}{begin}{table}{end}{after}");
    if std::env::var_os("OPIK_OFFLINE_UPDATE").is_some() {
        fs::write(&path, &current).unwrap_or_else(|error| panic!("cannot write {page}: {error}"));
        return;
    }
    assert!(
        committed == current,
        "the table of {name} in {page} is out of date\n\
         hint: OPIK_OFFLINE_UPDATE=1 cargo test --test generated, then commit"
    );
}

/// Renders every metric of `/metrics`, in its order.
fn metrics_table() -> String {
    let mut table = "| metric | type | meaning |\n| --- | --- | --- |\n".to_owned();
    for Description { name, help, kind } in DESCRIPTIONS {
        let kind = match kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        };
        table.push_str(&format!("| `{name}` | {kind} | {help} |\n"));
    }
    table
}

/// Renders every setting with its variable, file and default; the agent's own come last.
fn settings_table() -> String {
    let mut settings: Vec<&Setting> = SETTINGS.iter().collect();
    settings.sort_by_key(|setting| setting.environment.starts_with("OPIK_OFFLINE_"));
    let mut table = "| variable, flag, file | meaning |\n| --- | --- |\n".to_owned();
    for Setting { key, about, default, environment, flag, file } in settings {
        let file = match file {
            Keeps::OpikConfig => format!("<br>`{key}` in `~/.opik.config`"),
            Keeps::ConfigYaml => format!("<br>`{key}` in `config.yaml`"),
            Keeps::Nowhere => String::new(),
        };
        let flag = flag.map_or(String::new(), |flag| format!("<br>`{flag}`"));
        // Two columns fit a page: a table of four cuts its last one off there.
        table.push_str(&format!("| `{environment}`{flag}{file} | {about}. Default: `{default}` |\n"));
    }
    table
}

/// Compares generated files with a folder of this repository, or rewrites it when asked to.
fn assert_current(folder: &str, files: &BTreeMap<String, String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    if std::env::var_os("OPIK_OFFLINE_UPDATE").is_some() {
        fs::create_dir_all(&path).expect("the folder can be made");
        for entry in fs::read_dir(&path).expect("the folder can be read") {
            fs::remove_file(entry.expect("the folder can be read").path()).expect("an old file can be removed");
        }
        for (name, text) in files {
            fs::write(path.join(name), text).expect("a file can be written");
        }
    }
    let committed: BTreeMap<String, String> = fs::read_dir(&path)
        .into_iter()
        .flatten()
        .map(|entry| entry.expect("the folder can be read"))
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path())))
        .map(|(name, text)| (name, text.expect("a generated file is text")))
        .collect();
    let outdated: Vec<&String> =
        files.keys().chain(committed.keys()).filter(|name| files.get(*name) != committed.get(*name)).collect();
    assert!(
        outdated.is_empty(),
        "{folder}/ is not what the command line says: {outdated:?}\n\
         hint: OPIK_OFFLINE_UPDATE=1 cargo test --test generated, then commit"
    );
}

/// Renders one manual page. The text of `--help` after the options becomes separate sections.
fn page(command: &Command, name: &str) -> String {
    // clap_mangen does not describe what `-h` leaves out.
    let man = Man::new(command.clone().mut_args(|arg| arg.hide_short_help(false)))
        .title(name.to_uppercase())
        .source(format!("{NAME} {}", env!("CARGO_PKG_VERSION")))
        .manual("opik-offline manual");
    let mut text = Vec::new();
    let render = |rendered: std::io::Result<()>| rendered.expect("memory can be written");
    render(man.render_title(&mut text));
    render(man.render_name_section(&mut text));
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").trim();
    text.extend(format!(".SH SYNOPSIS\n\\fB{}\\fR\n", escaped(usage)).into_bytes());
    render(man.render_description_section(&mut text));
    render(man.render_options_section(&mut text));
    let is_main = command.has_subcommands();
    if is_main {
        text.extend(commands(command).into_bytes());
    }
    let after = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    text.extend(sections(&after).into_bytes());
    if is_main {
        text.extend(environment().into_bytes());
    } else {
        text.extend(environment_elsewhere(&after).into_bytes());
    }
    text.extend(files(is_main).into_bytes());
    text.extend(see_also(command, name).into_bytes());
    // No line of ours ends with a blank.
    let text = String::from_utf8(text).expect("a page is text");
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

fn commands(command: &Command) -> String {
    let mut text = ".SH COMMANDS\n".to_owned();
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        let about = subcommand.get_about().map(ToString::to_string).unwrap_or_default();
        text.push_str(&tagged(&format!("{NAME}-{}(1)", subcommand.get_name()), &about));
    }
    text
}

/// Turns `Examples:` and the other blocks after the options into sections.
///
/// Two blanks before a line are text, four are a command; a line that begins with a number is an exit code.
fn sections(after: &str) -> String {
    let mut text = String::new();
    for line in after.lines().filter(|line| !line.is_empty()) {
        if let Some(command) = line.strip_prefix("    ") {
            text.push_str(&format!(".RS 4\n.nf\n{}\n.fi\n.RE\n", escaped(command)));
        } else if let Some(said) = line.strip_prefix("  ") {
            match said.split_once("  ") {
                Some((code, meaning)) if code.parse::<u8>().is_ok() => text.push_str(&tagged(code, meaning.trim())),
                _ => text.push_str(&format!(".PP\n{}\n", escaped(said))),
            }
        } else {
            let heading = line.strip_suffix(':').unwrap_or_else(|| panic!("{line:?} stands outside a section"));
            let heading = if heading == "Exit codes" { "EXIT STATUS".to_owned() } else { heading.to_uppercase() };
            text.push_str(&format!(".SH \"{heading}\"\n"));
        }
    }
    text
}

/// Every setting's variable, from the table that the program itself reads.
fn environment() -> String {
    let mut settings: Vec<&Setting> = SETTINGS.iter().collect();
    settings.sort_by_key(|setting| setting.environment);
    let mut text = ".SH ENVIRONMENT\n".to_owned();
    for setting in settings {
        let default = match setting.default {
            "none" => String::new(),
            default => format!(" [default: {default}]"),
        };
        text.push_str(&tagged(setting.environment, &format!("{}{default}", setting.about)));
    }
    text.push_str(&tagged("NO_COLOR", "When set, no colours are used"));
    text
}

/// The section of a command's page about its environment: its own variables, if it has any, and the page that lists
/// all.
fn environment_elsewhere(after: &str) -> String {
    let heading = if after.contains("\nEnvironment:\n") { "" } else { ".SH ENVIRONMENT\n" };
    let said = "Every setting has a variable (OPIK_..., OPIK_OFFLINE_...), and a flag counts before it:";
    format!("{heading}.PP\n{}\n\\fBopik\\-offline\\fR(1) lists them all.\n", escaped(said))
}

fn files(is_main: bool) -> String {
    let mut text = ".SH FILES\n".to_owned();
    let store = "The message store, unless \\-\\-db or OPIK_OFFLINE_DB names another";
    text.push_str(&format!(".TP\n\\fI~/.local/share/opik\\-offline/opik_messages.db\\fR\n{store}\n"));
    if is_main {
        for (path, said) in [
            ("~/.opik.config", "The configuration that the SDKs read too"),
            ("~/.config/opik\\-offline/config.yaml", "Settings of the agent alone"),
        ] {
            text.push_str(&format!(".TP\n\\fI{path}\\fR\n{said}\n"));
        }
    } else {
        text.push_str(".PP\nConfiguration files are described in \\fBopik\\-offline\\fR(1).\n");
    }
    text
}

fn see_also(command: &Command, name: &str) -> String {
    let others: Vec<String> = if command.has_subcommands() {
        let subcommands = command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help");
        subcommands.map(|subcommand| format!("{name}-{}", subcommand.get_name())).collect()
    } else {
        vec![NAME.to_owned()]
    };
    let others: Vec<String> = others.iter().map(|other| format!("\\fB{}\\fR(1)", escaped(other))).collect();
    format!(".SH \"SEE ALSO\"\n{}\n", others.join(", "))
}

fn tagged(tag: &str, said: &str) -> String {
    format!(".TP\n\\fB{}\\fR\n{}\n", escaped(tag), escaped(said))
}

/// Escapes what roff would read as its own.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\(rs").replace('-', "\\-").replace('\'', "\\(aq");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}
