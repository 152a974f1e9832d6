//! SQLite VFS that seals pages when they are written and verifies them when they are read.
//!
//! It is SQLite's own VFS with replaced methods for database files. A page that is written gets its checksum, in the
//! bytes that SQLite reserves for that ([`RESERVED_BYTES`]). A read of a page that does not match its checksum
//! fails with `SQLITE_IOERR_DATA`. SQLite's `cksumvfs` works the same way and is the source of the idea.
//!
//! Invariants:
//! - The methods are replaced in files that are sealed or empty. Other files are read and written unchanged.
//! - Every byte of a database file passes through the replaced read and write methods: memory-mapped reads and reads of
//!   parts of a page are disabled.
//! - SQLite sees a page either as it was sealed or as an error.
//!
//! This is the only unsafe code of the program. It relies on the contract of `sqlite3_vfs` and `sqlite3_io_methods`,
//! and on the fact that SQLite's VFS for Unix finds its methods through the file and not through the VFS.
//!
//! Does not cover: write-ahead logs and rollback journals, whose frames have checksums of their own, which SQLite
//! verifies during recovery; and which files are sealed.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr, slice,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicPtr, Ordering},
    },
};

use rusqlite::{Connection, ffi};

use super::page::{PAGE_BYTES, RESERVED_BYTES, has_space, is_intact, is_plain, note_damaged, seal};

/// Name of the VFS in SQLite.
pub(super) const NAME: &CStr = c"quorum-chat-pages";
/// SQLite's smallest page size. A shorter read is a read of the header.
const SMALLEST_PAGE: c_int = 512;

/// SQLite's own VFS.
static ORIGINAL: AtomicPtr<ffi::sqlite3_vfs> = AtomicPtr::new(ptr::null_mut());

/// One entry for each set of methods with which files were opened.
static KINDS: Mutex<Vec<&'static Methods>> = Mutex::new(Vec::new());

/// The replaced methods of a file, and the original ones that they call. SQLite has one set for each kind of locking.
///
/// `methods` comes first: a file points to it, and thereby to the whole struct.
#[repr(C)]
struct Methods {
    methods: ffi::sqlite3_io_methods,
    original: &'static ffi::sqlite3_io_methods,
}

/// Registers the VFS with SQLite, once in the life of the process.
pub(super) fn register() -> rusqlite::Result<()> {
    static DONE: OnceLock<c_int> = OnceLock::new();
    let code = *DONE.get_or_init(|| {
        // SAFETY: `sqlite3_vfs_find` initializes SQLite and returns the default VFS, which lives as long as the
        // process.
        let original = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
        // SAFETY: not null means valid.
        let Some(found) = (unsafe { original.as_ref() }) else { return ffi::SQLITE_ERROR };
        ORIGINAL.store(original, Ordering::Release);
        let vfs = ffi::sqlite3_vfs { zName: NAME.as_ptr(), xOpen: Some(open), pNext: ptr::null_mut(), ..*found };
        // SAFETY: SQLite keeps the pointer, and what it points to is never freed.
        unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0) }
    });
    check(code)
}

/// Reserves the bytes for checksums in the pages of a new database, or of one that is copied from this connection.
pub(super) fn reserve(conn: &Connection) -> rusqlite::Result<()> {
    let mut bytes = RESERVED_BYTES as c_int;
    control(conn, ffi::SQLITE_FCNTL_RESERVE_BYTES, ptr::from_mut(&mut bytes).cast())
}

/// `argument` points to the operation's argument.
fn control(conn: &Connection, operation: c_int, argument: *mut c_void) -> rusqlite::Result<()> {
    // SAFETY: the handle is open as long as `conn`, and both callers hand over what their operation reads and writes.
    check(unsafe { ffi::sqlite3_file_control(conn.handle(), c"main".as_ptr(), operation, argument) })
}

fn check(code: c_int) -> rusqlite::Result<()> {
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// Opens a file with SQLite's VFS. A database gets the replaced methods unless it has no checksums; journals and
/// temporary files do not.
///
/// The first page is read through SQLite's own handle. Opening and closing the file separately would release the locks
/// of all connections of this process (POSIX), and another process could then remove the write-ahead log.
unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    let original = ORIGINAL.load(Ordering::Acquire);
    // SAFETY: set before the VFS is registered, and it lives as long as the process.
    let Some(xopen) = (unsafe { (*original).xOpen }) else { return ffi::SQLITE_CANTOPEN };
    // SAFETY: the arguments are SQLite's, and `file` has the size that the original asks for: ours asks for the same.
    let code = unsafe { xopen(original, name, file, flags, out) };
    if code != ffi::SQLITE_OK || flags & ffi::SQLITE_OPEN_MAIN_DB == 0 {
        return code;
    }
    // SAFETY: the file is open, so it has methods, which are constants of SQLite.
    let Some(methods) = (unsafe { (*file).pMethods.as_ref() }) else { return ffi::SQLITE_CANTOPEN };
    let Some(xread) = methods.xRead else { return ffi::SQLITE_IOERR_READ };
    let mut first = [0; PAGE_BYTES];
    // SAFETY: the buffer has the size that is named, and lives as long as the call.
    let code = unsafe { xread(file, first.as_mut_ptr().cast(), PAGE_BYTES as c_int, 0) };
    if !matches!(code, ffi::SQLITE_OK | ffi::SQLITE_IOERR_SHORT_READ) {
        // SQLite closes the file.
        return code;
    }
    if !is_plain(&first) {
        // SAFETY: `file` is valid, and the new methods are never freed.
        unsafe { (*file).pMethods = &raw const replaced(methods).methods };
    }
    ffi::SQLITE_OK
}

