//! The volume of a data directory, and the reserve file on it.
//!
//! A start on a full volume removes the reserve file, which frees the space that the start needs.
//!
//! Does not cover: what follows from the free space (`space`).

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use rustix::io::Errno;

use storage::private;

/// Name of the reserve file in the data directory.
pub(super) const RESERVE_FILE: &str = "reserve";
/// Largest size of the reserve file in bytes.
const RESERVE_FILE_BYTES_MAX: u64 = 4 << 20;
/// The reserve file is at most one part in this many of the volume.
const RESERVE_FILE_PART: u64 = 64;

/// Free and total bytes of a volume.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Volume {
    pub free: u64,
    pub total: u64,
}

impl Volume {
    /// Reads the figures of the volume of `dir`.
    pub(crate) fn of(dir: &Path) -> io::Result<Self> {
        let volume = rustix::fs::statvfs(dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(volume.f_frsize);
        if volume.f_blocks == 0 {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the file system does not say how large it is"));
        }
        Ok(Self { free: bytes(volume.f_bavail), total: bytes(volume.f_blocks) })
    }

    /// Size of the reserve file on this volume.
    pub(crate) fn reserve_file_bytes(self) -> u64 {
        (self.total / RESERVE_FILE_PART).min(RESERVE_FILE_BYTES_MAX)
    }

    /// Whether so little space is free that any write may fail.
    pub(crate) fn is_critical(self) -> bool {
        self.free < self.reserve_file_bytes() / 2
    }

    /// Whether there is space for the reserve file and for the writes while it is created.
    pub(crate) fn fits_reserve_file(self) -> bool {
        self.free >= 2 * self.reserve_file_bytes()
    }
}

/// Removes the reserve file if there is too little space to start. Returns whether it was removed.
///
/// # Errors
/// The volume cannot be checked, or the file cannot be removed.
pub fn give_up_reserve_file(dir: &Path) -> io::Result<bool> {
    let path = dir.join(RESERVE_FILE);
    if !Volume::of(dir)?.is_critical() || !path.exists() {
        return Ok(false);
    }
    fs::remove_file(path)?;
    Ok(true)
}

/// Whether the reserve file exists in its full size.
pub(crate) fn has_reserve_file(dir: &Path, volume: Volume) -> bool {
    fs::metadata(dir.join(RESERVE_FILE)).is_ok_and(|metadata| metadata.len() >= volume.reserve_file_bytes())
}

/// Creates the reserve file.
pub(crate) fn make_reserve_file(dir: &Path, volume: Volume) -> io::Result<()> {
    let (path, length) = (dir.join(RESERVE_FILE), volume.reserve_file_bytes());
    let mut file = private::create_file(&path)?;
    let filled = match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => fill(&mut file, length),
        other => other.map_err(io::Error::from),
    };
    filled.inspect_err(|_| drop(fs::remove_file(&path)))
}

/// Writes the file, for file systems that cannot reserve space.
fn fill(file: &mut fs::File, length: u64) -> io::Result<()> {
    let piece = vec![0; 1 << 16];
    for _ in 0..length / piece.len() as u64 {
        file.write_all(&piece)?;
    }
    file.set_len(length)
}
