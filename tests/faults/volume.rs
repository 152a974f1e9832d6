//! A small volume of its own for a node's data, where the test may mount one.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A mounted tmpfs. Unmounted when it is dropped.
pub struct Volume {
    path: PathBuf,
}

fn run(words: &[&str], path: &Path) -> Result<(), String> {
    let output = Command::new(words[0]).args(&words[1..]).arg(path).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    output.status.success().then_some(()).ok_or(said)
}

impl Volume {
    /// Mounts a volume of so many MiB at `path`. The error says why that is not possible here.
    pub fn mount(path: &Path, mib: u32) -> Result<Self, String> {
        fs::create_dir_all(path).unwrap();
        run(&["mount", "-t", "tmpfs", "-o", &format!("size={mib}m"), "none"], path)?;
        Ok(Self { path: path.to_owned() })
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).unwrap();
        // Ever smaller pieces, so that not a page is left.
        for size in [1 << 20, 4096] {
            let piece = vec![7; size];
            while file.write_all(&piece).is_ok() {}
        }
    }

    /// Gives the space back.
    pub fn make_room(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    /// Remounts it read-only or writable. Only while nobody has a file open for writing.
    pub fn read_only(&self, yes: bool) {
        let mode = if yes { "remount,ro" } else { "remount,rw" };
        run(&["mount", "-o", mode], &self.path).unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // The nodes are gone, or are about to be killed: it goes with the last of them.
        if let Err(why) = run(&["umount", "--lazy"], &self.path) {
            eprintln!("{} stays mounted: {why}", self.path.display());
        }
    }
}