/// Whether a connection verifies the pages that it reads and seals those that it writes.
pub(super) fn is_sealed(conn: &Connection) -> rusqlite::Result<bool> {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    control(conn, ffi::SQLITE_FCNTL_FILE_POINTER, ptr::from_mut(&mut file).cast())?;
    // SAFETY: null, or the connection's file, which is open as long as `conn`.
    let methods = unsafe { file.as_ref() }.map_or(ptr::null(), |file| file.pMethods);
    let kinds = KINDS.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(kinds.iter().any(|kind| ptr::eq(&raw const kind.methods, methods)))
}

/// The methods of a kind of file, with the replaced ones. Created once for each kind.
fn replaced(original: &'static ffi::sqlite3_io_methods) -> &'static Methods {
    let mut kinds = KINDS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = kinds.iter().find(|kind| ptr::eq(kind.original, original)) {
        return known;
    }
    let methods = ffi::sqlite3_io_methods {
        // Version 2 has no memory-mapped reads.
        iVersion: original.iVersion.min(2),
        xRead: Some(read),
        xWrite: Some(write),
        xDeviceCharacteristics: Some(device_characteristics),
        ..*original
    };
    let made = Box::leak(Box::new(Methods { methods, original }));
    kinds.push(made);
    made
}

/// The methods that SQLite set for a file opened by [`open`].
///
/// # Safety
/// `file` was opened by [`open`] and is not closed.
unsafe fn original(file: *mut ffi::sqlite3_file) -> &'static ffi::sqlite3_io_methods {
    // SAFETY: `open` has set the pointer to the first field of `Methods`, which is never freed.
    unsafe { (*(*file).pMethods.cast::<Methods>()).original }
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, into: *mut c_void, count: c_int, at: i64) -> c_int {
    // SAFETY: SQLite calls this for files of ours only, with arguments for the original.
    let code = unsafe {
        let Some(xread) = original(file).xRead else { return ffi::SQLITE_IOERR_READ };
        xread(file, into, count, at)
    };
    if count < SMALLEST_PAGE || !matches!(code, ffi::SQLITE_OK | ffi::SQLITE_IOERR_SHORT_READ) {
        return code;
    }
    // SAFETY: the original has filled as many bytes, with zeros where the file has ended.
    let bytes: &[u8] = unsafe { slice::from_raw_parts(into.cast(), count as usize) };
    let fits = match code {
        ffi::SQLITE_OK => is_sealed_page(bytes, at),
        // An empty file has no first page yet.
        _ => at == 0,
    };
    // SAFETY: as above.
    if fits || bytes.iter().all(|&byte| byte == 0) && unsafe { is_in_rollback_transaction(file) } {
        return code;
    }
    note_damaged(page_number(at));
    ffi::SQLITE_IOERR_DATA
}

/// Whether the file is being changed with a rollback journal. Such a transaction may allocate a page, free it before it
/// was ever written, and then reuse it and read it as zeros. With a write-ahead log every changed page is written.
///
/// # Safety
/// As for [`original`].
unsafe fn is_in_rollback_transaction(file: *mut ffi::sqlite3_file) -> bool {
    let mut reserved = 0;
    // SAFETY: the file is open, and the result has the type that SQLite wants.
    let code = unsafe { original(file).xCheckReservedLock.map(|check| check(file, &raw mut reserved)) };
    code == Some(ffi::SQLITE_OK) && reserved != 0
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, count: c_int, at: i64) -> c_int {
    // SAFETY: SQLite calls this for files of ours only.
    let Some(xwrite) = (unsafe { original(file) }).xWrite else { return ffi::SQLITE_IOERR_WRITE };
    let Some(number) = page_number(at).filter(|_| count as usize == PAGE_BYTES) else {
        // Only whole pages are written to a database.
        return ffi::SQLITE_IOERR_WRITE;
    };
    let mut page = [0; PAGE_BYTES];
    // SAFETY: SQLite hands over as many bytes.
    page.copy_from_slice(unsafe { slice::from_raw_parts(from.cast(), PAGE_BYTES) });
    if number == 1 && !has_space(&page) {
        // The checksums would overwrite the content there.
        return ffi::SQLITE_IOERR_WRITE;
    }
    seal(number, &mut page);
    // SAFETY: as above, with a page that lives as long as the call.
    unsafe { xwrite(file, page.as_ptr().cast(), count, at) }
}

/// The original characteristics without `SQLITE_IOCAP_SUBPAGE_READ`, because a part of a page cannot be verified.
unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls this for files of ours only.
    let all = unsafe { original(file).xDeviceCharacteristics.map_or(0, |characteristics| characteristics(file)) };
    all & !ffi::SQLITE_IOCAP_SUBPAGE_READ
}

fn is_sealed_page(bytes: &[u8], at: i64) -> bool {
    match (page_number(at), bytes.try_into()) {
        (Some(number), Ok(page)) => is_intact(number, page) || failpoints::is_active(failpoints::PAGES_NOT_VERIFIED),
        // The header names another page size.
        _ => false,
    }
}

/// The number of the page at an offset; the first is 1.
fn page_number(at: i64) -> Option<u32> {
    let at = u64::try_from(at).ok()?;
    let size = PAGE_BYTES as u64;
    (at % size == 0).then(|| u32::try_from(at / size + 1).ok()).flatten()
}
