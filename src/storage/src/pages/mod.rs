//! Checksums of the pages of database files.
//!
//! A page of `chat.db`, `log.db`, a snapshot or a backup ends with a checksum of its content and its number, in eight
//! bytes that SQLite reserves and does not use. SQLite alone would return a page in which the disk has changed a byte.
//! Here a read of such a page fails, and the failure counts as damage ([`StorageError::is_corruption`]). Other programs
//! can read sealed files, but pages that they write have no valid checksum.
//!
//! Invariants:
//! - A file is sealed as a whole or not at all. Byte 20 of its header records which. The first page has a checksum of
//!   its own, so a change of that byte is detected as damage and not mistaken for a file without checksums.
//! - Every connection to a sealed file is opened by [`open`] and verifies the pages that it reads ([`vfs`]).
//! - New files are sealed. A file of an earlier version is sealed by `sealing` before it is used, if the volume has
//!   space for the copy.
//! - A sealed `log.db` has a format that earlier versions reject (`log::schema`), because they would write pages
//!   without checksums.
//!
//! Does not cover: write-ahead logs, whose frames SQLite verifies during recovery but not on every read; a page that
//! was reset to an earlier content.

pub(super) mod page;
mod vfs;

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use self::page::{PAGE_BYTES, Page, has_space, has_write_ahead_log, is_plain, is_valid, last_damaged, seal};
use super::error::{Context as _, StorageError};

/// Opens a connection to a database. If the file is sealed, the connection verifies the pages that it reads. A database
/// that the connection creates, or that is copied from it, is sealed.
///
/// # Errors
/// The file cannot be opened.
pub(super) fn open(path: &Path, flags: OpenFlags, context: &'static str) -> Result<Connection, StorageError> {
    vfs::register().context("register the page checksums")?;
    let conn = Connection::open_with_flags_and_vfs(path, flags, vfs::NAME).context(context)?;
    vfs::reserve(&conn).context(context)?;
    // Otherwise SQLite compiles some statements again for each use, as other values might have a better plan. Without
    // statistics on the tables there is none.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).context(context)?;
    Ok(conn)
}

/// Whether the file behind a connection is sealed. Otherwise an earlier version wrote it.
///
/// # Errors
/// SQLite does not return the file.
pub(super) fn is_sealed(conn: &Connection) -> Result<bool, StorageError> {
    vfs::is_sealed(conn).context("look whether a database has checksums")
}

/// Opens a database of a stopped node for inspection or changes. The pages that it writes are sealed. For tools and
/// tests: the node's other checks decide whether it accepts the changes.
///
/// # Errors
/// The file cannot be opened.
pub fn open_file(path: &Path) -> Result<Connection, StorageError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    open(path, flags, "open a database")
}

/// Runs `PRAGMA quick_check` or `PRAGMA integrity_check`, which read every page that is in use. The latter also
/// compares indexes with their tables.
///
/// # Errors
/// [`StorageError::Corrupt`], which names the file and the first page or row that is wrong.
pub(super) fn check(conn: &Connection, pragma: &str, path: &Path) -> Result<(), StorageError> {
    let verdict: String = conn
        .query_row(&format!("PRAGMA {pragma}(1)"), [], |row| row.get(0))
        .context("check the pages of a database")?;
    if verdict == "ok" {
        return Ok(());
    }
    let problem = last_damaged().map_or(verdict, |number| format!("page {number} does not match its checksum"));
    Err(StorageError::Corrupt(format!("{}: {problem}", path.display())))
}

/// Passes a page on as SQLite has it in the current transaction of a connection. Its checksum is verified if it comes
/// from the file. The bytes of the checksum itself are undefined.
///
/// # Errors
/// The page is damaged ([`StorageError::is_corruption`]), there is no such page, or the file cannot be read.
pub(super) fn read_page<T>(conn: &Connection, number: u32, read: impl FnOnce(&Page) -> T) -> Result<T, StorageError> {
    // SQLite's own table of pages. It is compiled in because of .cargo/config.toml.
    let sql = "SELECT data FROM sqlite_dbpage WHERE pgno = ?1";
    let mut statement = conn.prepare_cached(sql).context("read a page")?;
    let found = statement.query_row([number], |row| {
        let page: Option<&Page> = row.get_ref(0)?.as_blob()?.try_into().ok();
        Ok(page.map(read))
    });
    let wrong_size = || StorageError::Corrupt(format!("page {number} has another size than {PAGE_BYTES} bytes"));
    found.context("read a page")?.ok_or_else(wrong_size)
}

