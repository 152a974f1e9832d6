//! Checks what neither cargo nor clippy can: the length of files and lines, the first line of a module, words that
//! stand for unfinished work, and the order of the modules inside of `server`.
//!
//! What a crate may use is its manifest; the sizes of functions and the forbidden macros are `clippy.toml` and the
//! lints of the workspace; the licences and the users of a library are `deny.toml`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Longest file of Rust, Python or JavaScript, so that a file is about one thing.
const FILE_LINES_MAX: usize = 500;
/// Longest line, in characters.
const COLUMNS_MAX: usize = 120;

/// Files with lines that cannot be shorter: the file, and the reason. At most ten.
const WIDE: &[(&str, &str)] = &[];

/// Words that must not stand anywhere in the sources, and the reasons.
const BANNED: [(&str, &str); 4] = [
    ("static mut", "there are no globals: hand values in"),
    ("TODO", "what is not done does not get merged"),
    ("FIXME", "what is not done does not get merged"),
    ("#[path", "a module is where its name says"),
];

/// The modules of `server` that each module may use, from the bottom up. `life` and `serving` use all of them.
const SERVER: [(&str, &[&str]); 5] = [
    ("telemetry", &[]),
    ("config", &["telemetry"]),
    ("delivery", &[]),
    ("api", &["delivery"]),
    ("web", &["api", "delivery"]),
];

/// Libraries that only one module of `server` may name.
const SERVER_LIBRARIES: [(&str, &str); 4] = [
    ("opentelemetry", "telemetry"),
    ("opentelemetry_sdk", "telemetry"),
    ("tracing_opentelemetry", "telemetry"),
    ("argon2", "api"),
];

/// Libraries that `delivery` must not name: it hands on events, not wire formats.
const NOT_IN_DELIVERY: [&str; 3] = ["tonic", "axum", "prost"];

/// Returns the problems of a file.
fn check(path: &str, text: &str) -> Vec<String> {
    let extension = path.rsplit_once('.').map_or("", |(_, extension)| extension);
    let mut problems = Vec::new();
    let lines = text.lines().count();
    if ["rs", "py", "js"].contains(&extension) && lines > FILE_LINES_MAX {
        problems.push(format!("{path}: {lines} lines; at most {FILE_LINES_MAX}"));
    }
    if !WIDE.iter().any(|(wide, _)| *wide == path) {
        problems.extend(too_wide(path, extension, text));
    }
    if extension == "rs" {
        problems.extend(check_rust(path, text));
    }
    problems
}

/// Returns the lines that are too wide. Rows of tables, links and figures in documents cannot be broken.
fn too_wide(path: &str, extension: &str, text: &str) -> Vec<String> {
    let is_document = extension == "md";
    let mut in_code = false;
    let mut problems = Vec::new();
    for (number, line) in text.lines().enumerate() {
        in_code ^= is_document && line.trim_start().starts_with("```");
        let unbreakable = is_document && (in_code || line.starts_with('|') || !line.trim().contains(' '));
        let columns = line.chars().count();
        if columns > COLUMNS_MAX && !unbreakable {
            problems.push(format!("{path}:{}: {columns} columns; at most {COLUMNS_MAX}", number + 1));
        }
    }
    problems
}

fn check_rust(path: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if !text.starts_with("//!") {
        problems.push(format!("{path}: must open with `//!`: what it owns, its invariants, what it leaves out"));
    }
    // This file names them.
    if path != "tests/tidy.rs" {
        let found = BANNED.iter().filter(|(word, _)| text.contains(word));
        problems.extend(found.map(|(word, why)| format!("{path}: `{word}`: {why}")));
    }
    let Some(module) = path.strip_prefix("src/server/src/").and_then(|rest| rest.split('/').next()) else {
        return problems;
    };
    let names = |library: &str| text.contains(&format!("use {library}::")) || text.contains(&format!(" {library}::"));
    let misplaced = SERVER_LIBRARIES.iter().filter(|(library, home)| *home != module && names(library));
    problems.extend(misplaced.map(|(library, home)| format!("{path}: only `{home}` may name `{library}`")));
    let wire = NOT_IN_DELIVERY.iter().filter(|library| module == "delivery" && names(library));
    problems.extend(wire.map(|library| format!("{path}: `delivery` must not name `{library}`")));
    let module = Some(module);
    let Some((module, allowed)) = SERVER.iter().find(|(name, _)| Some(*name) == module) else { return problems };
    let forbidden = SERVER.iter().filter(|(other, _)| other != module && !allowed.contains(other));
    let names = |other: &str| text.contains(&format!("crate::{other}")) || uses(text, other);
    problems.extend(forbidden.filter(|(other, _)| names(other)).map(|(other, _)| {
        format!(
            "{path}: `{module}` must not use `{other}`: dependencies point one way; have a value or a trait passed in"
        )
    }));
    problems
}

/// Whether a `use crate::{…}` of the file names `module`.
fn uses(text: &str, module: &str) -> bool {
    text.split("use crate::{").skip(1).any(|rest| {
        let group = rest.split("};").next().unwrap_or_default();
        group
            .lines()
            .any(|line| line.trim_start().starts_with(&format!("{module}::")) || line.trim() == format!("{module},"))
    })
}

