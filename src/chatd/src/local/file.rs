//! `<data>/cluster.json`: the nodes, their addresses, and the process that ran each of them last.
//!
//! The file is replaced by renaming, so readers see the old or the new version and never a part. A lock on a separate
//! file serializes writers. A `pid` is that of the last start; the process may be gone.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::LocalError;

const NAME: &str = "cluster.json";

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ClusterFile {
    pub nodes: Vec<NodeRecord>,
}

/// One node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    pub name: String,
    pub pid: u32,
    pub grpc: SocketAddr,
    pub peer: SocketAddr,
    pub web: SocketAddr,
    pub metrics: SocketAddr,
}

/// Reads the file; `None` when it does not exist.
pub(super) fn read(data: &Path) -> Result<Option<ClusterFile>, LocalError> {
    let path = data.join(NAME);
    let failed = || LocalError::io(format!("{} cannot be read", path.display()));
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(failed())?,
    };
    let file: ClusterFile = serde_json::from_str(&text).map_err(|error| failed()(error.into()))?;
    if file.nodes.is_empty() {
        return Err(failed()(io::Error::new(io::ErrorKind::InvalidData, "it has no nodes")));
    }
    Ok(Some(file))
}

/// Replaces the file.
pub(super) fn write(data: &Path, file: &ClusterFile) -> Result<(), LocalError> {
    locked(data, || replace(data, file))
}

/// Records that process `pid` now runs node `name`.
pub(super) fn update_pid(data: &Path, name: &str, pid: u32) -> Result<(), LocalError> {
    locked(data, || {
        let Some(mut file) = read(data).map_err(io::Error::other)? else { return Ok(()) };
        for node in file.nodes.iter_mut().filter(|node| node.name == name) {
            node.pid = pid;
        }
        replace(data, &file)
    })
}

fn locked(data: &Path, change: impl FnOnce() -> io::Result<()>) -> Result<(), LocalError> {
    let lock = || {
        let lock = File::create(data.join(".cluster.json.lock"))?;
        lock.lock()?;
        change()
    };
    lock().map_err(LocalError::io(format!("{} cannot be written", data.join(NAME).display())))
}

fn replace(data: &Path, file: &ClusterFile) -> io::Result<()> {
    let temporary = data.join(".cluster.json.tmp");
    let mut text = serde_json::to_string_pretty(file)?;
    text.push('\n');
    let mut written = File::create(&temporary)?;
    written.write_all(text.as_bytes())?;
    written.sync_all()?;
    fs::rename(&temporary, data.join(NAME))?;
    File::open(data)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, pid: u32, port: u16) -> NodeRecord {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        NodeRecord {
            name: name.into(),
            pid,
            grpc: at(port),
            peer: at(port + 1),
            web: at(port + 2),
            metrics: at(port + 3),
        }
    }

    #[test]
    fn what_is_written_has_the_documented_form_and_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let file = ClusterFile { nodes: vec![node("n1", 7, 100), node("n2", 8, 200)] };
        write(dir.path(), &file).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(file));
        let json: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(dir.path().join("cluster.json")).unwrap()).unwrap();
        assert_eq!(
            json["nodes"][0],
            serde_json::json!({
                "name": "n1", "pid": 7, "grpc": "127.0.0.1:100", "peer": "127.0.0.1:101",
                "web": "127.0.0.1:102", "metrics": "127.0.0.1:103"
            })
        );
        assert!(!dir.path().join(".cluster.json.tmp").exists());
    }

    #[test]
    fn a_restart_changes_one_pid() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &ClusterFile { nodes: vec![node("n1", 7, 100), node("n2", 8, 200)] }).unwrap();
        update_pid(dir.path(), "n2", 99).unwrap();
        let nodes = read(dir.path()).unwrap().unwrap().nodes;
        assert_eq!(nodes, [node("n1", 7, 100), node("n2", 99, 200)]);
    }

    #[test]
    fn writers_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..8).map(|i| format!("n{i}")).collect();
        let nodes = names.iter().map(|name| node(name, 0, 100)).collect();
        write(dir.path(), &ClusterFile { nodes }).unwrap();
        std::thread::scope(|scope| {
            for name in &names {
                scope.spawn(|| update_pid(dir.path(), name, 5).unwrap());
            }
        });
        assert!(read(dir.path()).unwrap().unwrap().nodes.iter().all(|node| node.pid == 5));
    }

    #[test]
    fn a_broken_file_is_an_error_and_not_an_empty_cluster() {
        let dir = tempfile::tempdir().unwrap();
        for broken in ["", "{", "{\"nodes\":[]}", "{\"nodes\":[{\"name\":\"n1\"}]}"] {
            fs::write(dir.path().join("cluster.json"), broken).unwrap();
            assert!(read(dir.path()).is_err(), "{broken}");
        }
    }
}
