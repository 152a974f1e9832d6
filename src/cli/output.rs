//! Output, as text for people or as JSON with one value per line. Errors go to standard error in the same format.
//!
//! Text from other users is untrusted: control characters are made visible and never sent to the terminal. That also
//! holds for pipes, because most of them end at a terminal, and a line break in a message would look like another
//! message. Programs should read JSON.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use serde_json::{Value, json};

use super::{ctl::Failure, ctl_args::Format};
use crate::client::ClientError;

/// The destination and the format of results.
pub struct Output {
    format: Format,
    to: Box<dyn Write>,
}

impl Output {
    /// Output to standard output.
    pub fn stdout(format: Format) -> Self {
        Self { format, to: Box::new(io::stdout()) }
    }

    /// Output to `to`.
    #[cfg(test)]
    pub(super) fn to(format: Format, to: Box<dyn Write>) -> Self {
        Self { format, to }
    }

    /// Prints a result: `text` for people (without the last line break), `value` for programs. Flushes immediately, so
    /// that readers of a pipe get each result when it happens.
    pub fn print(&mut self, value: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> io::Result<()> {
        match self.format {
            Format::Json => writeln!(self.to, "{}", value())?,
            Format::Text => {
                let text = text();
                let text = visible(&text);
                if !text.is_empty() {
                    writeln!(self.to, "{text}")?;
                }
            }
        }
        self.to.flush()
    }
}

/// Escapes a message's text for one line of output. Line breaks separate lines of the output, so those within a message
/// are escaped like other control characters.
pub(super) fn body(text: &str) -> Cow<'_, str> {
    escape(text, false)
}

/// Prints the failure of a command, in one line.
pub fn print_failure(format: Format, failure: &Failure) {
    let mut to = io::stderr();
    // If standard error is closed, there is no other place to report it.
    let _ = match format {
        Format::Json => writeln!(to, "{}", failure.json()),
        Format::Text => writeln!(to, "chatctl: {}", escape(&failure.to_string(), false)),
    };
}

/// Escapes the control characters of `text`, except line breaks and tabs.
fn visible(text: &str) -> Cow<'_, str> {
    escape(text, true)
}

fn escape(text: &str, keep_layout: bool) -> Cow<'_, str> {
    let hidden = |c: char| (c.is_control() || bidirectional(c)) && !(keep_layout && matches!(c, '\n' | '\t'));
    if !text.contains(hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if hidden(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Whether the character reorders the text around it. Such characters can make a message look like another's.
fn bidirectional(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Formats rows in aligned columns; the first row is the heading.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Formats milliseconds since the Unix epoch as `2024-03-20T10:15:30Z`, or as a number when out of range.
pub fn time(time_ms: u64) -> String {
    const DAY: u64 = 86_400;
    let seconds = time_ms / 1000;
    let (days, rest) = (seconds / DAY, seconds % DAY);
    let Ok(days) = i64::try_from(days) else { return time_ms.to_string() };
    if days > 2_932_896 {
        // After the year 9999.
        return time_ms.to_string();
    }
    // Howard Hinnant's civil_from_days: years begin in March, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Formats a failure of the service as JSON; `message` is the complete description.
pub(super) fn failure_json(error: &ClientError, message: &str) -> Value {
    let ClientError { code, reason, field, trace_id, .. } = error;
    let code = format!("{code:?}");
    json!({ "error": { "code": code, "reason": reason, "field": field, "message": message, "trace_id": trace_id } })
}

/// Formats a failure of this side as JSON.
pub(super) fn local_failure_json(message: &str) -> Value {
    json!({ "error": { "code": "Local", "reason": null, "field": null, "message": message, "trace_id": null } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(escape("a\x1b[2Jb\r\n\u{9b}\u{7f}\u{202e}", false), "a\\u{1b}[2Jb\\r\\n\\u{9b}\\u{7f}\\u{202e}");
        assert_eq!(visible("one\n\ttwo\u{7}"), "one\n\ttwo\\u{7}");
        assert!(matches!(escape("grüße, 世界 👋", false), Cow::Borrowed(_)));
    }

    #[test]
    fn times() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696_789, "2000-02-29T12:34:56Z"),
            (1_710_929_730_000, "2024-03-20T10:15:30Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
            (253_402_300_799_000, "9999-12-31T23:59:59Z"),
            (253_402_300_800_000, "253402300800000"),
            (u64::MAX, "18446744073709551615"),
        ] {
            assert_eq!(time(ms), text);
        }
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [vec!["node", "role"], vec!["müller", ""], vec!["b", "leader"]];
        let rows: Vec<Vec<String>> = rows.iter().map(|r| r.iter().map(|c| c.to_string()).collect()).collect();
        assert_eq!(table(&rows), "node    role\nmüller\nb       leader");
        assert_eq!(table(&[]), "");
    }
}
