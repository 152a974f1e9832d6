//! How values are written: each [`Format`] reads a kind of value and writes it back.
//!
//! Only what several keys share is here. A format that belongs to one subject is in the file of that subject.

use std::{
    fmt::Display,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A part of a value that is wrong.
pub(super) struct Wrong {
    pub given: String,
    pub expected: String,
}

impl Wrong {
    /// The whole value is wrong.
    pub fn whole<T>(given: &str, expected: impl Into<String>) -> Result<T, Vec<Self>> {
        Err(vec![Self { given: given.to_owned(), expected: expected.into() }])
    }
}

/// Reads and writes the values of a key. What [`show`](Format::show) writes, [`parse`](Format::parse) reads.
pub(super) trait Format {
    type Value;

    fn parse(&self, text: &str) -> Result<Self::Value, Vec<Wrong>>;

    fn show(&self, value: &Self::Value) -> String;

    /// The value of a key that is not given and has no fixed default; `None` if it is derived later.
    fn absent(&self) -> Option<Self::Value> {
        None
    }
}

/// A value that need not exist; an empty text if it does not.
pub(super) struct Optional<F>(pub F);

impl<F: Format> Format for Optional<F> {
    type Value = Option<F::Value>;

    fn parse(&self, text: &str) -> Result<Self::Value, Vec<Wrong>> {
        self.0.parse(text).map(Some)
    }

    fn show(&self, value: &Self::Value) -> String {
        value.as_ref().map_or_else(String::new, |value| self.0.show(value))
    }

    fn absent(&self) -> Option<Self::Value> {
        Some(None)
    }
}

/// A whole number within a range.
pub(super) struct Whole<T>(pub RangeInclusive<T>);

impl<T: FromStr + PartialOrd + Display> Format for Whole<T> {
    type Value = T;

    fn parse(&self, text: &str) -> Result<T, Vec<Wrong>> {
        match text.parse() {
            Ok(number) if self.0.contains(&number) => Ok(number),
            _ => Wrong::whole(text, format!("a whole number from {} to {}", self.0.start(), self.0.end())),
        }
    }

    fn show(&self, value: &T) -> String {
        value.to_string()
    }
}

/// A duration as a whole number of its unit.
pub(super) struct Time {
    unit_ms: u64,
    range: RangeInclusive<u64>,
}

impl Time {
    pub const fn millis(range: RangeInclusive<u64>) -> Self {
        Self { unit_ms: 1, range }
    }

    pub const fn seconds(range: RangeInclusive<u64>) -> Self {
        Self { unit_ms: 1000, range }
    }

    pub const fn hours(range: RangeInclusive<u64>) -> Self {
        Self { unit_ms: 3_600_000, range }
    }
}

impl Format for Time {
    type Value = Duration;

    fn parse(&self, text: &str) -> Result<Duration, Vec<Wrong>> {
        Whole(self.range.clone()).parse(text).map(|number| Duration::from_millis(number * self.unit_ms))
    }

    fn show(&self, value: &Duration) -> String {
        (value.as_millis() / u128::from(self.unit_ms)).to_string()
    }
}

/// A number of bytes as a whole number of its unit.
pub(super) struct Bytes {
    unit: u64,
    range: RangeInclusive<u64>,
    /// Whether 0 is allowed beside the range.
    or_zero: bool,
}

impl Bytes {
    pub const fn kib(range: RangeInclusive<u64>) -> Self {
        Self { unit: KIB, range, or_zero: false }
    }

    pub const fn mib(range: RangeInclusive<u64>) -> Self {
        Self { unit: MIB, range, or_zero: false }
    }

    pub const fn zero_or_mib(range: RangeInclusive<u64>) -> Self {
        Self { unit: MIB, range, or_zero: true }
    }
}

impl Format for Bytes {
    type Value = u64;

    fn parse(&self, text: &str) -> Result<u64, Vec<Wrong>> {
        if self.or_zero && text == "0" {
            return Ok(0);
        }
        Whole(self.range.clone()).parse(text).map(|number| number * self.unit).map_err(|mut wrong| {
            let or = if self.or_zero { "0, or " } else { "" };
            wrong.iter_mut().for_each(|wrong| wrong.expected.insert_str(0, or));
            wrong
        })
    }

    fn show(&self, value: &u64) -> String {
        (value / self.unit).to_string()
    }
}

/// Off or on: `0` or `1`.
pub(super) struct Switch;

impl Format for Switch {
    type Value = bool;

    fn parse(&self, text: &str) -> Result<bool, Vec<Wrong>> {
        match text {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Wrong::whole(text, "0 or 1"),
        }
    }

    fn show(&self, value: &bool) -> String {
        u8::from(*value).to_string()
    }
}

/// The path of a file or of a directory. Whether it can be used is checked when it is opened.
pub(super) struct PathText;

impl Format for PathText {
    type Value = PathBuf;

    fn parse(&self, text: &str) -> Result<PathBuf, Vec<Wrong>> {
        Ok(Path::new(text).to_owned())
    }

    fn show(&self, value: &PathBuf) -> String {
        value.display().to_string()
    }
}

/// A file that another key's value is read from. It is not shown, as its content is in effect as that value.
pub(super) struct SourceFile;

impl Format for SourceFile {
    type Value = PathBuf;

    fn parse(&self, text: &str) -> Result<PathBuf, Vec<Wrong>> {
        PathText.parse(text)
    }

    fn show(&self, _value: &PathBuf) -> String {
        String::new()
    }
}

/// An address to listen on.
pub(super) struct Listen {
    /// Whether the port is announced to other hosts. The system must not choose it then.
    pub advertised: bool,
}

impl Format for Listen {
    type Value = SocketAddr;

    fn parse(&self, text: &str) -> Result<SocketAddr, Vec<Wrong>> {
        match text.parse::<SocketAddr>() {
            Ok(address) if !self.advertised || address.port() != 0 => Ok(address),
            _ => {
                let port = if self.advertised { "a port other than 0" } else { "a port" };
                Wrong::whole(text, format!("an IP address and {port}, such as [::]:50051 or 127.0.0.1:50051"))
            }
        }
    }

    fn show(&self, value: &SocketAddr) -> String {
        value.to_string()
    }
}

/// Items separated by commas, with blanks around them or not. Without any, the key is not given.
pub(super) struct List<T> {
    pub item: fn(&str) -> Option<T>,
    /// Most items.
    pub max: usize,
    /// What an item is, in the plural, with examples.
    pub what: &'static str,
}

impl<T: Display> Format for List<T> {
    type Value = Vec<T>;

    fn parse(&self, text: &str) -> Result<Vec<T>, Vec<Wrong>> {
        let items: Option<Vec<T>> = text.split(',').map(|item| (self.item)(item.trim())).collect();
        match items.filter(|items| items.len() <= self.max) {
            Some(items) => Ok(items),
            None => Wrong::whole(text, format!("1-{} {}", self.max, self.what)),
        }
    }

    fn show(&self, value: &Vec<T>) -> String {
        value.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    fn absent(&self) -> Option<Vec<T>> {
        Some(Vec::new())
    }
}
