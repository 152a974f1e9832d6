//! Levels and format of the log lines.

use tracing::Level;

use super::formats::{Format, Wrong};

/// Format of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `2024-03-20 10:15:30 - INFO - [n1:50051] message key=value`.
    Text,
    /// One JSON object per line.
    Json,
}

/// A level by its name, in any case.
pub(super) struct Levels;

impl Format for Levels {
    type Value = Level;

    fn parse(&self, text: &str) -> Result<Level, Vec<Wrong>> {
        match text.to_ascii_lowercase().as_str() {
            "error" => Ok(Level::ERROR),
            "warn" | "warning" => Ok(Level::WARN),
            "info" => Ok(Level::INFO),
            "debug" => Ok(Level::DEBUG),
            "trace" => Ok(Level::TRACE),
            _ => Wrong::whole(text, "error, warn, info, debug or trace"),
        }
    }

    fn show(&self, value: &Level) -> String {
        value.as_str().to_ascii_lowercase()
    }
}

/// A format by its name.
pub(super) struct LogFormats;

impl Format for LogFormats {
    type Value = LogFormat;

    fn parse(&self, text: &str) -> Result<LogFormat, Vec<Wrong>> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Wrong::whole(text, "text or json"),
        }
    }

    fn show(&self, value: &LogFormat) -> String {
        match value {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        }
    }
}
