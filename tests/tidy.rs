//! Checks the layout of the sources: dependencies between modules, sizes of files and functions, banned words.
//!
//! The rules work on text, without comments and literals where those would mislead. That is imprecise but sufficient:
//! the rules catch mistakes and not deliberate evasion. Each rule has a stated reason, and a test shows that it can
//! fail.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 100;

/// The modules of the crate that each module may name. `bin` is everything below `src/bin`, which sees the whole crate.
const LAYERS: [(&str, &[&str]); 16] = [
    ("blocking", &[]),
    ("failpoints", &[]),
    ("net", &["blocking"]),
    ("trace", &[]),
    ("chat", &["trace"]),
    ("proto", &[]),
    ("config", &["net", "telemetry"]),
    ("telemetry", &["net", "proto", "trace"]),
    ("storage", &["failpoints", "trace", "chat", "proto"]),
    ("raft", &["blocking", "net", "failpoints", "trace", "chat", "proto", "storage"]),
    ("delivery", &["net", "trace", "chat"]),
    ("api", &["blocking", "net", "failpoints", "trace", "chat", "proto", "storage", "raft", "delivery"]),
    ("web", &["net", "chat", "proto", "storage", "raft", "delivery"]),
    (
        "server",
        &[
            "blocking",
            "net",
            "trace",
            "chat",
            "proto",
            "storage",
            "raft",
            "delivery",
            "api",
            "web",
            "config",
            "telemetry",
        ],
    ),
    ("client", &["net", "trace", "chat", "proto"]),
    ("cli", &["net", "trace", "chat", "proto", "client", "config", "server", "telemetry"]),
];

/// Modules that `#[cfg(test)]` code may name beyond [`LAYERS`]: the test of a probe needs a server to probe.
const LAYERS_IN_TESTS: [(&str, &[&str]); 1] = [("cli", &["web"])];

/// The reason for the places of OpenTelemetry.
const TRACED_ONCE: &str = "the parts of the node record steps with `trace`, whoever keeps them";

/// Crates that only some modules may name: the crate, those modules, and the reason.
const CONFINED: [(&str, &[&str], &str); 9] = [
    ("openraft", &["raft"], "an alpha that changes between releases must be replaceable in one place"),
    ("rusqlite", &["storage"], "what is on disk is decided in one place"),
    (
        "argon2",
        &["api", "net"],
        "passwords are hashed in one place, with bounded parallelism; `net` stretches the peer secret, because a public key \
         derived from it allows offline guessing",
    ),
    ("rustls", &["net"], "what a connection is secured with is decided in one place"),
    ("rcgen", &["net"], "certificates are made in one place"),
    ("opentelemetry", &["telemetry"], TRACED_ONCE),
    ("opentelemetry_sdk", &["telemetry"], TRACED_ONCE),
    ("opentelemetry_proto", &["telemetry"], TRACED_ONCE),
    ("tracing_opentelemetry", &["telemetry"], TRACED_ONCE),
];

/// Crates that a module must not name, and the reasons.
const EXCLUDED: [(&str, &[&str], &str); 3] = [
    (
        "chat",
        &["tokio", "tonic", "prost", "axum", "serde", "tracing", "getrandom", "uuid", "futures_util", "bytes"],
        "the rules use the standard library only, so that they mean the same everywhere",
    ),
    ("storage", &["tokio", "tonic", "axum"], "storage is blocking and knows no network, so that it is tested alone"),
    ("delivery", &["tonic", "axum", "prost"], "delivery hands on events, not wire formats"),
];

/// Banned words in `src`, and the reasons. Searched in code without comments and literals.
const BANNED_CODE: [(&str, &str); 4] = [
    ("todo!", "what is not done does not get merged"),
    ("unimplemented!", "what is not done does not get merged"),
    ("dbg!", "that is for debugging; log it or drop it"),
    ("static mut", "there are no globals: hand values in"),
];

/// Banned words anywhere in `src`, including comments.
const BANNED_ANYWHERE: [(&str, &str); 2] =
    [("TODO", "what is not done does not get merged"), ("FIXME", "what is not done does not get merged")];

/// A parsed source file.
struct Source {
    /// Path relative to the repository's root, with `/`.
    path: String,
    raw: String,
    /// `raw` with comments and the contents of literals replaced by spaces; the same length in bytes.
    code: String,
    /// Byte ranges of `code` that are compiled only for tests.
    tests: Vec<Range<usize>>,
}

