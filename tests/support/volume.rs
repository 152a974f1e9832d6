//! A small separate volume for a node's data, where the test is allowed to mount one.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A mounted tmpfs, which is unmounted on drop.
pub struct Volume {
    path: PathBuf,
}

fn run(words: &[&str], path: &Path) -> Result<(), String> {
    let output = Command::new(words[0]).args(&words[1..]).arg(path).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    output.status.success().then_some(()).ok_or(said)
}

impl Volume {
    /// Mounts a volume of `mib` MiB at `path`. The error is the reason why that is not possible here.
    pub fn mount(path: &Path, mib: u32) -> Result<Self, String> {
        fs::create_dir_all(path).unwrap();
        run(&["mount", "-t", "tmpfs", "-o", &format!("size={mib}m"), "none"], path)?;
        Ok(Self { path: path.to_owned() })
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Uses up all remaining space.
    pub fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).unwrap();
        // In decreasing sizes, so that no page remains.
        for size in [1 << 20, 4096] {
            let piece = vec![7; size];
            while file.write_all(&piece).is_ok() {}
        }
    }

    /// Frees the space again.
    pub fn make_room(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    /// Remounts the volume read-only or writable. No file on it may be open for writing.
    pub fn read_only(&self, yes: bool) {
        let mode = if yes { "remount,ro" } else { "remount,rw" };
        run(&["mount", "-o", mode], &self.path).unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // The nodes are gone or about to be killed. A lazy unmount completes with the last of them.
        if let Err(why) = run(&["umount", "--lazy"], &self.path) {
            eprintln!("{} stays mounted: {why}", self.path.display());
        }
    }
}
