//! Access to the files of a node: only the node's own user may read them, regardless of the umask.
//!
//! Invariants: every file that a node creates has mode 0600 from the beginning, and every directory 0700. [`narrow`]
//! applies the same modes to files of an earlier version or another program. It rejects files of another user, because
//! their owner could read them and change their mode.
//!
//! Does not cover: the directory above the data directory, and a volume whose root belongs to another user (a
//! Kubernetes volume with an `fsGroup`). The mode of such a root is not changed, but the files in it are private.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::error::StorageError;

const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// Write permission for users other than the owner and the group. Entering or listing a directory of private files
/// reveals no more than their names, and volumes with `fsGroup` have mode 2775.
const WRITABLE_BY_OTHERS: u32 = 0o002;
/// Depth of the deepest path, `aside/<time>/snapshots/<file>`.
const DEPTH_MAX: usize = 4;

/// Creates a file, or truncates an existing one.
pub fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(path)
}

/// Opens a file without changing its content, and creates it if it is missing.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(path)
}

/// Creates a directory.
pub fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(DIRECTORY_MODE).create(path)
}

/// Creates a directory and its missing parents.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
}

/// Removes all access to a file, socket or directory, except for its owner.
pub fn restrict(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    fs::set_permissions(path, Permissions::from_mode(wanted(&metadata)))
}

/// Files and directories that were accessible to other users and have been restricted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Narrowed {
    /// Number of files and directories that were restricted.
    pub count: usize,
    /// The first of them, and its previous mode.
    pub first: Option<(PathBuf, u32)>,
    /// The mode of a data directory that belongs to another user and that every user can write to.
    pub writable_by_others: Option<u32>,
}

impl Narrowed {
    fn note(&mut self, path: &Path, mode: u32) {
        self.count += 1;
        self.first.get_or_insert_with(|| (path.to_owned(), mode));
    }
}

/// Restricts a data directory and all files of a node in it to their owner.
///
/// # Errors
/// [`StorageError::Exposed`]: a file belongs to another user, or is accessible to others and cannot be restricted.
/// Otherwise, a file operation failed.
pub fn narrow(dir: &Path) -> Result<Narrowed, StorageError> {
    let mut narrowed = Narrowed::default();
    let metadata = fs::metadata(dir).map_err(StorageError::io("look at", dir))?;
    let mode = metadata.mode() & 0o7777;
    if is_ours(&metadata) {
        narrow_one(dir, &metadata, &mut narrowed)?;
    } else if mode & WRITABLE_BY_OTHERS != 0 {
        narrowed.writable_by_others = Some(mode);
    }
    for path in list(dir)? {
        if path.file_name().and_then(|name| name.to_str()).is_some_and(is_of_a_node) {
            narrow_below(&path, DEPTH_MAX, &mut narrowed)?;
        }
    }
    Ok(narrowed)
}

/// Whether a node creates a file or directory of this name in its data directory. Other items there belong to other
/// programs.
fn is_of_a_node(name: &str) -> bool {
    const NAMES: [&str; 7] = ["lock", "doubt", "running", "reserve", "aside", "snapshots", "admin.sock"];
    const BEGINNINGS: [&str; 3] = ["log.db", "chat.db", "new-cluster."];
    NAMES.contains(&name) || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

fn narrow_below(path: &Path, depth: usize, narrowed: &mut Narrowed) -> Result<(), StorageError> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        // A link without a target.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StorageError::io("look at", path)(error)),
    };
    if !is_ours(&metadata) {
        let own = rustix::process::geteuid().as_raw();
        let problem = format!("it belongs to the user {}, and this process runs as {own}", metadata.uid());
        return Err(StorageError::Exposed { path: path.to_owned(), problem });
    }
    narrow_one(path, &metadata, narrowed)?;
    if metadata.is_dir() && depth > 0 {
        for path in list(path)? {
            narrow_below(&path, depth - 1, narrowed)?;
        }
    }
    Ok(())
}

fn narrow_one(path: &Path, metadata: &Metadata, narrowed: &mut Narrowed) -> Result<(), StorageError> {
    let (mode, wanted) = (metadata.mode() & 0o7777, wanted(metadata));
    if mode & !wanted & 0o777 == 0 {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(wanted)).map_err(|error| StorageError::Exposed {
        path: path.to_owned(),
        problem: format!("it is open to others (mode {mode:04o}), which cannot be changed: {error}"),
    })?;
    narrowed.note(path, mode);
    Ok(())
}

fn wanted(metadata: &Metadata) -> u32 {
    if metadata.is_dir() { DIRECTORY_MODE } else { FILE_MODE }
}

/// Root may change the mode of files of any user.
fn is_ours(metadata: &Metadata) -> bool {
    let own = rustix::process::geteuid();
    own.is_root() || own.as_raw() == metadata.uid()
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let items = fs::read_dir(dir).and_then(|items| items.map(|item| Ok(item?.path())).collect::<io::Result<Vec<_>>>());
    items.map_err(StorageError::io("list", dir))
}

/// Removes a file, if it exists.
pub(super) fn remove(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StorageError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn what_is_wider_is_narrowed_once_and_foreign_names_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let aside = dir.path().join("aside/000-0/snapshots");
        create_dir_all(&aside).unwrap();
        let files =
            ["log.db", "chat.db-wal", "reserve", "aside/000-0/log.db", "aside/000-0/snapshots/x.snapshot", "letter"];
        for name in files {
            fs::write(dir.path().join(name), "x").unwrap();
            fs::set_permissions(dir.path().join(name), Permissions::from_mode(0o664)).unwrap();
        }
        fs::set_permissions(&aside, Permissions::from_mode(0o2775)).unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let narrowed = narrow(dir.path()).unwrap();
        assert_eq!((narrowed.count, narrowed.first), (7, Some((dir.path().to_owned(), 0o755))));
        assert_eq!((mode(dir.path()), mode(&aside)), (0o700, 0o700));
        for name in files {
            assert_eq!(mode(&dir.path().join(name)), if name == "letter" { 0o664 } else { 0o600 }, "{name}");
        }
        assert_eq!(narrow(dir.path()).unwrap(), Narrowed::default());
    }

    #[test]
    fn what_a_node_makes_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        create_dir_all(&data).unwrap();
        drop(create_file(&data.join("log.db")).unwrap());
        drop(open_or_create(&data.join("chat.db")).unwrap());
        assert_eq!(narrow(&data).unwrap(), Narrowed::default());
        assert_eq!((mode(&data), mode(&data.join("log.db")), mode(&data.join("chat.db"))), (0o700, 0o600, 0o600));
    }
}
