//! A state as a shape and a colour, always beside a word: on the page, in the title of its tab, and as the tab's icon.

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Badge {
    Good,
    Warn,
    Bad,
}

impl Badge {
    /// Returns the shape in the page; its colour follows the page's.
    pub(super) fn html(self) -> String {
        let class = match self {
            Self::Good => "good",
            Self::Warn => "warn",
            Self::Bad => "bad",
        };
        format!(r#"<svg class="mark {class}" viewBox="0 0 10 10" aria-hidden="true">{}</svg>"#, self.shape())
    }

    /// Returns the same shape as a character.
    pub(super) fn symbol(self) -> char {
        match self {
            Self::Good => '●',
            Self::Warn => '▲',
            Self::Bad => '■',
        }
    }

    /// Returns the address of the icon, which contains all of it: a browser that finds one in the page does not request
    /// one from the Opik server.
    pub(super) fn icon(self) -> String {
        // Visible on light and on dark tabs.
        let fill = match self {
            Self::Good => "1f9254",
            Self::Warn => "c77f00",
            Self::Bad => "d6372c",
        };
        let svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='-1 -1 12 12' fill='#{fill}'>{}</svg>",
            self.shape().replace('"', "'")
        );
        let encoded = svg.replace('#', "%23").replace('<', "%3C").replace('>', "%3E");
        format!("data:image/svg+xml,{encoded}")
    }

    fn shape(self) -> &'static str {
        match self {
            Self::Good => r#"<circle cx="5" cy="5" r="5"/>"#,
            Self::Warn => r#"<path d="M5 0l5 10H0z"/>"#,
            Self::Bad => r#"<path d="M0 0h10v10H0z"/>"#,
        }
    }
}
