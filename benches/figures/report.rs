//! Figures side by side, as a Markdown table.

use std::fmt::Write as _;

/// One row: a figure, what it is compared with, and what has to be reached.
pub(crate) struct Row {
    what: String,
    ours: String,
    theirs: String,
    ratio: String,
    reach: String,
    reached: Option<bool>,
}

impl Row {
    /// A row whose ratio is `ours / theirs` and must be at least `reach`.
    pub(crate) fn at_least(what: &str, (ours, theirs): (f64, f64), unit: &str, than: &str, reach: f64) -> Self {
        let ratio = ours / theirs;
        Self {
            what: what.into(),
            ours: format!("{}{unit}", number(ours)),
            theirs: format!("{than}: {}{unit}", number(theirs)),
            ratio: number(ratio),
            reach: format!(">= {reach}"),
            reached: Some(ratio >= reach),
        }
    }

    /// A row whose ratio is `ours / theirs` and must be at most `reach`.
    pub(crate) fn at_most(what: &str, (ours, theirs): (f64, f64), unit: &str, than: &str, reach: f64) -> Self {
        let row = Self::at_least(what, (ours, theirs), unit, than, reach);
        Self { reach: format!("<= {reach}"), reached: Some(ours / theirs <= reach), ..row }
    }

    /// A row whose ratio is `ours / theirs`, with nothing to reach.
    pub(crate) fn compared(what: &str, figures: (f64, f64), unit: &str, than: &str) -> Self {
        let row = Self::at_least(what, figures, unit, than, 0.0);
        Self { reach: String::new(), reached: None, ..row }
    }

    /// A row with a figure that must be at most `reach` by itself; `theirs` is only for comparison.
    pub(crate) fn bound(what: &str, ours: f64, unit: &str, theirs: &str, reach: f64) -> Self {
        Self {
            what: what.into(),
            ours: format!("{}{unit}", number(ours)),
            theirs: theirs.into(),
            ratio: String::new(),
            reach: format!("<= {}{unit}", number(reach)),
            reached: Some(ours <= reach),
        }
    }

    /// A row that only tells.
    pub(crate) fn told(what: &str, ours: &str, theirs: &str) -> Self {
        let (what, ours, theirs) = (what.into(), ours.into(), theirs.into());
        Self { what, ours, theirs, ratio: String::new(), reach: String::new(), reached: None }
    }
}

/// Returns the table.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = String::from("| what | opik-offline | compared with | ratio | to reach | |\n");
    table.push_str("| --- | ---: | ---: | ---: | ---: | --- |\n");
    for row in rows {
        let reached = match row.reached {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "",
        };
        let Row { what, ours, theirs, ratio, reach, .. } = row;
        writeln!(table, "| {what} | {ours} | {theirs} | {ratio} | {reach} | {reached} |").expect("memory");
    }
    table
}

/// Writes a number with three figures that count.
pub(crate) fn number(value: f64) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    let plain = format!("{value:.digits$}");
    let (whole, fraction) = plain.split_once('.').map_or((plain.as_str(), ""), |(whole, fraction)| (whole, fraction));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 && whole.chars().nth(index - 1) != Some('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if fraction.is_empty() { grouped } else { format!("{grouped}.{fraction}") }
}

/// Returns the middle value.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
