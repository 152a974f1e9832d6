//! The help for the keys, for the terminal and for the documentation, and the names that are keys.

use std::fmt::Write as _;

use super::otel;

pub use super::table::KEYS;

/// The prefix of every key.
pub const PREFIX: &str = "CHAT_";

/// One configuration key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Name without [`PREFIX`].
    pub name: &'static str,
    /// The value if the key is absent or empty.
    pub default: Fallback,
    /// Unit or format of the value.
    pub unit: &'static str,
    /// The effect of the key, in one sentence.
    pub meaning: &'static str,
}

/// The source of a key's value if none is given.
#[derive(Debug, Clone, Copy)]
pub enum Fallback {
    /// This text, parsed like a given value.
    Fixed(&'static str),
    /// Derived from other keys or from the host, as described.
    Derived(&'static str),
}

impl Fallback {
    /// The default as users read it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Fixed(text) | Self::Derived(text) => text,
        }
    }
}

/// Keys (without prefix) that only `chatctl` reads. They may be in the same environment and have no effect here.
pub const OF_CHATCTL: [&str; 3] = ["NODES", "SESSION_FILE", "TLS_CA"];

/// The entry of `name` (without prefix).
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The table as text, for `--help`.
pub fn help() -> String {
    let mut out = String::from(
        "Configuration, from the environment only (an empty value counts as not given).\n\
         Traces are configured by OpenTelemetry's own variables, at the end.\n",
    );
    for key in KEYS {
        let Key { name, unit, meaning, default } = key;
        let _ = write!(out, "\n  {PREFIX}{name} <{unit}>\n      {meaning}\n      [default: {}]\n", default.text());
    }
    for (name, default, meaning) in &otel::VARIABLES {
        let _ = write!(out, "\n  {name}\n      {meaning}\n      [default: {default}]\n");
    }
    out
}

/// The table in Markdown, for `docs/configuration.md`.
pub fn markdown() -> String {
    // A `|` would end a cell.
    let cell = |text: &str| text.replace('|', "\\|");
    let mut out = String::from("| key | value | default | meaning |\n|---|---|---|---|\n");
    for Key { name, unit, meaning, default } in KEYS {
        let default = match default {
            Fallback::Fixed(text) => format!("`{text}`"),
            Fallback::Derived(how) => cell(how),
        };
        let _ = writeln!(out, "| `{PREFIX}{name}` | {} | {default} | {} |", cell(unit), cell(meaning));
    }
    out.push_str("\n| variable | default | meaning |\n|---|---|---|\n");
    for (name, default, meaning) in &otel::VARIABLES {
        let _ = writeln!(out, "| `{name}` | {} | {} |", cell(default), cell(meaning));
    }
    out
}

/// Whether `name` (without prefix) is one of the variables that Kubernetes sets for a Service called `chat` or
/// `chat-...`. They cause no warning, because the user did not set them.
///
/// The value distinguishes a Service's `PORT` (`tcp://10.0.0.1:50051`) from a mistaken key (`50051`).
pub fn made_by_kubernetes(name: &str, value: &str) -> bool {
    let url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let ends = |word: &str| name == word || name.strip_suffix(word).is_some_and(|rest| rest.ends_with('_'));
    if ends("SERVICE_HOST") || ends("SERVICE_PORT") || name.contains("SERVICE_PORT_") {
        return true;
    }
    if ends("PORT") && url {
        return true;
    }
    // PORT_50051_TCP and PORT_50051_TCP_{PROTO,PORT,ADDR}
    let Some(at) = name.find("PORT_") else { return false };
    if at > 0 && !name[..at].ends_with('_') {
        return false;
    }
    let mut parts = name[at + "PORT_".len()..].split('_');
    let number = parts.next().is_some_and(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    let protocol = matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"));
    let field = matches!(parts.next(), None | Some("PROTO" | "PORT" | "ADDR"));
    number && protocol && field && parts.next().is_none()
}
