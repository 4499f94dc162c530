//! The sources of values, by precedence: flag, environment, `~/.opik.config`, `config.yaml`, default.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::setting::{Keeps, Setting};
use super::{ini, yaml};

/// The layer of a value. A later variant takes precedence over an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Default,
    /// The server address in an API key of the form `<key>*<base64>`, with the source of the key.
    ApiKey(Box<Source>),
    /// `<config dir>/opik-offline/config.yaml`
    ConfigYaml {
        path: PathBuf,
    },
    /// `~/.opik.config`, or the file that `OPIK_CONFIG_PATH` names.
    OpikConfig {
        path: PathBuf,
    },
    Environment {
        name: &'static str,
    },
    Flag {
        name: &'static str,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::ApiKey(source) => write!(f, "api_key from {source}"),
            Source::ConfigYaml { path } | Source::OpikConfig { path } => write!(f, "{}", path.display()),
            Source::Environment { name } => write!(f, "environment {name}"),
            Source::Flag { name } => write!(f, "flag {name}"),
        }
    }
}

/// A value and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced<T> {
    pub value: T,
    pub source: Source,
}

impl<T> Sourced<T> {
    /// Returns whether the user set the value, even to the default.
    pub fn is_set(&self) -> bool {
        self.source != Source::Default
    }
}

/// The environment of the process: variables and standard folders. All access to them goes through this trait.
pub trait Environment {
    /// Returns an environment variable.
    fn variable(&self, name: &str) -> Option<OsString>;

    /// Returns the names of variables with this prefix; empty if they can't be listed.
    fn names(&self, _prefix: &str) -> Vec<String> {
        Vec::new()
    }

    fn home_dir(&self) -> Option<PathBuf>;

    fn config_dir(&self) -> Option<PathBuf>;

    fn data_dir(&self) -> Option<PathBuf>;
}

/// A test environment: variables, and no folders.
#[cfg(test)]
impl<K: std::borrow::Borrow<str> + Ord, V: AsRef<OsStr>> Environment for std::collections::BTreeMap<K, V> {
    fn variable(&self, name: &str) -> Option<OsString> {
        self.get(name).map(|value| value.as_ref().to_owned())
    }

    fn home_dir(&self) -> Option<PathBuf> {
        None
    }

    fn config_dir(&self) -> Option<PathBuf> {
        None
    }

    fn data_dir(&self) -> Option<PathBuf> {
        None
    }
}

/// The real environment of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnvironment;

impl ProcessEnvironment {
    /// Returns the folder for the state of programs: `$XDG_STATE_HOME`, `~/.local/state`, or the data directory where the
    /// system has no such folder.
    pub fn state_dir(self) -> Option<PathBuf> {
        dirs::state_dir().or_else(dirs::data_local_dir)
    }
}

impl Environment for ProcessEnvironment {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    fn variable(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
        names.sort_unstable();
        names
    }

    fn home_dir(&self) -> Option<PathBuf> {
        dirs::home_dir()
    }

    fn config_dir(&self) -> Option<PathBuf> {
        dirs::config_dir()
    }

    fn data_dir(&self) -> Option<PathBuf> {
        dirs::data_dir()
    }
}

/// A configuration file that was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// The path in full.
    pub path: PathBuf,
    pub is_present: bool,
}

/// A value of a layer before parsing.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub(super) text: OsString,
    pub(super) source: Source,
}

/// The file that the SDKs read, in the home folder.
const HOME_FILE: &str = ".opik.config";

/// All layers, read once.
pub(super) struct Layers<'a> {
    /// Values of flags, by the keys of their settings.
    flags: Vec<(&'static str, OsString)>,
    pub(super) files: Vec<ConfigFile>,
    environment: &'a dyn Environment,
    home: Option<PathBuf>,
    opik_config: Option<FileLayer>,
    config_yaml: Option<FileLayer>,
}

struct FileLayer {
    source: Source,
    values: BTreeMap<String, String>,
}

impl FileLayer {
    fn get(&self, key: &str) -> Option<Raw> {
        let text = self.values.get(key).filter(|text| !text.trim().is_empty())?;
        Some(Raw { text: text.into(), source: self.source.clone() })
    }
}

impl<'a> Layers<'a> {
    pub(super) fn read(
        flags: Vec<(&'static str, OsString)>,
        environment: &'a dyn Environment,
    ) -> Result<Layers<'a>, ConfigError> {
        let home = environment.home_dir();
        let mut layers = Layers { flags, files: Vec::new(), environment, home, opik_config: None, config_yaml: None };
        layers.opik_config = layers.read_opik_config()?;
        layers.config_yaml = layers.read_config_yaml()?;
        Ok(layers)
    }

