//! Text from elsewhere, escaped so that it is harmless on a terminal, in a log line and on a page.
//!
//! Names of projects, workspaces and files, answers of servers and output of other processes may contain anything:
//! escape sequences that set a title or hide text, controls that reverse the reading direction, line breaks that forge
//! a line, invisible characters that make two names look alike, combining marks piled up over other lines. All of these
//! are written as the escapes that programmers know (`\u{202e}`, `\n`), so that a reader sees what is really there.
//!
//! [`line()`] escapes text within a line, [`lines`] a text of several lines, [`json`] a document that programs parse:
//! its values stay the same, because JSON has its own escapes. Escaping is idempotent. Widths are measured in cells of
//! a terminal ([`cells`]).

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::Write;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Maximum number of combining marks shown on one letter; no script in use needs more.
const MARKS_MAX: usize = 6;
/// The base character for a combining mark without a letter before it.
const CARRIER: char = '◌';
/// Replaces omitted marks, and the middle of a long name.
const ELLIPSIS: char = '…';

/// Returns whether a character controls the device or the text around it, or is invisible.
///
/// Spaces of any width are visible as such. U+FE00 to U+FE0F only select a variant of the preceding character.
pub(crate) fn is_hazardous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Invisible hyphens and joiners.
            '\u{ad}' | '\u{34f}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2064}' | '\u{feff}'
            // Directions: marks, embeddings, overrides and isolates, and deprecated format characters.
            | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
            // Line and paragraph separators.
            | '\u{2028}' | '\u{2029}'
            // Letters without a glyph.
            | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}' | '\u{ffa0}'
            // Annotations, and format controls of shorthand and musical notation.
            | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            // Tags and variation selectors, which can encode a whole hidden text.
            | '\u{e0000}'..='\u{e0fff}'
            | '\u{fdd0}'..='\u{fdef}')
        || u32::from(c) & 0xfffe == 0xfffe
}

fn is_mark(c: char) -> bool {
    c.width() == Some(0) && !is_jamo(c)
}

/// Returns whether it is a vowel or final of Hangul: a letter, though it takes no cell of its own.
fn is_jamo(c: char) -> bool {
    matches!(c, '\u{1160}'..='\u{11ff}' | '\u{d7b0}'..='\u{d7ff}')
}

/// Escapes a text for one line.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// Escapes a text of several lines.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n')
}

fn escaped(text: &str, stays: fn(char) -> bool) -> Cow<'_, str> {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte.is_ascii() && stays(char::from(byte))) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    // Marks since the last base character; `None` if there is none.
    let mut marks = None;
    for c in text.chars() {
        if stays(c) {
            safe.push(c);
            marks = None;
        } else if is_hazardous(c) {
            match c {
                '\n' => safe.push_str("\\n"),
                '\r' => safe.push_str("\\r"),
                '\t' => safe.push_str("\\t"),
                c => {
                    // Writing to a String can't fail.
                    let _ = write!(safe, "\\u{{{:x}}}", u32::from(c));
                }
            }
            marks = Some(0);
        } else if is_mark(c) {
            let count = marks.unwrap_or_else(|| {
                safe.push(CARRIER);
                0
            });
            match count {
                0..MARKS_MAX => safe.push(c),
                MARKS_MAX => safe.push(ELLIPSIS),
                _ => {}
            }
            marks = Some(count + 1);
        } else {
            safe.push(c);
            marks = Some(0);
        }
    }
    Cow::Owned(safe)
}

/// Escapes a JSON document, or a piece of one, without changing its meaning.
///
/// Hazardous characters can only be inside a string, where every character may be written as an escape.
pub(crate) fn json(document: &str) -> Cow<'_, str> {
    if document.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\n') {
        return Cow::Borrowed(document);
    }
    let mut safe = String::with_capacity(document.len() + 16);
    for (c, is_safe) in judged(document) {
        if is_safe || c == '\n' {
            safe.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(safe, "\\u{unit:04x}");
        }
    }
    Cow::Owned(safe)
}

/// Returns each character, and whether it may be shown unescaped: it is not hazardous, and not one mark too many.
pub(crate) fn judged(text: &str) -> impl Iterator<Item = (char, bool)> {
    let mut marks = 0;
    text.chars().map(move |c| {
        marks = if is_mark(c) { marks + 1 } else { 0 };
        (c, !is_hazardous(c) && marks <= MARKS_MAX)
    })
}

/// Returns the width of a line in cells.
pub(crate) fn cells(line: &str) -> usize {
    if line.is_ascii() { line.len() } else { line.width() }
}

/// Shortens a line to at most this many cells: a longer one keeps its beginning and its end.
pub(crate) fn elided(line: &str, cells_max: usize) -> Cow<'_, str> {
    if cells(line) <= cells_max {
        return Cow::Borrowed(line);
    }
    let end = cells_max.saturating_sub(1) / 2;
    let begin = cells_max.saturating_sub(1) - end;
    let mut short = beginning(line, begin).to_owned();
    short.push(ELLIPSIS);
    short.push_str(ending(line, end));
    Cow::Owned(short)
}

