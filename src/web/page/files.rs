//! The files of the page, and their common address.
//!
//! The scripts import each other by name (`import "./store.js"`), so they are one version as a whole. The hash of all
//! of them is the directory, and no name has to be rewritten.

use std::fmt::Write as _;

use bytes::Bytes;
use flate2::Compression;
use sha2::{Digest as _, Sha256};

use super::super::encoding::gzip;

/// A file of the page.
struct File {
    name: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

/// The content of a file: plain, and compressed for clients that accept gzip (all browsers do).
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub kind: &'static str,
    pub plain: Bytes,
    pub gzip: Bytes,
}

impl Content {
    /// Compresses the content once, at the start of the node. The files are few and small.
    fn new(kind: &'static str, plain: Bytes) -> Self {
        let gzip = gzip(&plain, Compression::best());
        Self { kind, plain, gzip }
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
    SCRIPT => "abort.js" "account.js" "api.js" "dialogs.js" "auth.js" "boot.js" "retry.js" "chat.js" "client.js"
        "cluster.js" "composer.js" "copy.js" "dom.js" "feed.js" "find.js" "storage.js" "list.js" "main.js" "messages.js"
        "motion.js" "nodes.js" "outbox.js" "people.js" "picks.js" "places.js" "receipts.js" "session.js" "shell.js"
        "store.js" "tabs.js" "text.js" "toasts.js";
};

/// The service worker and the files that register it. They are at the root of the site under constant addresses,
/// because browsers identify a worker by its address.
const WORKER: &[File] = files! {
    "text/html; charset=utf-8" => "worker.html";
    SCRIPT => "register.js" "worker.js";
};

/// The script that loads the rest, or reports that it is missing. Every version has one that does so, so any version
/// will do.
const BOOT: &str = "boot.js";

/// The page, in which the address of the files has to be filled in.
const PAGE: &str = include_str!("www/index.html");
/// The placeholder of the address.
const ADDRESS: &str = "{assets}";

pub(super) struct Files {
    version: String,
    page: Content,
    files: Vec<(&'static str, Content)>,
    worker: Vec<(&'static str, Content)>,
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
        let worker = WORKER.iter().map(content).collect();
        Self { version, worker, page: Content::new("text/html; charset=utf-8", page.into()), files }
    }

    /// The page itself.
    pub(super) fn page(&self) -> &Content {
        &self.page
    }

    /// A file of the service worker.
    pub(super) fn worker(&self, name: &str) -> Option<&Content> {
        self.worker.iter().find(|file| file.0 == name).map(|(_, content)| content)
    }

    /// A file, and whether it is immutable at this address. Files of another version do not fit the rest of a page.
    pub(super) fn get(&self, version: &str, name: &str) -> Option<(&Content, bool)> {
        let is_own = version == self.version;
        let (_, content) = self.files.iter().find(|file| file.0 == name && (is_own || name == BOOT))?;
        Some((content, is_own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Limit for the compressed files of a first visit. The whole visit should stay below 100 kB. The rest of it (the
    /// headers, the answers with the first conversations) is about 10 kB. The limit was 60 kB before the browser kept
    /// the page for times when its node is down, and before the search in a conversation.
    const FIRST_LOAD_BYTES_MAX: usize = 85_000;

    fn text(file: &File) -> &'static str {
        std::str::from_utf8(file.bytes).unwrap()
    }

    #[test]
    fn a_first_visit_is_small() {
        let files = Files::new();
        // The service worker requests the page once more.
        let loaded = [&files.page, &files.page].into_iter();
        let loaded = loaded.chain(files.files.iter().chain(&files.worker).map(|(_, content)| content));
        let bytes: usize = loaded.map(|content| content.gzip.len()).sum();
        assert!(bytes < FIRST_LOAD_BYTES_MAX, "{bytes} bytes");
    }

    /// A file that is not listed would be missing from the program. A file that is not requested would be dead weight.
    #[test]
    fn the_files_are_those_that_the_page_asks_for() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/web/page/www");
        let there = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut there: Vec<_> = there.filter(|name| name != "index.html").collect();
        let mut listed: Vec<_> = FILES.iter().chain(WORKER).map(|file| file.name.to_owned()).collect();
        there.sort();
        listed.sort();
        assert_eq!(there, listed);
        // A script that is not preloaded is found only after the importing script was read, which costs another round
        // trip.
        for file in FILES {
            assert!(PAGE.contains(&format!("\"{ADDRESS}/{}\"", file.name)), "{} is not in index.html", file.name);
        }
    }

    #[test]
    fn what_brings_up_the_page_needs_nothing_of_its_own_version() {
        let boot = FILES.iter().find(|file| file.name == BOOT).map(text).unwrap();
        assert!(PAGE.contains(&format!("<script type=\"module\" src=\"{ADDRESS}/{BOOT}\"></script>")));
        // A missing file must not prevent the script from running. It loads its imports at run time.
        assert!(boot.lines().all(|line| !line.starts_with("import")) && boot.contains("await import(\"./main.js\")"));
    }

    #[test]
    fn the_page_brings_nothing_that_its_policy_forbids() {
        for forbidden in ["<style", " style=", "javascript:", " onclick=", " onload=", "http://", "//cdn"] {
            assert!(!PAGE.contains(forbidden), "{forbidden} in index.html");
        }
        assert!(PAGE.split("<script").skip(1).all(|script| script.contains(" src=")), "inline script");
        for file in FILES.iter().chain(WORKER).filter(|file| file.kind == SCRIPT) {
            for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"]
            {
                assert!(!text(file).contains(forbidden), "{forbidden} in {}", file.name);
            }
        }
    }
}