    /// Reads only `~/.opik.config`; `None` if it can't be read.
    pub(super) fn of_home_file(environment: &'a dyn Environment) -> Option<Layers<'a>> {
        let home = environment.home_dir();
        let mut layers =
            Layers { flags: Vec::new(), files: Vec::new(), environment, home, opik_config: None, config_yaml: None };
        let path = layers.home()?.join(HOME_FILE);
        layers.opik_config = layers.read_ini(&path).ok()?;
        Some(layers)
    }

    /// Returns the value of the highest layer that has the setting; `None` means the default.
    pub(super) fn find(&self, setting: &'static Setting) -> Option<Raw> {
        self.flag(setting).or_else(|| self.variable(setting.environment)).or_else(|| match setting.file {
            Keeps::OpikConfig => self.in_opik_config(setting.key),
            Keeps::ConfigYaml => self.in_config_yaml(setting.key),
            Keeps::Nowhere => None,
        })
    }

    pub(super) fn flag(&self, setting: &'static Setting) -> Option<Raw> {
        let (_, value) = self.flags.iter().find(|(key, _)| *key == setting.key)?;
        let source = Source::Flag { name: setting.flag? };
        // A blank flag is rejected later: unlike a blank variable, it is not an unset template variable.
        Some(Raw { text: value.clone(), source })
    }

    /// Returns a variable; a blank one counts as unset, because `API_KEY=${API_KEY}` turns a missing variable into a
    /// blank one.
    pub(super) fn variable(&self, name: &'static str) -> Option<Raw> {
        let text = self.environment.variable(name)?;
        let is_blank = text.to_str().is_some_and(|text| text.trim().is_empty());
        (!is_blank).then_some(Raw { text, source: Source::Environment { name } })
    }

    /// Returns a variable that exists in lower and upper case: lower case first, and an empty lower-case one hides the
    /// other one, as in Python.
    pub(super) fn either_case(&self, lower: &'static str, upper: Option<&'static str>) -> Option<Raw> {
        match self.environment.variable(lower) {
            Some(_) => self.variable(lower),
            None => self.variable(upper?),
        }
    }

    pub(super) fn in_opik_config(&self, key: &str) -> Option<Raw> {
        self.opik_config.as_ref()?.get(key)
    }

    pub(super) fn in_config_yaml(&self, key: &str) -> Option<Raw> {
        self.config_yaml.as_ref()?.get(key)
    }

    /// Returns the keys of `config.yaml`, each with the file's path.
    pub(super) fn config_yaml_keys(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.config_yaml.iter().flat_map(|layer| match &layer.source {
            Source::ConfigYaml { path } => layer.values.keys().map(|key| (path.as_path(), key.as_str())).collect(),
            _ => Vec::new(),
        })
    }

    pub(super) fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    pub(super) fn data_dir(&self) -> Option<PathBuf> {
        self.environment.data_dir()
    }

    fn read_opik_config(&mut self) -> Result<Option<FileLayer>, ConfigError> {
        const CHOOSES_FILE: &str = "OPIK_CONFIG_PATH";

        let chosen = self.variable(CHOOSES_FILE);
        let path = match &chosen {
            Some(raw) => {
                let text = raw.text.to_str().map_or(raw.text.as_os_str(), |text| OsStr::new(text.trim()));
                expand_home(Path::new(text), self.home())
            }
            None => match self.home() {
                Some(home) => home.join(HOME_FILE),
                None => return Ok(None),
            },
        };
        match (self.read_ini(&path)?, chosen) {
            // Python warns and continues without the file, TypeScript fails; we fail, because the user named the file.
            (None, Some(raw)) => Err(ConfigError::MissingFile { path: self.shown(&path), origin: raw.source }),
            (found, _) => Ok(found),
        }
    }

    /// Parses the SDK's section of a file; `None` if the file does not exist.
    fn read_ini(&mut self, path: &Path) -> Result<Option<FileLayer>, ConfigError> {
        let Some(text) = self.read_file(path)? else { return Ok(None) };
        let shown = self.shown(path);
        let values = ini::read_section(&text, "opik").map_err(|error| ConfigError::Malformed {
            path: shown.clone(),
            line: Some(error.line),
            reason: error.to_string(),
        })?;
        Ok(Some(FileLayer { source: Source::OpikConfig { path: shown }, values }))
    }

    fn read_config_yaml(&mut self) -> Result<Option<FileLayer>, ConfigError> {
        let Some(path) = self.environment.config_dir().map(|dir| dir.join("opik-offline").join("config.yaml")) else {
            return Ok(None);
        };
        let Some(text) = self.read_file(&path)? else {
            return Ok(None);
        };
        let shown = self.shown(&path);
        let values = yaml::read_mapping(&text).map_err(|error| ConfigError::Malformed {
            path: shown.clone(),
            line: error.line,
            reason: error.reason,
        })?;
        Ok(Some(FileLayer { source: Source::ConfigYaml { path: shown }, values }))
    }

    /// Returns the file's text; `None` if it does not exist.
    fn read_file(&mut self, path: &Path) -> Result<Option<String>, ConfigError> {
        /// Far above any real configuration; bounds memory if the path names a device or a log.
        const FILE_BYTES_MAX: u64 = 1 << 20;

        let read = || {
            let mut bytes = Vec::new();
            std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
            io::Result::Ok(bytes)
        };
        let text = match read() {
            Ok(bytes) if bytes.len() as u64 > FILE_BYTES_MAX => Err(io::Error::other("larger than 1MiB")),
            Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| io::Error::other("not valid UTF-8")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let text = text.map_err(|source| ConfigError::Read { path: self.shown(path), source })?;
        self.files.push(ConfigFile { path: path.to_owned(), is_present: text.is_some() });
        Ok(text)
    }

    /// Abbreviates the home folder as `~`.
    fn shown(&self, path: &Path) -> PathBuf {
        match self.home().and_then(|home| path.strip_prefix(home).ok()) {
            Some(below) => Path::new("~").join(below),
            None => path.to_owned(),
        }
    }
}

/// Expands a leading `~`, like Python's `expanduser` and a shell.
pub(super) fn expand_home(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(below), Some(home)) => home.join(below),
        _ => path.to_owned(),
    }
}
