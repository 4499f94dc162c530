//! Resolves every setting, together with the source of its value.
//!
//! A value is looked up in five layers; the first layer that has it wins:
//!
//! 1. the command line: [`Flags`];
//! 2. the environment, where the SDK's own variables keep their names (`OPIK_WORKSPACE`) and the agent's start with
//!    `OPIK_OFFLINE_`;
//! 3. `~/.opik.config`, or the file in `OPIK_CONFIG_PATH`: the file that the SDKs read, for the settings they share
//!    with us;
//! 4. `<config dir>/opik-offline/config.yaml`, for the agent's own settings;
//! 5. the default.
//!
//! A blank variable or file value counts as unset. A value that fails to parse or validate is an error that names key,
//! value and source; there is no fallback to a lower layer. A missing file is fine unless the user named it. Unknown
//! keys are errors in `config.yaml`, which is ours, and ignored in `~/.opik.config`, where the SDK keeps many more.
//!
//! This is the only room that reads the environment, through [`Environment`]. It opens the two files, nothing else:
//! the rooms that use a store or certificate check whether it is readable. Secrets are masked in everything that can be
//! printed.

mod error;
mod fleet_url;
mod header_lines;
mod hosts;
pub mod ini;
mod no_proxy;
mod parse;
mod proxy;
mod python;
mod recipients;
mod scan;
mod secret;
pub mod server_url;
mod service_manager;
mod setting;
mod settings;
mod sources;
pub mod units;
mod value;
mod wrapped;
mod yaml;

#[cfg(test)]
mod tests;

use std::ffi::OsString;

pub use error::{BadValue, ConfigError};
pub use fleet_url::{FleetScheme, FleetUrl, FleetVariables};
pub use header_lines::HeaderLines;
pub use proxy::{ProxyRules, ProxyScheme, ProxyUrl};
pub use recipients::RecipientList;
pub use scan::Misconfiguration;
pub use secret::{KeyText, Secret};
pub use server_url::{ServerUrl, ServerUrlError};
pub use service_manager::ServiceManager;
pub use setting::{Keeps, Setting};
pub use settings::{Config, Flags, SETTINGS, SettingLine, token_in};
pub use sources::{ConfigFile, Environment, ProcessEnvironment, Source, Sourced};
pub use units::ByteSize;
pub use value::{AcknowledgeAt, DepotAwayPolicy, FleetCredentials, LogFormat, LogLevel, WhenFull};
pub use wrapped::{WRAPPED_BY, WRAPPED_PROXY, url_in_home_file};

/// Returns whether the user disabled colours: `NO_COLOR` is set and not empty (<https://no-color.org>).
pub fn is_no_color_set(environment: &dyn Environment) -> bool {
    environment.variable("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Returns whether the locale is UTF-8, according to the first of `LC_ALL`, `LC_CTYPE` and `LANG` that is set (POSIX).
pub fn is_utf8_locale(environment: &dyn Environment) -> bool {
    let set = |name| environment.variable(name).filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
    let locale = locale.map(|locale| locale.to_string_lossy().to_ascii_lowercase());
    locale.is_some_and(|locale| locale.contains("utf-8") || locale.contains("utf8"))
}

/// Returns a warning for each unknown `OPIK_OFFLINE_...` variable: a typo there would silently do nothing.
pub fn unknown_variables(environment: &dyn Environment) -> Vec<String> {
    const PREFIX: &str = "OPIK_OFFLINE_";
    /// Below this similarity a guess would mislead more than it helps.
    const SIMILARITY_MIN: f64 = 0.8;
    let ours = || SETTINGS.iter().map(|setting| setting.environment).filter(|name| name.starts_with(PREFIX));
    let told = |name: String| {
        let similar = |known: &str| strsim::jaro_winkler(&name[PREFIX.len()..], &known[PREFIX.len()..]);
        let nearest = ours().map(|known| (similar(known), known)).max_by(|a, b| a.0.total_cmp(&b.0));
        match nearest.filter(|(similarity, _)| *similarity >= SIMILARITY_MIN) {
            Some((_, nearest)) => format!("unknown variable {name} is ignored; did you mean {nearest}?"),
            None => format!("unknown variable {name} is ignored; `opik-offline healthcheck` lists all settings"),
        }
    };
    let is_known =
        |name: &String| [WRAPPED_BY, WRAPPED_PROXY].contains(&name.as_str()) || ours().any(|known| known == name);
    environment.names(PREFIX).into_iter().filter(|name| !is_known(name)).map(told).collect()
}

/// Returns the pager command line for `sh`: `PAGER`, else `less -FRX`; `None` for an empty
/// `PAGER` or `cat`, which disable the pager.
pub fn pager(environment: &dyn Environment) -> Option<OsString> {
    match environment.variable("PAGER") {
        None => Some("less -FRX".into()),
        Some(pager) if pager.is_empty() || pager == "cat" => None,
        Some(pager) => Some(pager),
    }
}

/// Returns the folder in which a Python process of the same environment keeps temporary files (`tempfile.gettempdir`).
pub fn temp_dir(environment: &dyn Environment) -> std::path::PathBuf {
    let named = ["TMPDIR", "TEMP", "TMP"].into_iter().filter_map(|name| environment.variable(name));
    let known = ["/tmp", "/var/tmp", "/usr/tmp"].into_iter().map(Into::into);
    let mut candidates = named.filter(|value| !value.is_empty()).chain(known).map(std::path::PathBuf::from);
    candidates.find(|folder| folder.is_dir()).unwrap_or_else(|| "/tmp".into())
}

impl Config {
    /// Resolves every setting through the five layers.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for the first setting or file that fails to parse or validate: a mistake in the
    /// configuration that the user has to correct.
    pub fn resolve(flags: &Flags, environment: &dyn Environment) -> Result<Config, ConfigError> {
        let mut config = Config::from_layers(sources::Layers::read(flags.values(), environment)?)?;
        if config.fleet.value.is_some() {
            config.fleet_variables = FleetVariables::read(environment);
        }
        config.check_listen()?;
        config.check_keys()?;
        Ok(config)
    }
}
