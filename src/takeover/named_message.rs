//! A message as people name it: by its id in a store, or by its stream and its id there. Parsed from the command line.

use crate::fleet::names::StreamId;

/// A message as it is named on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NamedMessage {
    /// Of the local store.
    Stored(i64),
    /// Of a stream of a depot.
    InStream(StreamId, u64),
}

impl NamedMessage {
    /// Parses the id of a message, or `STREAM/ID` of one in a depot.
    ///
    /// # Errors
    ///
    /// What is expected, and the command that lists it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        const LISTED: &str = "as `opik-offline inspect --fleet URL` lists it";
        let Some((stream, message)) = text.split_once('/') else {
            return match (text.parse(), StreamId::parse(text)) {
                (Ok(id), _) => Ok(Self::Stored(id)),
                (_, Some(_)) => Err(format!("this is a stream; expected a message of it, STREAM/ID, {LISTED}")),
                _ => Err(format!("expected a number, as `opik-offline inspect` lists it, or STREAM/ID, {LISTED}")),
            };
        };
        match (StreamId::parse(stream), message.parse()) {
            (Some(stream), Ok(message)) => Ok(Self::InStream(stream, message)),
            (Some(_), _) => Err(format!("expected STREAM/ID with a number behind the slash, {LISTED}")),
            _ => Err(format!("expected STREAM/ID with the id of a stream before the slash, {LISTED}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "01a20445-0b55-7feb-b47d-0000000000ab";

    #[test]
    fn a_message_that_is_named_wrongly_says_how_to_name_it() {
        let stream = StreamId::parse(STREAM).expect("a stream");
        assert_eq!(NamedMessage::parse("42"), Ok(NamedMessage::Stored(42)));
        assert_eq!(NamedMessage::parse(&format!("{STREAM}/7")), Ok(NamedMessage::InStream(stream, 7)));
        for (text, reason) in [
            (STREAM.to_owned(), "this is a stream; expected a message of it, STREAM/ID"),
            (format!("{STREAM}/"), "a number behind the slash"),
            (format!("{STREAM}/x"), "a number behind the slash"),
            ("x/7".to_owned(), "the id of a stream before the slash"),
            ("x".to_owned(), "expected a number"),
        ] {
            let said = NamedMessage::parse(&text).expect_err("it names no message");
            let is_clear = said.contains(reason) && said.contains("`opik-offline inspect --fleet URL`");
            assert!(is_clear, "{text} is a dead end: {said}");
        }
    }
}
