//! Collects what was given, and every mistake in it.
//!
//! The checks between keys are `impl Checker` in the files of their subjects. `load` calls them.

use std::collections::BTreeMap;

use super::{
    Mistake,
    formats::Format,
    keys::{self, Fallback, PREFIX},
};

/// Keys whose values are never shown.
const SECRETS: [&str; 2] = ["PEER_SECRET", "JOIN_TOKEN"];

/// What was given, and what is wrong or odd about it.
#[derive(Default)]
pub(super) struct Checker {
    /// The values of the known keys, by their names without prefix, in lower case.
    values: BTreeMap<String, String>,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<String>,
}

impl Checker {
    /// Selects the known keys that have a value. Warns of unknown keys with the same prefix.
    pub(super) fn select(source: &[(String, String)]) -> Self {
        let mut checker = Self::default();
        let mut known = Vec::new();
        for (key, value) in source {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            if keys::find(name).is_some() {
                known.push((key.clone(), value.clone()));
            } else if !keys::made_by_kubernetes(name, value) && !keys::OF_CHATCTL.contains(&name) {
                checker.warnings.push(format!("unknown key {key} is ignored; `chatd --help` lists the keys"));
            }
        }
        match envy::prefixed(PREFIX).from_iter::<_, BTreeMap<String, String>>(known) {
            Ok(values) => checker.values = values.into_iter().filter(|(_, value)| !value.is_empty()).collect(),
            // This cannot happen with a map of texts. It is reported like any other mistake.
            Err(error) => checker.mistake("*", &error.to_string(), "one value for each key"),
        }
        checker
    }

    /// Whether the key has a value, be it right or wrong.
    pub(super) fn is_given(&self, name: &str) -> bool {
        self.given(name).is_some()
    }

    fn given(&self, name: &str) -> Option<&str> {
        self.values.get(&name.to_ascii_lowercase()).map(String::as_str)
    }

    pub(super) fn mistake(&mut self, name: &str, given: &str, expected: impl Into<String>) {
        let hidden = SECRETS.contains(&name) && !given.is_empty();
        let given = if hidden { "(hidden)".to_owned() } else { format!("{given:?}") };
        self.mistakes.push(Mistake { key: format!("{PREFIX}{name}"), given, expected: expected.into() });
    }

    /// The value of a key, or its default. `None` if it is wrong, or not given and to be derived.
    pub(super) fn value<F: Format>(&mut self, name: &str, default: Fallback, format: &F) -> Option<F::Value> {
        match (self.given(name).map(str::to_owned), default) {
            // The caller has decoded it lossily. A mangled path or secret is worse than a failed start.
            (Some(text), _) if text.contains(char::REPLACEMENT_CHARACTER) => {
                self.mistake(name, &text, "UTF-8 text");
                None
            }
            (Some(text), _) => self.parsed(name, &text, format),
            (None, Fallback::Fixed(text)) => self.parsed(name, text, format),
            (None, Fallback::Derived(_)) => format.absent(),
        }
    }

    /// `text` as a value of the key. `None` only after a mistake was recorded.
    pub(super) fn parsed<F: Format>(&mut self, name: &str, text: &str, format: &F) -> Option<F::Value> {
        match format.parse(text) {
            Ok(value) => Some(value),
            Err(wrongs) => {
                wrongs.into_iter().for_each(|wrong| self.mistake(name, &wrong.given, wrong.expected));
                None
            }
        }
    }
}
