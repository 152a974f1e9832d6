//! Simulated disks: real files that lose writes without fsync in a crash.
//!
//! Intercepts calls between the process and the C library for files below one directory, which contains one directory
//! per node. For each write it keeps the previous content until the file is flushed. A crash undoes the unflushed
//! writes: all of them or, like real disks, all but some, some of which are torn. While a node is dying, its code
//! cannot change any file, because a killed process closes nothing in order.
//!
//! Does not cover: names. Creation, renaming and removal of files survive every crash, as if directories were flushed
//! immediately.

use std::{
    cell::RefCell,
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    os::{fd::AsRawFd as _, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use super::rng::Rng;

/// How much of the unflushed data survives a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// All of it: the process was killed, but the system survives.
    Process,
    /// Nothing: the power failed.
    Power,
    /// Some of it, in pieces: the power failed while the disk was writing.
    Torn,
}

/// Size of an atomic write of a disk.
const SECTOR_BYTES: u64 = 512;

struct Disks {
    root: PathBuf,
    device: u64,
    /// In the order of their first write and not by inode, which differs between runs.
    files: Vec<Dirty>,
    dying: Option<usize>,
    /// The error that writes of each node fail with.
    errors: Vec<Option<c_int>>,
}

/// A file with unflushed writes.
struct Dirty {
    inode: u64,
    node: usize,
    /// Prevents reuse of the inode, and is used to undo writes.
    fd: c_int,
    changes: Vec<Change>,
}

struct Change {
    offset: u64,
    /// The previous content, as far as there was any.
    before: Vec<u8>,
    /// `None` for a change of the length alone.
    after: Option<Vec<u8>>,
    length_before: u64,
}

thread_local! {
    static DISKS: RefCell<Option<Disks>> = const { RefCell::new(None) };
}

/// Starts simulating disks for files below `root`: those of node `i` in the directory `n<i+1>`.
pub fn start(root: &Path, nodes: usize) {
    let device = stat(root).expect("the directory exists").st_dev;
    let disks = Disks { root: root.to_owned(), device, files: Vec::new(), dying: None, errors: vec![None; nodes] };
    DISKS.with_borrow_mut(|current| *current = Some(disks));
}

/// Makes writes and flushes of a node fail with this error, or succeed again.
pub fn set_error(node: usize, error: Option<c_int>) {
    with(|disks| disks.errors[node] = error);
}

/// Runs `die`, in which the node's code may be dropped, without access to its files. Then undoes what the crash loses.
pub fn crash(node: usize, how: Crash, rng: &mut Rng, die: impl FnOnce()) {
    with(|disks| disks.dying = Some(node));
    die();
    with(|disks| {
        disks.dying = None;
        disks.errors[node] = None;
        let (lost, kept) = std::mem::take(&mut disks.files).into_iter().partition(|file| file.node == node);
        disks.files = kept;
        for file in lost {
            if how != Crash::Process {
                file.undo();
            }
            if how == Crash::Torn {
                file.redo_some(rng);
            }
        }
    });
}

impl Dirty {
    fn undo(&self) {
        for change in self.changes.iter().rev() {
            write_at(self.fd, &change.before, change.offset);
            set_length(self.fd, change.length_before);
        }
    }

    fn redo_some(&self, rng: &mut Rng) {
        for change in &self.changes {
            let Some(after) = change.after.as_ref().filter(|_| rng.chance(60)) else { continue };
            let sectors = (after.len() as u64).div_ceil(SECTOR_BYTES);
            let kept = if rng.chance(30) { rng.range(0..sectors + 1) * SECTOR_BYTES } else { u64::MAX };
            write_at(self.fd, &after[..after.len().min(usize::try_from(kept).unwrap_or(usize::MAX))], change.offset);
        }
    }
}

impl Drop for Dirty {
    fn drop(&mut self) {
        // SAFETY: the file descriptor is owned by this value.
        unsafe { libc::syscall(libc::SYS_close, self.fd) };
    }
}

fn with<T>(act: impl FnOnce(&mut Disks) -> T) -> Option<T> {
    // The module's own file accesses are not intercepted.
    DISKS.try_with(|disks| disks.try_borrow_mut().ok()?.as_mut().map(act)).ok().flatten()
}

impl Disks {
    fn node_of(&self, path: &Path) -> Option<usize> {
        let name = path.strip_prefix(&self.root).ok()?.iter().next()?.to_str()?;
        let number: usize = name.strip_prefix('n')?.parse().ok()?;
        (1..=self.errors.len()).contains(&number).then(|| number - 1)
    }

    /// Returns the node that the file belongs to, if any, and the file's status.
    fn file(&self, fd: c_int) -> Option<(usize, libc::stat)> {
        let mut stat = unsafe { std::mem::zeroed::<libc::stat>() };
        // SAFETY: `stat` is writable.
        let known = unsafe { libc::syscall(libc::SYS_fstat, fd, &raw mut stat) } == 0;
        if !known || stat.st_dev != self.device || stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return None;
        }
        if let Some(dirty) = self.files.iter().find(|dirty| dirty.inode == stat.st_ino) {
            return Some((dirty.node, stat));
        }
        let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        // SQLite's shared memory contains no data and is mapped. After a crash, the first process recreates it.
        let is_memory = path.to_string_lossy().contains("-shm");
        Some((self.node_of(&path).filter(|_| !is_memory)?, stat))
    }

    fn refusal(&self, node: usize) -> Option<c_int> {
        if self.dying == Some(node) { Some(libc::EIO) } else { self.errors[node] }
    }

    fn note(&mut self, node: usize, inode: u64, fd: c_int, change: Change) {
        let known = self.files.iter().position(|dirty| dirty.inode == inode);
        let at = known.unwrap_or_else(|| {
            // SAFETY: `fd` is open.
            let fd = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
            assert!(fd >= 0, "file descriptors: {}", std::io::Error::last_os_error());
            self.files.push(Dirty { inode, node, fd, changes: Vec::new() });
            self.files.len() - 1
        });
        self.files[at].changes.push(change);
    }
}

