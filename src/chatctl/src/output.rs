//! Output, as text for people or as JSON with one value per line. Errors go to standard error in the same format.
//!
//! Text from other users is untrusted: control characters are made visible and never sent to the terminal. That also
//! holds for pipes, because most of them end at a terminal, and a line break in a message would look like another
//! message. Programs should read JSON.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use serde_json::Value;

use crate::args::Format;

/// The destination and the format of results.
pub(crate) struct Output {
    format: Format,
    to: Box<dyn Write>,
}

impl Output {
    /// Output to standard output.
    pub(crate) fn stdout(format: Format) -> Self {
        Self { format, to: Box::new(io::stdout()) }
    }

    /// Output to `to`.
    #[cfg(test)]
    pub(crate) fn to(format: Format, to: Box<dyn Write>) -> Self {
        Self { format, to }
    }

    /// Prints a result: `text` for people (without the last line break), `value` for programs. Flushes immediately, so
    /// that readers of a pipe get each result when it happens.
    pub(crate) fn print(&mut self, value: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> io::Result<()> {
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

/// Escapes a text for one line of output. Line breaks separate lines of the output, so those within the text are
/// escaped like other control characters.
pub(crate) fn single_line(text: &str) -> Cow<'_, str> {
    escape(text, false)
}

/// Prints an error in one line to standard error: `text` for people, `value` for programs.
pub(crate) fn print_error(format: Format, value: impl FnOnce() -> Value, text: &str) {
    let mut to = io::stderr();
    // If standard error is closed, there is no other place to report it.
    let _ = match format {
        Format::Json => writeln!(to, "{}", value()),
        Format::Text => writeln!(to, "chatctl: {}", single_line(text)),
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
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
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
    fn tables_are_aligned() {
        let rows = [vec!["node", "role"], vec!["müller", ""], vec!["b", "leader"]];
        let rows: Vec<Vec<String>> = rows.iter().map(|r| r.iter().map(|c| c.to_string()).collect()).collect();
        assert_eq!(table(&rows), "node    role\nmüller\nb       leader");
        assert_eq!(table(&[]), "");
    }
}
