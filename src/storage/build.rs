//! Checks that SQLite is compiled with its table of pages, through which the state is sent and verified.

fn main() {
    println!("cargo::rerun-if-env-changed=LIBSQLITE3_FLAGS");
    let flags = std::env::var("LIBSQLITE3_FLAGS").unwrap_or_default();
    if !flags.contains("SQLITE_ENABLE_DBPAGE_VTAB") {
        println!(
            "cargo::error=LIBSQLITE3_FLAGS lacks -DSQLITE_ENABLE_DBPAGE_VTAB. It is set by .cargo/config.toml for \
             commands that run within the checkout"
        );
    }
}