/// Maximum width of a name in a sentence, in cells; tables and `inspect ID` show longer ones.
const NAME_MAX: usize = 120;

/// Escapes a name for a sentence, and shortens it so that the sentence stays readable.
pub(crate) fn name(text: &str) -> String {
    elided(&line(text), NAME_MAX).into_owned()
}

/// Pads a line with spaces to at least this many cells.
pub(crate) fn padded(line: &str, cells_min: usize) -> String {
    let spaces = cells_min.saturating_sub(cells(line));
    format!("{line}{:spaces$}", "")
}

/// Truncates a line to at most this many cells, with an ellipsis.
pub(crate) fn cut(line: &str, cells_max: usize) -> Cow<'_, str> {
    if cells(line) <= cells_max {
        return Cow::Borrowed(line);
    }
    match cells_max {
        0 => Cow::Borrowed(""),
        _ => Cow::Owned(beginning(line, cells_max - 1).to_owned() + "…"),
    }
}

/// Returns the byte at which this cell of a line begins; `None` if the line is shorter, or a character covers it.
pub(crate) fn byte_at(line: &str, cell: usize) -> Option<usize> {
    let ends = line.char_indices().map(|(at, _)| at).chain([line.len()]);
    ends.into_iter().find(|at| cells(&line[..*at]) >= cell).filter(|at| cells(&line[..*at]) == cell)
}

/// Returns by how many cells a character may widen the text before it.
pub(crate) fn cells_of(c: char) -> usize {
    // An emoji variant may be wider than the character that it modifies.
    if c == '\u{fe0f}' { 1 } else { c.width().unwrap_or(0) }
}

/// Returns the longest prefix that fits into these cells; a letter keeps its marks.
fn beginning(line: &str, cells_max: usize) -> &str {
    let mut taken = 0;
    for (at, c) in line.char_indices() {
        taken += cells_of(c);
        if taken > cells_max {
            return &line[..at];
        }
    }
    line
}

/// Returns the longest suffix that fits into these cells; it does not begin with a mark.
fn ending(line: &str, cells_max: usize) -> &str {
    let mut taken = 0;
    let mut from = line.len();
    for (at, c) in line.char_indices().rev() {
        taken += cells_of(c);
        if taken > cells_max {
            break;
        }
        if !is_mark(c) {
            from = at;
        }
    }
    &line[from..]
}

