//! How a database file is damaged: bytes of it, pages of it, or what stands in its rows.

use std::path::Path;

use arbitrary::Arbitrary;
use rusqlite::{Connection, types::Value};
use storage::open_file;

const PAGE: usize = 4096;
/// More would only make each run longer.
const EDITS_MAX: usize = 8;

/// One change.
#[derive(Debug, Clone, Arbitrary)]
pub enum Edit {
    /// Bytes are other ones.
    Bytes { at: u32, mask: [u8; 4] },
    /// The rest of the file is gone.
    Truncate { page: u8, rest: u16 },
    /// A page is empty, as after a lost write.
    Zero { page: u8 },
    /// A page is where another one belongs.
    Copy { from: u8, to: u8 },
    /// A row says something else, and SQLite has nothing against it.
    Cell { table: u8, row: u8, column: u8, value: Cell },
    /// A row is gone.
    Remove { table: u8, row: u8 },
}

/// What a row says instead.
#[derive(Debug, Clone, Arbitrary)]
pub enum Cell {
    Number(i64),
    Small(u8),
    /// The number that stands there, and this.
    Plus(i8),
    Bytes(Vec<u8>),
    Text(String),
    Nothing,
}

/// Damages a file's bytes.
pub fn damage(bytes: &mut Vec<u8>, edits: &[Edit]) {
    for edit in edits.iter().take(EDITS_MAX) {
        let pages = bytes.len() / PAGE;
        if pages == 0 {
            return;
        }
        let page = |number: u8| usize::from(number) % pages * PAGE;
        match *edit {
            Edit::Bytes { at, mask } => {
                let at = at as usize % bytes.len();
                bytes[at..].iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
            }
            Edit::Truncate { page: at, rest } => bytes.truncate(page(at) + usize::from(rest) % PAGE),
            Edit::Zero { page: at } => bytes[page(at)..][..PAGE].fill(0),
            Edit::Copy { from, to } => bytes.copy_within(page(from)..page(from) + PAGE, page(to)),
            Edit::Cell { .. } | Edit::Remove { .. } => {}
        }
    }
}

/// Changes rows of a file, past all that could object. Files and changes that SQLite does not take stay as they are.
pub fn rewrite(path: &Path, edits: &[Edit]) {
    let is_row = |edit: &&Edit| matches!(edit, Edit::Cell { .. } | Edit::Remove { .. });
    if !edits.iter().take(EDITS_MAX).any(|edit| is_row(&edit)) {
        return;
    }
    let Ok(conn) = open_file(path) else { return };
    let _ = conn
        .execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY; PRAGMA ignore_check_constraints = ON");
    for edit in edits.iter().take(EDITS_MAX).filter(is_row) {
        let _ = change(&conn, edit);
    }
    // As the node closes it, so that nothing is left in a log beside the file.
    let _ = conn.execute_batch("PRAGMA journal_mode = DELETE; PRAGMA journal_mode = WAL");
}

fn change(conn: &Connection, edit: &Edit) -> rusqlite::Result<()> {
    let (Edit::Cell { table, row, .. } | Edit::Remove { table, row }) = edit else { return Ok(()) };
    let names = texts(conn, "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name", 0)?;
    let Some(table) = pick(&names, *table) else { return Ok(()) };
    // Tables without a rowid have their key in front.
    let keys = texts(conn, &format!("SELECT name FROM pragma_table_info('{table}') WHERE pk > 0"), 0)?.join(", ");
    let count: i64 = conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |found| found.get(0))?;
    if count == 0 {
        return Ok(());
    }
    let at = i64::from(*row) % count;
    let which = format!("({keys}) IN (SELECT {keys} FROM {table} ORDER BY {keys} LIMIT 1 OFFSET {at})");
    match edit {
        Edit::Cell { column, value, .. } => {
            let columns = texts(conn, &format!("SELECT name FROM pragma_table_info('{table}')"), 0)?;
            let Some(column) = pick(&columns, *column) else { return Ok(()) };
            let (expression, value) = match value {
                Cell::Number(number) => ("?1".to_owned(), Value::Integer(*number)),
                Cell::Small(number) => ("?1".to_owned(), Value::Integer((*number).into())),
                Cell::Plus(number) => (format!("{column} + ?1"), Value::Integer((*number).into())),
                Cell::Bytes(bytes) => ("?1".to_owned(), Value::Blob(bytes.clone())),
                Cell::Text(text) => ("?1".to_owned(), Value::Text(text.clone())),
                Cell::Nothing => ("?1".to_owned(), Value::Null),
            };
            conn.execute(&format!("UPDATE {table} SET {column} = {expression} WHERE {which}"), [value])?;
        }
        _ => {
            conn.execute(&format!("DELETE FROM {table} WHERE {which}"), [])?;
        }
    }
    Ok(())
}

fn texts(conn: &Connection, sql: &str, column: usize) -> rusqlite::Result<Vec<String>> {
    conn.prepare(sql)?.query_map([], |row| row.get(column))?.collect()
}

fn pick(names: &[String], number: u8) -> Option<&String> {
    names.get(usize::from(number) % names.len().max(1))
}
