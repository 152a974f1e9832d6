//! Corruption of a stopped node's state on disk.

use std::{fs, path::Path};

/// Changes a letter in the body of a message in `chat.db`. False: there is none.
pub fn change_a_letter(state: &Path, which: u64) -> bool {
    let Some(body) = body(state, which) else { return false };
    let mut bytes = fs::read(state).expect("readable");
    let Some(at) = bytes.windows(body.len()).position(|window| window == body) else { return false };
    // Another letter or digit, so that the body is still valid text.
    bytes[at + body.len() / 2] ^= 1;
    write(state, &bytes);
    true
}

/// Changes a byte of `chat.db` in any page that is in use, except the first. A free page may be used again without
/// being read. False: there is none.
pub fn change_a_byte(state: &Path, which: u64) -> bool {
    const PAGE_BYTES: u64 = 4096;
    let Some(pages) = pages_in_use(state).filter(|pages| !pages.is_empty()) else { return false };
    let page = pages[(which / PAGE_BYTES % pages.len() as u64) as usize];
    let mut bytes = fs::read(state).expect("readable");
    bytes[((page - 1) * PAGE_BYTES + which % PAGE_BYTES) as usize] ^= 1;
    write(state, &bytes);
    true
}

/// Writes the file as it is on the disk: no crash undoes it.
fn write(state: &Path, bytes: &[u8]) {
    fs::write(state, bytes).expect("written");
    fs::File::open(state).and_then(|file| file.sync_all()).expect("flushed");
}

fn pages_in_use(state: &Path) -> Option<Vec<u64>> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let file = rusqlite::Connection::open_with_flags(state, flags).ok()?;
    let mut pages = file.prepare("SELECT pageno FROM dbstat WHERE pageno > 1 ORDER BY pageno").ok()?;
    let rows = pages.query_map([], |row| row.get::<_, i64>(0)).ok()?;
    Some(rows.flatten().map(|page| page as u64).collect())
}

/// Finds the body of a visible message that is ASCII and on one page.
fn body(state: &Path, which: u64) -> Option<Vec<u8>> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let file = rusqlite::Connection::open_with_flags(state, flags).ok()?;
    let shown =
        "FROM message WHERE deleted = 0 AND length(body) BETWEEN 3 AND 500 AND octet_length(body) = length(body)";
    let count: i64 = file.query_row(&format!("SELECT count(*) {shown}"), [], |row| row.get(0)).ok()?;
    let number = (which % u64::try_from(count).ok()?.max(1)) as i64;
    let sql = format!("SELECT body {shown} ORDER BY revision LIMIT 1 OFFSET ?1");
    let body: String = file.query_row(&sql, [number], |row| row.get(0)).ok()?;
    Some(body.into_bytes())
}
