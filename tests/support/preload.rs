//! A library that is loaded into a node and injects disk faults or clock errors: `tests/faults/preload.c`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Node, links::Links};

/// The compiled library, in the directory that was passed to `compile`.
pub struct Preload {
    library: PathBuf,
    dir: PathBuf,
}

/// The faults of one node.
pub struct Faults {
    control: PathBuf,
}

impl Preload {
    /// Compiles the library into `dir`.
    pub fn compile(dir: &Path) -> Self {
        let library = dir.join("preload.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("faults/preload.c");
        let output = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .output()
            .expect("the project needs a C compiler, and so does this test");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { library, dir: dir.to_owned() }
    }

    /// Loads the library into a node from its next start on. `number` identifies the node to the proxies.
    pub fn load_into(&self, node: &mut Node, number: usize) -> Faults {
        let control = self.dir.join(format!("{}.faults", node.name));
        node.set("LD_PRELOAD", self.library.display().to_string())
            .set("FAULTS_CONTROL", control.display().to_string())
            .set("FAULTS_SOURCE", Links::source(number).to_string());
        let faults = Faults { control };
        faults.heal();
        faults
    }
}

impl Faults {
    /// Replaces all rules by these.
    pub fn set(&self, rules: &[&str]) {
        // Replaced atomically, because the library may read the file at any time.
        let next = self.control.with_extension("next");
        fs::write(&next, rules.join("\n")).unwrap();
        fs::rename(&next, &self.control).unwrap();
    }

    pub fn heal(&self) {
        self.set(&[]);
    }
}
