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
//! - New files are sealed. A file of an earlier version is sealed by [`seal_file`] before it is used, if the volume has
//!   space for the copy.
//! - A sealed `log.db` has a format that earlier versions reject (`log::schema`), because they would write pages
//!   without checksums.
//!
//! Does not cover: write-ahead logs, whose frames SQLite verifies during recovery but not on every read; a page that
//! was reset to an earlier content; empty pages, which SQLite does not read.

mod vfs;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags};

pub(super) use self::vfs::last_damaged;
use super::{
    db,
    error::{Context as _, StorageError},
    snapshot,
};

/// SQLite's default page size.
const PAGE_BYTES: usize = 4096;
/// Bytes at the end of each page for the checksum. SQLite's `cksumvfs` reserves as many.
const RESERVED_BYTES: usize = 8;
/// Offsets of the page size (two bytes) and of the number of reserved bytes in the header of a database.
const PAGE_SIZE_AT: usize = 16;
const RESERVED_AT: usize = 20;
/// Combined with the page number in the checksum, next to the CRC. So neither zeros nor the content of another page
/// match.
const MARK: u32 = 0x5143_5031;
/// Extension of a copy that is not complete.
const UNFINISHED: &str = "sealing.tmp";

type Page = [u8; PAGE_BYTES];

/// Opens a connection to a database. If the file is sealed, the connection verifies the pages that it reads. A database
/// that the connection creates, or that is copied from it, is sealed.
///
/// # Errors
/// The file cannot be opened.
pub(super) fn open(path: &Path, flags: OpenFlags, context: &'static str) -> Result<Connection, StorageError> {
    vfs::register().context("register the page checksums")?;
    let conn = Connection::open_with_flags_and_vfs(path, flags, vfs::NAME).context(context)?;
    vfs::reserve(&conn).context(context)?;
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

/// Reads a file sequentially for a consumer other than SQLite, and verifies its pages if it is sealed. No other process
/// or thread may write to the file meanwhile.
pub struct VerifiedRead<'a> {
    file: &'a File,
    is_sealed: bool,
    at: u64,
}

impl<'a> VerifiedRead<'a> {
    /// Begins to read a database file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn new(file: &'a File) -> io::Result<Self> {
        let mut first = [0; PAGE_BYTES];
        read_up_to(file, &mut first, 0)?;
        Ok(Self { file, is_sealed: !is_plain(&first), at: 0 })
    }

    /// Fills the buffer, or reads to the end of the file, and returns the number of bytes; 0 at the end. The size of
    /// the buffer has to be a multiple of the page size.
    ///
    /// # Errors
    /// The file cannot be read, or a page does not match its checksum ([`io::ErrorKind::InvalidData`]).
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = read_up_to(self.file, into, self.at)?;
        let damaged = if self.is_sealed { damaged_page(&into[..count], self.at) } else { None };
        if let Some(number) = damaged {
            let problem = format!("page {number} does not match its checksum");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        self.at += count as u64;
        Ok(count)
    }
}

/// Verifies bytes of a sealed file that begin at a page boundary. Returns the number of the first damaged or incomplete
/// page.
fn damaged_page(bytes: &[u8], at: u64) -> Option<u32> {
    let first = at / PAGE_BYTES as u64 + 1;
    bytes.chunks(PAGE_BYTES).zip(first..).find_map(|(page, number)| {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let is_intact = page.try_into().is_ok_and(|page| is_intact(number, page));
        (!is_intact).then_some(number)
    })
}

/// Rewrites an unsealed file as a sealed one, and sets its format to `user_version`, if given. Returns `false`, with
/// the file unchanged, if the volume has no space for the copy. No other process or thread may use the file meanwhile.
/// The copy replaces the file atomically, even if the process dies.
///
/// # Errors
/// The file cannot be read, or the copy cannot be written.
pub(super) fn seal_file(path: &Path, user_version: Option<i32>) -> Result<bool, StorageError> {
    let failed = "give a database checksums";
    let copy = unfinished(path);
    snapshot::remove(&copy)?;
    let conn = open_file(path)?;
    db::keep_wal(&conn).context(failed)?;
    // The write-ahead log stays next to the new file, so it has to be empty.
    if !db::cut_wal(&conn).context(failed)? {
        return Err(StorageError::Stopped(format!("{} is in use", path.display())));
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    // Requires twice the size of the copy: a node would stop when its volume is full.
    let (free, needed) = db::space_for_a_copy(&conn, dir)?;
    if free < needed {
        return Ok(false);
    }
    db::copy_into(&conn, &copy)?;
    drop(conn);
    if let Some(version) = user_version {
        open_file(&copy)?.pragma_update(None, "user_version", version).context(failed)?;
    }
    db::sync_file(&copy)?;
    fs::rename(&copy, path).map_err(StorageError::io("rename", &copy))?;
    db::sync_directory(dir)?;
    Ok(true)
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

/// Removes the copy that an interrupted [`seal_file`] has left.
pub(super) fn remove_unfinished(path: &Path) -> Result<(), StorageError> {
    snapshot::remove(&unfinished(path))
}

fn unfinished(path: &Path) -> PathBuf {
    path.with_extension(UNFINISHED)
}

/// Whether the file that begins with this page has no checksums, because an earlier version or another program wrote
/// it. An empty file will have them. If only the byte that records it was changed, the page still has its checksum, and
/// the file is damaged.
fn is_plain(first: &Page) -> bool {
    let mut sealed = *first;
    sealed[RESERVED_AT] = RESERVED_BYTES as u8;
    first[RESERVED_AT] != sealed[RESERVED_AT] && first.iter().any(|&byte| byte != 0) && !is_intact(1, &sealed)
}

/// Whether the pages of the file that begins with this page have space for checksums.
fn has_space(first: &Page) -> bool {
    let size = u16::from_be_bytes([first[PAGE_SIZE_AT], first[PAGE_SIZE_AT + 1]]);
    (usize::from(size), usize::from(first[RESERVED_AT])) == (PAGE_BYTES, RESERVED_BYTES)
}

/// Writes the checksum of a page.
fn seal(number: u32, page: &mut Page) {
    let checksum = checksum(number, page);
    page[PAGE_BYTES - RESERVED_BYTES..].copy_from_slice(&checksum);
}

/// Whether a page matches its checksum.
fn is_intact(number: u32, page: &Page) -> bool {
    page[PAGE_BYTES - RESERVED_BYTES..] == checksum(number, page)
}

fn checksum(number: u32, page: &Page) -> [u8; RESERVED_BYTES] {
    let crc = crc32fast::hash(&page[..PAGE_BYTES - RESERVED_BYTES]);
    let mut checksum = [0; RESERVED_BYTES];
    checksum[..4].copy_from_slice(&crc.to_le_bytes());
    checksum[4..].copy_from_slice(&(number ^ MARK).to_le_bytes());
    checksum
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
#[path = "../pages_tests.rs"]
mod tests;
