//! The state as a database file, page by page, while the writer goes on.
//!
//! An image is a read transaction: its pages are those of one commit, however long they take to be read. No copy is
//! made on the disk. In exchange, the write-ahead log cannot start over before the image is dropped, and grows with
//! every commit meanwhile ([`Retained`]).
//!
//! Invariant: the pages in their order are a complete database file without a write-ahead log, sealed if `chat.db` is.
//!
//! Does not cover: where the pages go (`snapshot` receives them), and when an image takes too long.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rusqlite::Connection;

use super::{
    db,
    error::{Context as _, StorageError},
    pages::{self, page},
    snapshot::{Incoming, Received, SnapshotMeta, read_meta},
};

/// Pages that are copied at once within this process.
const PAGES_AT_ONCE: u32 = 256;

/// An image of the state, being read.
#[derive(Debug)]
pub struct StateImage {
    /// In a read transaction.
    conn: Connection,
    meta: SnapshotMeta,
    is_sealed: bool,
    pages: u32,
    read: u32,
    retained: Retained,
    checksum: crc32fast::Hasher,
}

impl StateImage {
    /// Begins to read the committed state of the data directory `dir`.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        let conn = db::open_reader(&db::database_path(dir))?;
        conn.execute_batch("BEGIN").context("begin to read the state")?;
        // The first read determines the commit.
        let meta = read_meta(&conn)?;
        let pages = pages::count(&conn)?;
        let is_sealed = pages::is_sealed(&conn)?;
        let retained = Retained::since_now(db::write_ahead_log_path(dir));
        Ok(Self { conn, meta, is_sealed, pages, read: 0, retained, checksum: crc32fast::Hasher::new() })
    }

    /// Metadata of this image.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Size of the whole file in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.pages) * page::PAGE_BYTES as u64
    }

    /// Reads the next pages, at most `most`. Empty: there are no more.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn read(&mut self, most: u32) -> Result<Vec<u8>, StorageError> {
        let count = most.min(self.pages - self.read);
        let mut bytes = Vec::with_capacity(count as usize * page::PAGE_BYTES);
        for number in self.read + 1..=self.read + count {
            pages::read_page(&self.conn, number, |page| bytes.extend_from_slice(page))?;
            let Some(page) = bytes.last_chunk_mut() else { break };
            if number == 1 {
                page::without_write_ahead_log(page);
            }
            if self.is_sealed {
                page::seal(number, page);
            }
        }
        self.read += count;
        self.checksum.update(&bytes);
        Ok(bytes)
    }

    /// Receives this image as a file in the data directory `dir`, without a connection in between.
    ///
    /// # Errors
    /// As for [`Self::read`] and [`Incoming`].
    pub fn receive(mut self, dir: &Path) -> Result<Received, StorageError> {
        let mut incoming = Incoming::create(dir)?;
        loop {
            let pages = self.read(PAGES_AT_ONCE)?;
            if pages.is_empty() {
                return incoming.finish(self.checksum());
            }
            incoming.write(&pages)?;
        }
    }

    /// CRC-32 of everything that was read.
    pub fn checksum(&self) -> u32 {
        self.checksum.clone().finalize()
    }

    /// What this image costs while it is open.
    pub fn retained(&self) -> Retained {
        self.retained.clone()
    }
}

/// The growth of the write-ahead log since an image was opened. The log cannot start over before the image is closed.
#[derive(Debug, Clone)]
pub struct Retained {
    wal: PathBuf,
    before: u64,
}

impl Retained {
    fn since_now(wal: PathBuf) -> Self {
        let before = size(&wal);
        Self { wal, before }
    }

    /// Bytes that the log has grown by.
    pub fn bytes(&self) -> u64 {
        size(&self.wal).saturating_sub(self.before)
    }
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}
