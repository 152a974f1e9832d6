//! All rows of a state, to compare it with another one.

use std::path::Path;

use rusqlite::types::Value;
use storage::StateMachine;

/// Every row of every table, without the id of the last entry, which depends on the batching.
pub fn rows(dir: &Path) -> Vec<String> {
    // Which rows are recent depends on it, too.
    StateMachine::open(dir).and_then(|mut machine| machine.write_all_back()).expect("written");
    let conn = storage::open_file(&dir.join("chat.db")).expect("open");
    let mut tables = conn.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").expect("tables");
    let tables: Vec<String> =
        tables.query_map([], |row| row.get(0)).expect("tables").collect::<Result<_, _>>().expect("tables");
    assert!(tables.len() >= 9, "{tables:?}");
    let mut rows = Vec::new();
    for table in tables {
        let columns = if table == "state" { "membership, revision, clock_ms, digest, digest_since" } else { "*" };
        let mut statement = conn.prepare(&format!("SELECT {columns} FROM {table}")).expect("select");
        let count = statement.column_count();
        let read = |row: &rusqlite::Row<'_>| (0..count).map(|i| row.get(i)).collect::<Result<Vec<Value>, _>>();
        for row in statement.query_map([], read).expect("rows") {
            rows.push(format!("{table}: {:?}", row.expect("row")));
        }
    }
    rows.sort_unstable();
    rows
}
