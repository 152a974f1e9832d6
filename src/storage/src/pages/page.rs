//! The form of a sealed page: its content, and a checksum in the bytes that SQLite reserves. And the number of the last
//! damaged page.

use std::cell::Cell;

thread_local! {
    /// Last damaged page that this thread has read. SQLite's error code cannot carry it.
    static DAMAGED: Cell<Option<u32>> = const { Cell::new(None) };
}

/// SQLite's default page size.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Bytes at the end of each page for the checksum. SQLite's `cksumvfs` reserves as many.
pub(super) const RESERVED_BYTES: usize = 8;
/// Offsets of the page size (two bytes) and of the number of reserved bytes in the header of a database.
const PAGE_SIZE_AT: usize = 16;
const RESERVED_AT: usize = 20;
/// Offset of the two bytes in the header that say whether a file has a write-ahead log, and their value if not.
const VERSIONS_AT: usize = 18;
const WITHOUT_WAL: u8 = 1;
/// The page that SQLite never uses, because it locks bytes there. It is a gap in files of more than 1 GiB.
pub(super) const LOCK_PAGE: u32 = (1 << 30) / PAGE_BYTES as u32 + 1;
/// Combined with the page number in the checksum, next to the CRC. So neither zeros nor the content of another page
/// match.
const MARK: u32 = 0x5143_5031;
pub(crate) type Page = [u8; PAGE_BYTES];

/// Notes the number of a page that this thread has read with a wrong checksum.
pub(super) fn note_damaged(number: Option<u32>) {
    DAMAGED.set(number);
}

/// Takes the number of the last page that this thread has read with a wrong checksum.
pub(crate) fn last_damaged() -> Option<u32> {
    DAMAGED.take()
}

/// Whether the file that begins with this page has no checksums, because an earlier version or another program wrote
/// it. An empty file will have them. If only the byte that records it was changed, the page still has its checksum, and
/// the file is damaged.
pub(super) fn is_plain(first: &Page) -> bool {
    let mut sealed = *first;
    sealed[RESERVED_AT] = RESERVED_BYTES as u8;
    first[RESERVED_AT] != sealed[RESERVED_AT] && first.iter().any(|&byte| byte != 0) && !is_intact(1, &sealed)
}

/// Whether the file that begins with this page is used with a write-ahead log.
pub(super) fn has_write_ahead_log(first: &Page) -> bool {
    first[VERSIONS_AT..VERSIONS_AT + 2] != [WITHOUT_WAL; 2]
}

/// Makes the file that begins with this page one without a write-ahead log.
pub(crate) fn without_write_ahead_log(first: &mut Page) {
    first[VERSIONS_AT..VERSIONS_AT + 2].fill(WITHOUT_WAL);
}

/// Whether the pages of the file that begins with this page have space for checksums.
pub(super) fn has_space(first: &Page) -> bool {
    let size = u16::from_be_bytes([first[PAGE_SIZE_AT], first[PAGE_SIZE_AT + 1]]);
    (usize::from(size), usize::from(first[RESERVED_AT])) == (PAGE_BYTES, RESERVED_BYTES)
}

/// Writes the checksum of a page.
pub(crate) fn seal(number: u32, page: &mut Page) {
    let checksum = checksum(number, page);
    page[PAGE_BYTES - RESERVED_BYTES..].copy_from_slice(&checksum);
}

/// Whether a page of a sealed file is as it was written.
pub(super) fn is_valid(number: u32, page: &Page) -> bool {
    is_intact(number, page) || number == LOCK_PAGE && page.iter().all(|&byte| byte == 0)
}

/// Whether a page matches its checksum.
pub(super) fn is_intact(number: u32, page: &Page) -> bool {
    page[PAGE_BYTES - RESERVED_BYTES..] == checksum(number, page)
}

fn checksum(number: u32, page: &Page) -> [u8; RESERVED_BYTES] {
    let crc = crc32fast::hash(&page[..PAGE_BYTES - RESERVED_BYTES]);
    let mut checksum = [0; RESERVED_BYTES];
    checksum[..4].copy_from_slice(&crc.to_le_bytes());
    checksum[4..].copy_from_slice(&(number ^ MARK).to_le_bytes());
    checksum
}
