//! A library that is loaded into a node and fails its disk or shifts its clock: `tests/faults/preload.c`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Node, links::Links};

/// The library, compiled. Its file is in the directory that it was made with.
pub struct Preload {
    library: PathBuf,
    dir: PathBuf,
}

/// What one node is made to suffer.
pub struct Faults {
    control: PathBuf,
}

impl Preload {
    /// Compiles the library into `dir`.
    pub fn compile(dir: &Path) -> Self {
        let library = dir.join("preload.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/preload.c");
        let output = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .output()
            .expect("the project needs a C compiler, and so does this test");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { library, dir: dir.to_owned() }
    }

    /// Loads it into a node from its next start on. `number` tells the proxies who calls.
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
    /// From now on these rules hold, and no others.
    pub fn set(&self, rules: &[&str]) {
        // The rules change at one moment: the library may read the file at any.
        let next = self.control.with_extension("next");
        fs::write(&next, rules.join("\n")).unwrap();
        fs::rename(&next, &self.control).unwrap();
    }

    pub fn heal(&self) {
        self.set(&[]);
    }
}