/// Returns the files of the repository whose lines people read.
fn files(root: &Path) -> Vec<PathBuf> {
    const READ: [&str; 9] = ["rs", "py", "js", "css", "html", "proto", "toml", "sh", "md"];
    let listed = Command::new("git").arg("-C").arg(root).args(["ls-files", "-z"]).output().expect("git");
    assert!(listed.status.success(), "{listed:?}");
    let listed = String::from_utf8(listed.stdout).expect("names in UTF-8");
    let read = |path: &Path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| READ.contains(&extension)) && root.join(path).exists()
    };
    listed.split('\0').map(PathBuf::from).filter(|path| read(path)).collect()
}

/// Returns the crates that may use a library, as deny.toml says: the library, and those crates.
fn wrappers(deny: &str) -> Vec<(&str, Vec<&str>)> {
    let quoted = |text| -> Vec<&str> { str::split(text, '"').skip(1).step_by(2).collect() };
    let entries = deny.split("{ crate = \"").skip(1).filter_map(|entry| {
        let (library, rest) = entry.split_once('"')?;
        let (_, list) = rest.split_once('}')?.0.split_once("wrappers = [")?;
        Some((library, quoted(list)))
    });
    entries.collect()
}

/// Returns a problem for each library in `manifest` whose users are limited and do not include its crate.
fn misused(manifest: &str, wrappers: &[(&str, Vec<&str>)]) -> Vec<String> {
    let name = manifest.split('"').nth(1).unwrap_or_default();
    let depends = |library: &str| {
        manifest.lines().any(|line| {
            let rest = line.strip_prefix(library);
            rest.is_some_and(|rest| rest.starts_with(".workspace") || rest.starts_with(" ="))
        })
    };
    let misused = wrappers.iter().filter(|(library, crates)| depends(library) && !crates.contains(&name));
    misused.map(|(library, _)| format!("{name} must not use {library}: see deny.toml")).collect()
}

#[test]
fn libraries_have_the_users_that_deny_toml_names() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let read = |path: &Path| fs::read_to_string(path).expect("read");
    let deny = read(&root.join("deny.toml"));
    let wrappers = wrappers(&deny);
    assert!(wrappers.iter().any(|(library, crates)| *library == "openraft" && *crates == ["quorum-chat-raft"]));
    let crates = fs::read_dir(root.join("src")).expect("list").map(|entry| entry.expect("list").path());
    let manifests = crates.chain([root.join("tests")]).map(|path| read(&path.join("Cargo.toml")));
    let problems: Vec<String> = manifests.flat_map(|manifest| misused(&manifest, &wrappers)).collect();
    assert_eq!(problems, [] as [&str; 0]);
    let stranger = "[package]\nname = \"chatctl\"\n[dependencies]\nopenraft.workspace = true\n";
    assert_eq!(misused(stranger, &wrappers), ["chatctl must not use openraft: see deny.toml"]);
}

#[test]
fn the_sources_are_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut problems = Vec::new();
    for path in files(root) {
        let text = fs::read_to_string(root.join(&path)).expect("read");
        problems.extend(check(path.to_str().expect("UTF-8"), &text));
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    assert!(WIDE.len() <= 10);
}

#[test]
fn each_kind_of_problem_is_found() {
    let found = |path: &str, text: &str| check(path, text).len();
    let wide = "x".repeat(121);
    for (path, text) in [
        ("src/raft/src/x.rs", "use std::fmt;\n".to_owned()),
        ("src/raft/src/x.rs", format!("//! Doc.\n{}", "\n".repeat(500))),
        ("tests/browser/x.py", format!("# {wide}\n")),
        ("docs/x.md", format!("a {wide}\n")),
        ("src/raft/src/x.rs", "//! Doc.\n// TODO later\n".to_owned()),
        ("src/raft/src/x.rs", "//! Doc.\n#[path = \"y.rs\"]\nmod y;\n".to_owned()),
        ("src/server/src/delivery/x.rs", "//! Doc.\nuse crate::api::status;\n".to_owned()),
        ("src/server/src/web/x.rs", "//! Doc.\nuse opentelemetry::Key;\n".to_owned()),
        ("src/server/src/delivery/x.rs", "//! Doc.\nuse tonic::Status;\n".to_owned()),
        ("src/server/src/api/x.rs", "//! Doc.\nuse crate::{\n    ServerError,\n    web::Readiness,\n};\n".to_owned()),
    ] {
        assert_eq!(found(path, &text), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("docs/x.md", format!("| {wide} |\n\n```\na {wide}\n```\n\n{wide}\n")),
        ("src/server/src/api/x.rs", "//! Doc.\nuse crate::delivery::Hub;\n".to_owned()),
        ("src/server/src/life/x.rs", "//! Doc.\nuse crate::{api, web};\n".to_owned()),
        ("src/raft/src/x.rs", format!("//! Doc.\n{}", "\n".repeat(499))),
    ] {
        assert_eq!(found(path, &text), 0, "{path}: {text}");
    }
}