/// Quotes a path as one word of a shell, escaped for a terminal.
pub(crate) fn shell_word(path: &OsStr) -> String {
    let text = match path.to_str() {
        // Commands are shown in backticks.
        Some(text) if line(text) == text && !text.contains('`') => text,
        _ => return shell_bytes(path.as_encoded_bytes()),
    };
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Quotes any bytes as one word of bash, zsh and ksh (`$'...'`), which the next POSIX adopts.
fn shell_bytes(path: &[u8]) -> String {
    let mut word = "$'".to_owned();
    let escape = |word: &mut String, bytes: &[u8]| {
        word.extend(bytes.iter().map(|byte| format!("\\{byte:03o}")));
    };
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' | '\'' => word.extend(['\\', c]),
                '`' => escape(&mut word, b"`"),
                // A mark alone is harmless, and a pile of them would be cut.
                c if is_hazardous(c) || is_mark(c) => escape(&mut word, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => word.push(c),
            }
        }
        escape(&mut word, chunk.invalid());
    }
    word + "'"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hazards_are_escaped_and_letters_are_kept() {
        for (text, expected) in [
            ("plain-name_1 (ä) ", "plain-name_1 (ä) "),
            ("日本語 한국어 עברית العربية ไทย हिन्दी", "日本語 한국어 עברית العربية ไทย हिन्दी"),
            ("🚀❤️🇩🇪👍🏽", "🚀❤️🇩🇪👍🏽"),
            ("e\u{301}", "e\u{301}"),
            ("\u{1b}]0;title\u{7}", "\\u{1b}]0;title\\u{7}"),
            ("\u{1b}]8;;http://x\u{1b}\\y", "\\u{1b}]8;;http://x\\u{1b}\\y"),
            ("\u{9b}8m\u{85}\u{7f}\0", "\\u{9b}8m\\u{85}\\u{7f}\\u{0}"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{202e}\u{2066}\u{200f}\u{61c}", "\\u{202e}\\u{2066}\\u{200f}\\u{61c}"),
            ("ad\u{200b}min\u{feff}\u{ad}", "ad\\u{200b}min\\u{feff}\\u{ad}"),
            ("\u{2028}\u{2029}", "\\u{2028}\\u{2029}"),
            ("\u{e0041}\u{e0100}\u{fffe}\u{10ffff}\u{fdd0}", "\\u{e0041}\\u{e0100}\\u{fffe}\\u{10ffff}\\u{fdd0}"),
            ("\u{301}x", "◌\u{301}x"),
            ("\u{3164}", "\\u{3164}"),
        ] {
            assert_eq!(line(text), expected);
        }
        let flood = format!("z{}y", "\u{301}".repeat(1000));
        assert_eq!(line(&flood), format!("z{}…y", "\u{301}".repeat(MARKS_MAX)));
        assert_eq!(lines("a\n\tb\r\n\u{1b}"), "a\n\\tb\\r\n\\u{1b}");
        assert_eq!(lines("a\n\u{301}"), "a\n◌\u{301}", "a mark does not reach into the line above");
    }

    #[test]
    fn a_document_keeps_its_meaning() {
        let value = serde_json::json!({ "\u{9b}k": "\u{202e}\u{e0041}\u{7f}\u{1b}\n\u{10ffff}ä" });
        for text in [value.to_string(), serde_json::to_string_pretty(&value).expect("JSON")] {
            let safe = json(&text);
            assert!(!safe.contains(|c| is_hazardous(c) && c != '\n'), "{safe}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).expect("JSON"), value);
        }
        let flood = serde_json::Value::from(format!("z{}", "\u{301}".repeat(1000))).to_string();
        assert!(!json(&flood).contains(&"\u{301}".repeat(MARKS_MAX + 1)));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json(&flood)).expect("JSON").to_string(), flood);
        assert_eq!(json(r#""\ud83d \\u""#), r#""\ud83d \\u""#, "escapes are left alone");
    }

    #[test]
    fn widths_are_measured_in_cells() {
        assert_eq!([cells("abc"), cells("日本"), cells("e\u{301}"), cells("🚀")], [3, 4, 1, 2]);
        assert_eq!(elided("short", 5), "short");
        assert_eq!(elided("a-long-name", 7), "a-l…ame");
        assert_eq!(elided("日本語のプロジェクト", 8), "日本…ト", "half a character does not fit");
        assert_eq!(elided("e\u{301}e\u{301}e\u{301}e\u{301}", 3), "e\u{301}…e\u{301}");
        assert_eq!([padded("日本", 5), padded("日本", 3)], ["日本 ", "日本"]);
        assert_eq!(cut("twelve chars", 12), "twelve chars");
        assert_eq!(cut("twelve chars", 8), "twelve …");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("日本語", 0), "");
        assert_eq!([0, 1, 2, 4, 5].map(|cell| byte_at("日本x", cell)), [Some(0), None, Some(3), Some(6), Some(7)]);
    }

    #[test]
    fn a_path_is_quoted_as_one_word() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;

        let word = |text: &str| shell_word(text.as_ref());
        assert_eq!(word("/a/b.db"), "/a/b.db");
        assert_eq!(shell_word(OsStr::from_bytes(b"/a\xff b")), r"$'/a\377 b'");
        assert_eq!(word("/a\u{1b}[8m\n\u{202e}'b"), r"$'/a\033[8m\012\342\200\256\'b'");
        assert_eq!(word("/e\u{301}"), "'/e\u{301}'");
        assert_eq!(word(&format!("/e{}", "\u{301}".repeat(7))), format!("$'/e{}'", r"\314\201".repeat(7)));
        assert_eq!(word("/my files/it's.db"), r"'/my files/it'\''s.db'");
    }

    proptest! {
        #[test]
        fn no_hazardous_character_passes(text in any::<String>(), marks in "[\u{300}-\u{36f}\u{202a}-\u{202e}a\n\u{1b}\u{9b}]{0,80}") {
            for text in [text.clone(), marks.clone(), marks + &text] {
                let one = line(&text).into_owned();
                prop_assert!(!one.contains(is_hazardous), "{:?}", one);
                prop_assert_eq!(line(&one), one.as_str(), "harmless text is unchanged");
                let many = lines(&text).into_owned();
                prop_assert!(!many.contains(|c| is_hazardous(c) && c != '\n'), "{:?}", many);
                prop_assert_eq!(lines(&many), many.as_str());
            }
        }

        #[test]
        fn a_shortened_name_fits_and_stays_harmless(text in any::<String>(), cells_max in 0_usize..40) {
            let name = line(&text).into_owned();
            // Two characters that a terminal joins may take fewer cells than both of them, never more.
            prop_assert!(cells(&elided(&name, cells_max.max(1))) <= cells_max.max(1));
            prop_assert!(cells(&cut(&name, cells_max)) <= cells_max);
            prop_assert!(!elided(&name, cells_max).contains(is_hazardous));
        }

        #[test]
        fn every_document_keeps_its_meaning(text in any::<String>()) {
            let written = serde_json::to_string(&text).expect("a text is JSON");
            let safe = json(&written);
            prop_assert!(!safe.contains(is_hazardous));
            prop_assert_eq!(serde_json::from_str::<String>(&safe).expect("JSON"), text);
        }
    }
}
