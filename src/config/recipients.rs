//! A list of public keys.

use super::value::Value;

/// Public keys of the fleet's replayers as configured. The room that seals decides whether they are keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecipientList(Vec<String>);

impl RecipientList {
    /// Returns the keys.
    pub fn keys(&self) -> &[String] {
        &self.0
    }
}

impl Value for RecipientList {
    fn parse(text: &str) -> Result<RecipientList, String> {
        if text.is_empty() || text.eq_ignore_ascii_case("none") {
            return Ok(RecipientList::default());
        }
        let keys = text.split([',', ' ']).map(str::trim).filter(|key| !key.is_empty());
        keys.map(|key| check(key).map(|()| key.to_owned())).collect::<Result<_, _>>().map(RecipientList)
    }

    fn show(&self) -> String {
        if self.0.is_empty() { "none".to_owned() } else { self.0.join(",") }
    }

    /// A private key that was named by mistake must not be printed.
    fn mask(text: &str) -> String {
        if text.to_ascii_uppercase().contains("SECRET-KEY") { "***".to_owned() } else { text.to_owned() }
    }
}

fn check(key: &str) -> Result<(), String> {
    if key.to_ascii_uppercase().contains("SECRET-KEY") {
        return Err("holds a private key; name the public one, which begins with age1".to_owned());
    }
    match key.strip_prefix("age1") {
        Some(rest) if !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) => Ok(()),
        _ => Err("holds an entry that is not a public key (age1...)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_keys_parse_from_a_list_and_a_private_one_is_refused_and_masked() {
        assert_eq!(RecipientList::parse("none"), Ok(RecipientList::default()));
        let list = RecipientList::parse("age1abc, age1def").expect("two keys");
        assert_eq!((list.keys().len(), list.show()), (2, "age1abc,age1def".to_owned()));
        assert!(RecipientList::parse("ssh-ed25519 AAAA").is_err());
        let private = "AGE-SECRET-KEY-1QQQQ";
        assert!(RecipientList::parse(private).is_err());
        assert_eq!(RecipientList::mask(private), "***", "a private key would be printed");
    }
}
