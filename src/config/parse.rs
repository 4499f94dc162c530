//! Parses and validates the raw value of a layer.

use super::error::{BadValue, ConfigError};
use super::setting::Setting;
use super::sources::{Layers, Raw, Source, Sourced};
use super::value::{Limit, Value, any};

impl Layers<'_> {
    pub(super) fn parse<T: Value>(&self, setting: &'static Setting, raw: Raw) -> Result<Sourced<T>, ConfigError> {
        self.parse_within(setting, raw, &any)
    }

    pub(super) fn parse_within<T: Value>(
        &self,
        setting: &'static Setting,
        raw: Raw,
        limit: Limit<'_, T>,
    ) -> Result<Sourced<T>, ConfigError> {
        let value = T::read(&raw.text, self.home()).and_then(|value| limit(&value).map(|()| value));
        match value {
            Ok(value) => Ok(Sourced { value, source: raw.source }),
            Err(reason) => Err(bad_value::<T>(setting, &raw, reason)),
        }
    }

    pub(super) fn default<T: Value>(&self, setting: &'static Setting) -> Result<Sourced<T>, ConfigError> {
        self.parse(setting, Raw { text: setting.default.into(), source: Source::Default })
    }
}

/// Returns the error for a value that failed to parse or validate.
pub(super) fn bad_value<T: Value>(setting: &'static Setting, raw: &Raw, reason: String) -> ConfigError {
    ConfigError::Value(Box::new(BadValue {
        key: setting.key,
        value: T::mask(raw.text.to_string_lossy().trim()),
        origin: raw.source.clone(),
        reason,
        hint: Some(format!(
            "{} means: {}; the default is {}",
            setting.key,
            in_sentence(setting.about),
            setting.default
        )),
    }))
}

/// Lower-cases the first letter for use inside a sentence, except of words such as `API key`.
fn in_sentence(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if chars.clone().next().is_some_and(|c| !c.is_uppercase()) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}