fn stat(path: &Path) -> Option<libc::stat> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut stat = unsafe { std::mem::zeroed::<libc::stat>() };
    // SAFETY: `stat` is writable, `path` ends with a zero.
    (unsafe { libc::stat(path.as_ptr(), &raw mut stat) } == 0).then_some(stat)
}

fn write_at(fd: c_int, bytes: &[u8], offset: u64) {
    if !bytes.is_empty() {
        // SAFETY: `bytes` is readable.
        unsafe { libc::syscall(libc::SYS_pwrite64, fd, bytes.as_ptr(), bytes.len(), offset) };
    }
}

fn set_length(fd: c_int, length: u64) {
    // SAFETY: no memory is involved.
    unsafe { libc::syscall(libc::SYS_ftruncate, fd, length) };
}

fn read_at(fd: c_int, length: usize, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    // SAFETY: `bytes` is writable.
    let read = |fd: c_int, bytes: &mut [u8]| unsafe {
        libc::syscall(libc::SYS_pread64, fd, bytes.as_mut_ptr(), bytes.len(), offset)
    };
    let mut count = read(fd, &mut bytes);
    if count < 0
        && let Ok(file) = std::fs::File::open(format!("/proc/self/fd/{fd}"))
    {
        // The file is open for writing only.
        count = read(file.as_raw_fd(), &mut bytes);
    }
    bytes.truncate(usize::try_from(count).unwrap_or(0));
    bytes
}

fn fail(error: c_int) -> isize {
    // SAFETY: errno is the thread's own.
    unsafe { *libc::__errno_location() = error };
    -1
}

/// Called before a write: rejects it, or keeps what it changes.
fn before_write(fd: c_int, bytes: &[u8], offset: Option<u64>) -> Result<(), c_int> {
    let noted = with(|disks| {
        let Some((node, stat)) = disks.file(fd) else { return Ok(()) };
        if let Some(error) = disks.refusal(node) {
            return Err(error);
        }
        // SAFETY: no memory is involved.
        let offset = offset.unwrap_or_else(|| unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) } as u64);
        let change = Change {
            offset,
            before: read_at(fd, bytes.len(), offset),
            after: Some(bytes.to_vec()),
            length_before: stat.st_size as u64,
        };
        disks.note(node, stat.st_ino, fd, change);
        Ok(())
    });
    noted.unwrap_or(Ok(()))
}

