//! The files of the page, and the one address that they have together.
//!
//! The scripts name each other (`import "./store.js"`), so they are one version as a whole: the hash of all of them is a
//! directory, and no name has to be rewritten.

use std::{fmt::Write as _, io::Write as _};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};

/// A file of the page.
struct File {
    name: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

/// What is sent: as it is, and packed for those that can unpack it (all browsers can).
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub kind: &'static str,
    pub plain: Bytes,
    pub gzip: Bytes,
}

impl Content {
    /// Packed once, at the start of the node: the files are few and small.
    fn new(kind: &'static str, plain: Bytes) -> Self {
        let mut packer = GzEncoder::new(Vec::new(), Compression::best());
        let packed = packer.write_all(&plain).and_then(|()| packer.finish());
        Self { kind, plain, gzip: packed.expect("written to memory").into() }
    }
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! files {
    ($($kind:expr => $($name:literal)*;)*) => {
        &[$($(File { name: $name, kind: $kind, bytes: include_bytes!(concat!("www/", $name)) },)*)*]
    };
}

const FILES: &[File] = files! {
    "text/css; charset=utf-8" => "style.css";
    "image/svg+xml" => "icon.svg";
    SCRIPT => "account.js" "api.js" "ask.js" "auth.js" "boot.js" "calls.js" "chat.js" "client.js" "cluster.js" "dom.js" "feed.js" "keep.js" "list.js"
        "main.js" "messages.js" "nodes.js" "outbox.js" "people.js" "receipts.js" "session.js" "store.js" "tabs.js" "text.js" "toasts.js";
};

/// What brings up the rest, or says that it is missing: every version has one that does, so any is better than none.
const BOOT: &str = "boot.js";

/// The page, in which the address of the files has to be filled in.
const PAGE: &str = include_str!("www/index.html");
/// Where.
const ADDRESS: &str = "{assets}";

pub(super) struct Files {
    version: String,
    page: Content,
    files: Vec<(&'static str, Content)>,
}

impl Files {
    pub(super) fn new() -> Self {
        let mut hash = Sha256::new();
        for file in FILES {
            hash.update(file.name);
            hash.update([0]);
            hash.update(file.bytes.len().to_be_bytes());
            hash.update(file.bytes);
        }
        let version = hash.finalize()[..8].iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let page = PAGE.replace(ADDRESS, &format!("/assets/{version}"));
        let content = |file: &File| (file.name, Content::new(file.kind, Bytes::from_static(file.bytes)));
        let files = FILES.iter().map(content).collect();
        Self { version, page: Content::new("text/html; charset=utf-8", page.into()), files }
    }

    /// The page itself.
    pub(super) fn page(&self) -> &Content {
        &self.page
    }

    /// A file, and whether it is the one of that version for good. Files of another version do not fit to the rest of a page.
    pub(super) fn get(&self, version: &str, name: &str) -> Option<(&Content, bool)> {
        let is_own = version == self.version;
        let (_, content) = self.files.iter().find(|file| file.0 == name && (is_own || name == BOOT))?;
        Some((content, is_own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the files of a first visit may weigh, packed. All of the visit is to stay below 100 kB, and the rest of it (the
    /// headers, the answers with the first conversations) is some 10 kB.
    const FIRST_LOAD_BYTES_MAX: usize = 60_000;

    fn text(file: &File) -> &'static str {
        std::str::from_utf8(file.bytes).unwrap()
    }

    #[test]
    fn a_first_visit_is_small() {
        let files = Files::new();
        let bytes = files.page.gzip.len() + files.files.iter().map(|(_, content)| content.gzip.len()).sum::<usize>();
        assert!(bytes < FIRST_LOAD_BYTES_MAX, "{bytes} bytes");
    }

    /// A file that is not listed would be missing from the program, one that nobody asks for would be dead weight.
    #[test]
    fn the_files_are_those_that_the_page_asks_for() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/web/page/www");
        let there = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut there: Vec<_> = there.filter(|name| name != "index.html").collect();
        let mut listed: Vec<_> = FILES.iter().map(|file| file.name.to_owned()).collect();
        there.sort();
        listed.sort();
        assert_eq!(there, listed);
        // A script that is not preloaded is found only when the one that names it was read: a round trip more.
        for file in FILES {
            assert!(PAGE.contains(&format!("\"{ADDRESS}/{}\"", file.name)), "{} is not in index.html", file.name);
        }
    }

    #[test]
    fn what_brings_up_the_page_needs_nothing_of_its_own_version() {
        let boot = FILES.iter().find(|file| file.name == BOOT).map(text).unwrap();
        assert!(PAGE.contains(&format!("<script type=\"module\" src=\"{ADDRESS}/{BOOT}\"></script>")));
        // What is missing must not keep it from running: it asks for what it needs when it runs.
        assert!(boot.lines().all(|line| !line.starts_with("import")) && boot.contains("await import(\"./main.js\")"));
    }

    #[test]
    fn the_page_brings_nothing_that_its_policy_forbids() {
        for forbidden in ["<style", " style=", "javascript:", " onclick=", " onload=", "http://", "//cdn"] {
            assert!(!PAGE.contains(forbidden), "{forbidden} in index.html");
        }
        assert!(PAGE.split("<script").skip(1).all(|script| script.contains(" src=")), "inline script");
        for file in FILES.iter().filter(|file| file.kind == SCRIPT) {
            for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"]
            {
                assert!(!text(file).contains(forbidden), "{forbidden} in {}", file.name);
            }
        }
    }
}
