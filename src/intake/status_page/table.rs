//! A table that a narrow window shows as a list of cards, so that nobody has to scroll sideways.
//!
//! Each cell repeats the head of its column, which only the cards show. The roles are written out: what CSS displays
//! as a block is no table for some screen readers.

use std::borrow::Cow;
use std::fmt::Write;

use super::text::{elided, escaped};

/// A table in a section. A head that begins with `>` marks a column of numbers.
pub(super) struct HtmlTable<'a> {
    html: String,
    heads: &'a [&'a str],
}

/// A cell: a name of any length, a text that is short, a whole sentence, or HTML of our own.
pub(super) enum HtmlCell<'a> {
    Long(&'a str),
    Short(Cow<'a, str>),
    Words(&'a str),
    Html(String),
}

impl<'a> HtmlTable<'a> {
    pub(super) fn new(id: &str, caption: &str, heads: &'a [&'a str]) -> Self {
        let mut html = format!(
            r#"<section><table role="table" aria-labelledby="{id}"><caption id="{id}">{caption}</caption><thead role="rowgroup"><tr role="row">"#
        );
        for head in heads {
            let class = if head.starts_with('>') { r#" class="n""# } else { "" };
            let head = head.trim_start_matches('>');
            let _ = write!(html, r#"<th role="columnheader" scope="col"{class}>{head}</th>"#);
        }
        html.push_str(r#"</tr></thead><tbody role="rowgroup">"#);
        Self { html, heads }
    }

    pub(super) fn row(&mut self, cells: &[HtmlCell<'_>]) {
        self.html.push_str(r#"<tr role="row">"#);
        for (cell, head) in cells.iter().zip(self.heads) {
            let (class, value) = match cell {
                HtmlCell::Long(text) => ("wrap", Cow::Owned(escaped(&elided(text)).into_owned())),
                HtmlCell::Words(text) => ("wrap words", escaped(text)),
                HtmlCell::Short(text) if head.starts_with('>') => ("n", escaped(text)),
                HtmlCell::Short(text) => ("", escaped(text)),
                HtmlCell::Html(html) => ("", Cow::Borrowed(html.as_str())),
            };
            let class = if class.is_empty() { String::new() } else { format!(r#" class="{class}""#) };
            let head = head.trim_start_matches('>');
            // One element, which the card places beside the head.
            let value = if value.is_empty() { String::new() } else { format!("<span>{value}</span>") };
            let _ = write!(self.html, r#"<td role="cell" data-head="{head}"{class}>{value}</td>"#);
        }
        self.html.push_str("</tr>");
    }

    /// Ends the table with notes, each of them HTML.
    pub(super) fn end(self, notes: &[String]) -> String {
        self.end_with(notes, "")
    }

    /// Ends the table with notes and more HTML.
    pub(super) fn end_with(mut self, notes: &[String], html: &str) -> String {
        self.html.push_str("</tbody></table>");
        for note in notes.iter().filter(|note| !note.is_empty()) {
            let _ = write!(self.html, r#"<p class="note">{note}</p>"#);
        }
        self.html.push_str(html);
        self.html.push_str("</section>");
        self.html
    }
}

/// Returns a cell that does not wrap.
pub(super) fn short(text: impl Into<String>) -> HtmlCell<'static> {
    HtmlCell::Short(Cow::Owned(text.into()))
}