impl Source {
    fn new(path: &str, raw: &str) -> Self {
        let code = without_comments_and_literals(raw);
        let tests = if is_test_file(path) { std::iter::once(0..code.len()).collect() } else { test_items(&code) };
        Self { path: path.to_owned(), raw: raw.to_owned(), code, tests }
    }

    /// Returns the module: `raft` for `src/raft/x.rs` and `src/raft.rs`, `None` for `src/lib.rs` and files outside
    /// `src`.
    fn module(&self) -> Option<&str> {
        let below = self.path.strip_prefix("src/")?;
        let name = below.split('/').next()?;
        let name = name.strip_suffix(".rs").unwrap_or(name);
        (name != "lib" && name != "bin").then_some(name)
    }

    fn in_tests(&self, at: usize) -> bool {
        self.tests.iter().any(|range| range.contains(&at))
    }

    /// Returns a message of the form `path:line: what`.
    fn at(&self, at: usize, what: impl std::fmt::Display) -> String {
        format!("{}:{}: {what}", self.path, self.raw[..at].matches('\n').count() + 1)
    }

    /// Returns the positions of `word` in the code as a whole word.
    fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        self.code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
            let before = self.code[..at].chars().next_back();
            let after = self.code[at + word.len()..].chars().next();
            // A word that ends in a symbol needs no word boundary after it.
            let open = word.ends_with(|c: char| !is_word(c));
            !before.is_some_and(is_word) && (open || !after.is_some_and(is_word))
        })
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_test_file(path: &str) -> bool {
    !path.starts_with("src/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs") || path.contains("/tests/")
}

/// Replaces comments and the contents of string and character literals by spaces. Keeps line ends and length.
fn without_comments_and_literals(raw: &str) -> String {
    let bytes = raw.as_bytes();
    let mut out = bytes.to_vec();
    let mut blank = |range: Range<usize>| {
        for byte in &mut out[range] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    };
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = if rest.starts_with(b"//") {
            let end = at + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
            blank(at..end);
            end
        } else if rest.starts_with(b"/*") {
            let end = at + block_comment(rest);
            blank(at..end);
            end
        } else if let Some(hashes) = raw_string(bytes, at) {
            let open = at + hashes + 2;
            let closing = [b"\"", "#".repeat(hashes).as_bytes()].concat();
            let length = bytes[open..].windows(closing.len()).position(|window| window == closing);
            let end = open + length.unwrap_or(bytes.len() - open);
            blank(open..end);
            (end + closing.len()).min(bytes.len())
        } else if rest[0] == b'"' {
            let end = at + quoted(rest, b'"');
            blank(at + 1..end - 1);
            end
        } else if rest[0] == b'\'' && is_character(rest) {
            let end = at + quoted(rest, b'\'');
            blank(at + 1..end - 1);
            end
        } else {
            at + 1
        };
        at = end;
    }
    String::from_utf8(out).expect("only whole literals and comments are replaced, by ASCII")
}

