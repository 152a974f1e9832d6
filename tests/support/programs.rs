//! The programs under test, `chatd` and `chatctl`, as cargo left them beside this test.
//!
//! Cargo builds them for `cargo test` of the whole workspace, and for their own packages, but not for this one alone. A
//! test of programs that are older than their sources would mislead, so it fails instead.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::SystemTime,
};

/// The path of `chatd`.
pub fn chatd() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| find("chatd"))
}

/// The path of `chatctl`.
pub fn chatctl() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| find("chatctl"))
}

fn find(name: &str) -> PathBuf {
    const HOW: &str = "run `cargo build`, or `cargo test` for the whole workspace";
    let test = env::current_exe().expect("the path of this test");
    // target/debug/deps/nodes-0123456789abcdef
    let path = test.ancestors().nth(2).expect("cargo's directory").join(name);
    let built = modified(&path).unwrap_or_else(|error| panic!("{}: {error}: {HOW}", path.display()));
    if let Some(source) = newer(&path.with_extension("d"), built) {
        panic!("{} is older than {}: {HOW}", path.display(), source.display());
    }
    path
}

fn modified(path: &Path) -> io::Result<SystemTime> {
    fs::metadata(path)?.modified()
}

/// Returns a source that is newer than `built`, of those in cargo's list.
fn newer(list: &Path, built: SystemTime) -> Option<PathBuf> {
    let list = fs::read_to_string(list).ok()?;
    let (_, sources) = list.split_once(": ")?;
    // Spaces in paths are escaped, and such a path is not found: the check then misses it.
    sources.split_whitespace().map(PathBuf::from).find(|source| modified(source).is_ok_and(|time| time > built))
}
