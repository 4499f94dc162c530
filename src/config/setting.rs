//! The static description of a setting, without its type and value.

/// The static definition of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key in its file and in `healthcheck`.
    pub key: &'static str,
    /// One sentence without its full stop.
    pub about: &'static str,
    /// In the syntax of the file.
    pub default: &'static str,
    pub environment: &'static str,
    pub flag: Option<&'static str>,
    pub file: Keeps,
}

/// The file in which a setting may be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// `~/.opik.config`: the settings that the SDK has too.
    OpikConfig,
    /// `config.yaml`: the agent's own.
    ConfigYaml,
    Nowhere,
}