/// Returns the length of the block comment at the start, with nested ones.
fn block_comment(rest: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// Returns the number of `#` if a raw string (`r"`, `r#"`, `br"`) has its `r` at `at`.
fn raw_string(bytes: &[u8], at: usize) -> Option<usize> {
    let before = if at > 0 && bytes[at - 1] == b'b' { at.checked_sub(2) } else { at.checked_sub(1) };
    let part_of_word = before.is_some_and(|i| bytes[i].is_ascii_alphanumeric() || bytes[i] == b'_');
    if bytes[at] != b'r' || part_of_word {
        return None;
    }
    let hashes = bytes[at + 1..].iter().take_while(|&&b| b == b'#').count();
    (bytes.get(at + 1 + hashes) == Some(&b'"')).then_some(hashes)
}

/// Returns the length of the literal at the start, with both quotes.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b if b == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Whether a `'` starts a character literal and not a lifetime.
fn is_character(rest: &[u8]) -> bool {
    let Some(text) = rest.get(1..).map(String::from_utf8_lossy) else { return false };
    let mut chars = text.chars();
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

/// Returns the items after `#[cfg(test)]`, from the attribute to the closing brace or the semicolon.
fn test_items(code: &str) -> Vec<Range<usize>> {
    code.match_indices("#[cfg(test)]").map(|(at, _)| at..item_end(code, at)).collect()
}

/// Returns the end of the item that starts at `at`: after its matching brace, or after a semicolon before any brace.
fn item_end(code: &str, at: usize) -> usize {
    let (mut braces, mut others) = (0_usize, 0_isize);
    for (i, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => others += 1,
            b')' | b']' => others -= 1,
            b';' if braces == 0 && others == 0 => return i + 1,
            b'{' => braces += 1,
            b'}' if braces == 1 => return i + 1,
            b'}' => braces = braces.saturating_sub(1),
            _ => {}
        }
    }
    code.len()
}

/// Returns every module of the crate that is named by a path from the root, with its position.
fn crate_modules(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in source.words("crate::") {
        let rest = &source.code[at + "crate::".len()..];
        let base = at + "crate::".len();
        let word = |text: &str| text.chars().take_while(|&c| is_word(c)).collect::<String>();
        match rest.strip_prefix('{') {
            None => found.push((base, word(rest))),
            Some(group) => {
                let mut depth = 0;
                let mut fresh = true;
                for (i, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => fresh = true,
                        c if fresh && is_word(c) => {
                            found.push((base + 1 + i, word(&group[i..])));
                            fresh = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

/// Modules may only use those below them.
fn check_layers(source: &Source) -> Vec<String> {
    const WHY: &str = "dependencies point one way; declare a small trait and have it passed in";
    let Some(module) = source.module() else { return Vec::new() };
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
        return vec![
            source.at(0, format!("the module `{module}` is not in LAYERS of tests/tidy.rs: say what it may use")),
        ];
    };
    let in_tests = LAYERS_IN_TESTS.iter().find(|(name, _)| *name == module).map_or(&[][..], |(_, more)| more);
    let mut problems: Vec<String> = crate_modules(source)
        .into_iter()
        .filter(|(_, used)| used != module && LAYERS.iter().any(|(name, _)| name == used))
        .filter(|(_, used)| !allowed.contains(&used.as_str()))
        .filter(|(at, used)| !(source.in_tests(*at) && in_tests.contains(&used.as_str())))
        .map(|(at, used)| source.at(at, format!("`{module}` must not use `{used}`: {WHY}")))
        .collect();
    // `super::super::x` would be another path to the crate's root.
    let inner = source.path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    let depth = inner.split('/').count();
    let climb = "super::".repeat(depth);
    problems.extend(
        source
            .words(&climb)
            .filter(|at| !source.in_tests(*at))
            .map(|at| source.at(at, "write `crate::` for a path from the root, so that the layers can be checked")),
    );
    problems
}

/// Some crates may only be used in certain modules.
fn check_crates(source: &Source) -> Vec<String> {
    let Some(module) = source.module() else { return Vec::new() };
    let mut forbidden: Vec<(&str, &str)> = Vec::new();
    for (name, places, why) in CONFINED {
        if !places.contains(&module) {
            forbidden.push((name, why));
        }
    }
    for (place, names, why) in EXCLUDED {
        if place == module {
            forbidden.extend(names.iter().map(|name| (*name, why)));
        }
    }
    let mut problems = Vec::new();
    for (name, why) in forbidden {
        for at in source.words(name) {
            let used = source.code[at + name.len()..].starts_with("::");
            let imported = source.code[..at].trim_end().ends_with("use");
            if used || imported {
                problems.push(source.at(at, format!("`{module}` must not name `{name}`: {why}")));
            }
        }
    }
    problems
}

/// Files and functions have to be short enough to be read in one go.
fn check_sizes(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    let lines = source.raw.lines().count();
    if lines > FILE_LINES_MAX {
        problems
            .push(source.at(0, format!("{lines} lines; at most {FILE_LINES_MAX}, so that a file is about one thing")));
    }
    for at in source.words("fn") {
        let Some(name) = source.code[at + 2..].trim_start().split(|c| !is_word(c)).next().filter(|n| !n.is_empty())
        else {
            // The type of a function pointer.
            continue;
        };
        let body = &source.code[at..item_end(&source.code, at)];
        let lines = body.lines().count();
        if lines > FUNCTION_LINES_MAX {
            let why = "so that a function can be held in the head";
            problems.push(source.at(at, format!("`{name}` has {lines} lines; at most {FUNCTION_LINES_MAX}, {why}")));
        }
    }
    problems
}

/// Banned words, and the first line of each file.
fn check_words(source: &Source) -> Vec<String> {
    if !source.path.starts_with("src/") {
        return Vec::new();
    }
    let mut problems = Vec::new();
    if !source.raw.starts_with("//!") {
        problems.push(source.at(0, "must open with `//!`: what it owns, its invariants, what it leaves out"));
    }
    for (word, why) in BANNED_CODE {
        problems.extend(source.words(word).map(|at| source.at(at, format!("`{word}`: {why}"))));
    }
    for (word, why) in BANNED_ANYWHERE {
        problems.extend(source.raw.match_indices(word).map(|(at, _)| source.at(at, format!("`{word}`: {why}"))));
    }
    for (at, _) in source.code.match_indices(".unwrap()") {
        if !source.in_tests(at) {
            problems
                .push(source.at(at, "`unwrap()`: return the error, or `expect` with the invariant that rules it out"));
        }
    }
    let talks = source.path.starts_with("src/cli/") || source.path.starts_with("src/bin/");
    for word in ["println!", "eprintln!", "print!", "eprint!"] {
        if !talks {
            let why = "only the command line talks to a terminal; log it";
            let found = source.words(word).filter(|at| !source.in_tests(*at));
            problems.extend(found.map(|at| source.at(at, format!("`{word}`: {why}"))));
        }
    }
    problems
}

fn check(source: &Source) -> Vec<String> {
    [check_layers(source), check_crates(source), check_sizes(source), check_words(source)].concat()
}

/// Returns all Rust files below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn the_sources_are_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut problems = Vec::new();
    for path in [files(&root.join("src")), files(&root.join("tests"))].concat() {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
        problems.extend(check(&Source::new(&name, &fs::read_to_string(&path).unwrap())));
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn every_module_has_a_layer() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lib = fs::read_to_string(root.join("src/lib.rs")).unwrap();
    for module in lib.lines().filter_map(|line| line.strip_prefix("pub mod ")) {
        let module = module.trim_end_matches(';');
        assert!(LAYERS.iter().any(|(name, _)| *name == module), "`{module}` is not in LAYERS: say what it may use");
    }
}

/// Returns the problems of `raw` as the file `path`, without their positions.
fn problems(path: &str, raw: &str) -> Vec<String> {
    check(&Source::new(path, &format!("//! Doc.\n{raw}")))
}

#[test]
fn a_layer_that_is_skipped_upwards_is_found() {
    for (path, bad) in [
        ("src/chat/x.rs", "use crate::storage::Db;\n"),
        ("src/storage/x.rs", "use crate::{chat::Event, raft::Node};\n"),
        ("src/storage/x.rs", "use crate::{\n    chat::{Event, Seq},\n    delivery,\n};\n"),
        ("src/delivery.rs", "fn f() { crate::storage::open(); }\n"),
        ("src/raft/node.rs", "use crate::telemetry::metrics::Metrics;\n"),
        ("src/raft/node.rs", "use crate::config::Config;\n"),
        ("src/client/mod.rs", "use crate::raft::Node;\n"),
        ("src/raft/node.rs", "use super::super::server;\n"),
        ("src/raft.rs", "use super::server;\n"),
        ("src/newcomer.rs", "\n"),
    ] {
        assert_eq!(problems(path, bad).len(), 1, "{path}: {bad}");
    }
    for (path, good) in [
        ("src/raft/node.rs", "use crate::{chat::Event, storage::{self, raft}};\nuse super::types;\n"),
        ("src/raft/node.rs", "// like crate::server\nconst X: &str = \"crate::server\";\n"),
        ("src/server.rs", "use crate::{api, config::Config, raft};\n"),
        ("src/bin/chatd.rs", "use quorum_chat::cli;\n"),
        ("src/cli/x.rs", "#[cfg(test)]\nmod tests {\n    use crate::web;\n    use super::super::y;\n}\n"),
        ("src/raft/node.rs", "macro_rules! m { () => { $crate::raft::x() } }\n"),
    ] {
        assert_eq!(problems(path, good), Vec::<String>::new(), "{path}: {good}");
    }
}

#[test]
fn a_crate_out_of_place_is_found() {
    for (path, bad) in [
        ("src/api/x.rs", "use openraft::Raft;\n"),
        ("src/api/x.rs", "fn f() -> rusqlite::Connection {}\n"),
        ("src/storage/x.rs", "use tonic as t;\n"),
        ("src/chat/x.rs", "use serde::Serialize;\n"),
        ("src/delivery/x.rs", "use tonic::Status;\n"),
        ("src/cli/x.rs", "use argon2::Argon2;\n"),
    ] {
        assert_eq!(problems(path, bad).len(), 1, "{path}: {bad}");
    }
    for (path, good) in [
        ("src/raft/x.rs", "use openraft::Raft;\n"),
        ("src/api/x.rs", "//! Not openraft::Raft.\nlet openraft = 1;\n"),
        ("src/delivery/x.rs", "use tokio::sync::mpsc;\n"),
    ] {
        assert_eq!(problems(path, good), Vec::<String>::new(), "{path}: {good}");
    }
}

#[test]
fn what_is_too_long_is_found() {
    let function =
        |lines: usize| format!("fn long(a: [u8; 3]) {{\n{}}}\nfn short() {{}}\n", "    f('{');\n".repeat(lines));
    assert_eq!(problems("src/raft/x.rs", &function(98)), Vec::<String>::new());
    let found = problems("src/raft/x.rs", &function(99));
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("src/raft/x.rs:2: `long` has 101 lines"), "{found:?}");
    assert_eq!(problems("tests/x.rs", &function(99)).len(), 1);
    assert_eq!(problems("src/raft/x.rs", &"\n".repeat(599)), Vec::<String>::new());
    assert_eq!(problems("src/raft/x.rs", &"\n".repeat(600)).len(), 1);
}

#[test]
fn words_out_of_place_are_found() {
    for bad in [
        "fn f() { todo!() }\n",
        "fn f() { unimplemented!(\"x\") }\n",
        "fn f() { dbg!(1); }\n",
        "// TODO later\n",
        "/* FIXME */\n",
        "static mut X: u8 = 0;\n",
        "fn f() { println!(); }\n",
        "fn f() { eprintln!(); }\n",
        "fn f() { x.unwrap(); }\n",
        "#[cfg(test)]\nmod tests {}\nfn f() { x.unwrap(); }\n",
        "#[cfg(test)]\nuse x::{y};\nfn f() { x.unwrap(); }\n",
    ] {
        let found = problems("src/raft/x.rs", bad);
        assert_eq!(found.len(), 1, "{bad}: {found:?}");
    }
    for good in [
        "// println! and x.unwrap() are words here\n",
        "const X: &str = \"dbg!\";\nconst Y: &str = r#\"a \" todo!() \"#;\n",
        "#[cfg(test)]\nmod tests {\n    fn f() { '}'; \"}\"; x.unwrap() }\n}\n",
        "fn f() { x.unwrap_or(1) }\n",
    ] {
        assert_eq!(problems("src/raft/x.rs", good), Vec::<String>::new(), "{good}");
    }
    assert!(problems("src/cli/x.rs", "fn f() { println!(); }\n").is_empty());
    for path in ["src/raft/tests.rs", "src/raft/log_tests.rs"] {
        assert_eq!(problems(path, "fn f() { x.unwrap(); println!(); }\n"), Vec::<String>::new());
    }
    let undocumented = check(&Source::new("src/raft/x.rs", "use std::fmt;\n"));
    assert_eq!(undocumented.len(), 1);
}

#[test]
fn comments_and_literals_are_told_from_code() {
    let code = |raw| without_comments_and_literals(raw);
    assert_eq!(code("a // b\nc"), "a     \nc");
    assert_eq!(code("a /* b /* c */ d */ e"), format!("a {} e", " ".repeat(17)));
    assert_eq!(code(r#"f("a\"b", 'c', '\'', b"d")"#), r#"f("    ", ' ', '  ', b" ")"#);
    assert_eq!(code("fn f<'a>(x: &'a str) {}"), "fn f<'a>(x: &'a str) {}");
    assert_eq!(code("r#\"a\"b\"# c"), "r#\"   \"# c");
    assert_eq!(code("\"é\" x"), "\"  \" x");
    assert_eq!(code("for \"a\""), "for \" \"");
}