/// Pages that were verified while the file was in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedPages {
    /// Number of pages that were verified.
    pub count: u32,
    /// Number of pages of the file.
    pub of: u32,
}

/// Verifies pages from the one with the number `first` on, at most `most`, in the current transaction of a connection
/// that has not read them before.
///
/// # Errors
/// As for [`read_page`].
pub(super) fn verify(conn: &Connection, first: u32, most: u32) -> Result<VerifiedPages, StorageError> {
    let of = count(conn)?;
    let count = most.min((of + 1).saturating_sub(first));
    (first..first + count).try_for_each(|number| read_page(conn, number, |_| ()))?;
    Ok(VerifiedPages { count, of })
}

/// Number of pages of a database.
///
/// # Errors
/// The file cannot be read.
pub(super) fn count(conn: &Connection) -> Result<u32, StorageError> {
    conn.pragma_query_value(None, "page_count", |row| row.get(0)).context("count the pages of a database")
}

/// Checks the pages of a file that arrives in pieces: each of them, if the file is sealed.
#[derive(Debug, Default)]
pub(super) struct ArrivingPages {
    /// Known since the first page.
    is_sealed: Option<bool>,
    arrived: u64,
}

impl ArrivingPages {
    /// Checks the next pages.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`]: these are not whole pages, or one does not match its checksum.
    pub fn check(&mut self, pages: &[u8]) -> Result<(), StorageError> {
        let (pages, rest) = pages.as_chunks::<PAGE_BYTES>();
        if !rest.is_empty() {
            return Err(StorageError::Corrupt("a snapshot has a part of a page".into()));
        }
        for page in pages {
            self.arrived += 1;
            let is_sealed = *self.is_sealed.get_or_insert_with(|| !is_plain(page));
            let number = u32::try_from(self.arrived).unwrap_or(u32::MAX);
            if number == 1 && has_write_ahead_log(page) {
                return Err(StorageError::Corrupt("a snapshot wants a write-ahead log".into()));
            }
            if is_sealed && !is_valid(number, page) {
                let problem = format!("page {number} of a snapshot does not match its checksum");
                return Err(StorageError::Corrupt(problem));
            }
        }
        Ok(())
    }

    /// Whether the pages were checked. False for a file of an earlier version.
    pub fn are_sealed(&self) -> bool {
        self.is_sealed == Some(true)
    }
}

/// Writes the checksum of every page of a file that is not in use, whatever the pages contain, and flushes the file.
/// The pages need to have space for it. For files to which a program without checksums has written, and for tools and
/// tests that change a sealed file on purpose.
///
/// # Errors
/// The file cannot be read or written, or has no space for checksums.
pub fn seal_pages(path: &Path) -> Result<(), StorageError> {
    let refused = |problem: &str| StorageError::ForeignFile { path: path.to_owned(), problem: problem.to_owned() };
    let failed = || StorageError::io("write the checksums of", path);
    let file = File::options().read(true).write(true).open(path).map_err(failed())?;
    let mut page = [0; PAGE_BYTES];
    for number in 1..=u32::MAX {
        let at = u64::from(number - 1) * PAGE_BYTES as u64;
        match read_up_to(&file, &mut page, at).map_err(failed())? {
            0 => break,
            PAGE_BYTES => {}
            _ => return Err(refused("it ends within a page")),
        }
        if number == 1 && !has_space(&page) {
            return Err(refused("its pages have no space for checksums"));
        }
        seal(number, &mut page);
        file.write_all_at(&page, at).map_err(failed())?;
    }
    file.sync_all().map_err(failed())
}

/// Reads until the buffer is full or the file ends.
fn read_up_to(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests;
