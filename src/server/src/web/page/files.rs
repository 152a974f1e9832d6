//! The files of the page, and their common address.
//!
//! The scripts import each other by name (`import "./store.js"`), so they are one version as a whole. The hash of all
//! of them is the directory, and no name has to be rewritten. Browsers get the scripts without comments and types, and
//! with the same line numbers.

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

impl File {
    fn served(&self) -> Bytes {
        match std::str::from_utf8(self.bytes) {
            Ok(script) if self.kind == SCRIPT => without_comments(script).into(),
            _ => Bytes::from_static(self.bytes),
        }
    }
}

/// Empties the lines of a script that are only a comment. A comment beside code stays.
fn without_comments(script: &str) -> String {
    let mut is_inside = false;
    let mut code = String::with_capacity(script.len());
    for line in script.lines() {
        let text = line.trim();
        let is_block = is_inside || text.starts_with("/*");
        is_inside = is_block && !text.contains("*/");
        let is_comment = text.starts_with("//") || is_inside || (is_block && text.ends_with("*/"));
        if !is_comment {
            code.push_str(line);
        }
        code.push('\n');
    }
    code
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
    SCRIPT => "abort.js" "account.js" "api.js" "auth.js" "banner.js" "boot.js" "chat.js" "client.js" "cluster.js"
        "composer.js" "conversation.js" "copy.js" "dialogs.js" "directory.js" "dom.js" "feed.js" "find.js" "layout.js"
        "list.js" "loader.js" "main.js" "messages.js" "motion.js" "nodes.js" "outbox.js" "people.js" "picks.js"
        "places.js" "reading.js" "receipts.js" "retry.js" "session.js" "shell.js" "storage.js" "store.js" "sync.js"
        "tabs.js" "text.js" "toasts.js" "watch.js";
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
        let content = |file: &File| (file.name, Content::new(file.kind, file.served()));
        let files: Vec<(&'static str, Content)> = FILES.iter().map(content).collect();
        let mut hash = Sha256::new();
        for (name, Content { plain, .. }) in &files {
            hash.update(name);
            hash.update([0]);
            hash.update(plain.len().to_be_bytes());
            hash.update(plain);
        }
        let version = hex::encode(&hash.finalize()[..8]);
        let page = PAGE.replace(ADDRESS, &format!("/assets/{version}"));
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

    /// Limit for the compressed files of a first visit, which are 67 kB. The rest of a visit (the headers, the answers
    /// with the first conversations) is about 10 kB, and the whole should stay below 100 kB.
    const FIRST_LOAD_BYTES_MAX: usize = 75_000;

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

    #[test]
    fn scripts_are_served_without_comments() {
        let script = "// Header.\nlet a = 1; // A.\n/** Two\n * lines. */\nlet b = /** @type {B} */ (a);\n";
        assert_eq!(without_comments(script), "\nlet a = 1; // A.\n\n\nlet b = /** @type {B} */ (a);\n");
        for file in FILES.iter().chain(WORKER).filter(|file| file.kind == SCRIPT) {
            let served = String::from_utf8(file.served().into()).unwrap();
            assert_eq!(served.lines().count(), text(file).lines().count(), "{}", file.name);
            // Nothing in a string or a template looks like a line of a comment.
            assert!(served.lines().all(|line| !line.trim().starts_with('*')), "{}", file.name);
        }
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