fn before_truncate(fd: c_int, length: u64) -> Result<(), c_int> {
    let noted = with(|disks| {
        let Some((node, stat)) = disks.file(fd) else { return Ok(()) };
        if let Some(error) = disks.refusal(node) {
            return Err(error);
        }
        let length_before = stat.st_size as u64;
        let before = match length_before.checked_sub(length) {
            Some(cut) if cut > 0 => read_at(fd, cut as usize, length),
            _ => Vec::new(),
        };
        let change = Change { offset: length, before, after: None, length_before };
        disks.note(node, stat.st_ino, fd, change);
        Ok(())
    });
    noted.unwrap_or(Ok(()))
}

/// Called for a flush: the writes become permanent.
fn flushed(fd: c_int) -> Result<(), c_int> {
    let result = with(|disks| {
        let Some((node, stat)) = disks.file(fd) else { return Ok(()) };
        if let Some(error) = disks.refusal(node) {
            return Err(error);
        }
        disks.files.retain(|dirty| dirty.inode != stat.st_ino);
        Ok(())
    });
    result.unwrap_or(Ok(()))
}

/// Whether a change of names has to be rejected because the node is dying.
fn of_the_dying(path: *const c_char) -> bool {
    with(|disks| {
        let Some(dying) = disks.dying else { return false };
        // SAFETY: a path that the caller hands to the C library ends with a zero.
        let path = unsafe { CStr::from_ptr(path) };
        disks.node_of(Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()))) == Some(dying)
    })
    .unwrap_or(false)
}

unsafe fn bytes_of<'a>(buffer: *const c_void, count: usize) -> &'a [u8] {
    if count == 0 {
        return &[];
    }
    // SAFETY: the caller guarantees that the buffer is readable.
    unsafe { std::slice::from_raw_parts(buffer.cast(), count) }
}

// The functions of the C library. Each passes on the calls that it does not reject. SAFETY, for all of them: the
// caller's guarantees are those of the C library's functions, and are passed on.

#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, buffer: *const c_void, count: usize) -> isize {
    // Standard streams do not belong to a node, and are written to from everywhere.
    if fd > 2
        && let Err(error) = before_write(fd, unsafe { bytes_of(buffer, count) }, None)
    {
        return fail(error);
    }
    unsafe { libc::syscall(libc::SYS_write, fd, buffer, count) as isize }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(fd: c_int, buffer: *const c_void, count: usize, offset: i64) -> isize {
    if let Err(error) = before_write(fd, unsafe { bytes_of(buffer, count) }, Some(offset as u64)) {
        return fail(error);
    }
    unsafe { libc::syscall(libc::SYS_pwrite64, fd, buffer, count, offset) as isize }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(fd: c_int, buffer: *const c_void, count: usize, offset: i64) -> isize {
    unsafe { pwrite64(fd, buffer, count, offset) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate64(fd: c_int, length: i64) -> c_int {
    if let Err(error) = before_truncate(fd, length as u64) {
        return fail(error) as c_int;
    }
    unsafe { libc::syscall(libc::SYS_ftruncate, fd, length) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate(fd: c_int, length: i64) -> c_int {
    unsafe { ftruncate64(fd, length) }
}

/// Memory file systems need no flush, so only the bookkeeping is done.
#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    match flushed(fd) {
        Ok(()) => 0,
        Err(error) => fail(error) as c_int,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    unsafe { fsync(fd) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    let changes = flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    if changes && of_the_dying(path) {
        return fail(libc::EIO) as c_int;
    }
    unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    unsafe { open64(path, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    if of_the_dying(path) {
        return fail(libc::EIO) as c_int;
    }
    unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    if of_the_dying(from) {
        return fail(libc::EIO) as c_int;
    }
    unsafe { libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) as c_int }
}
