//! Pages: written with checksums, changed behind SQLite's back, and files without checksums.

use std::{collections::BTreeMap, fs, process::Command};

use rusqlite::{Connection, params};

use super::{page::Page, *};
use crate::{
    db,
    sealing::{seal_file, unfinished},
};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % end
    }

    fn bytes(&mut self, count: u64) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}

fn create(path: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    open(path, flags, "open").expect("opened")
}

/// The first page of a sealed file that does not match its checksum.
fn damaged_page(bytes: &[u8]) -> Option<u32> {
    let (pages, rest) = bytes.as_chunks::<PAGE_BYTES>();
    assert!(rest.is_empty());
    pages.iter().zip(1..).find(|(page, number)| !is_valid(*number, page)).map(|(_, number)| number)
}

/// All rows of a file, including those that only an index provides.
fn content(path: &Path) -> Result<Vec<(i64, i64, Vec<u8>)>, StorageError> {
    let conn = open_file(path)?;
    let verdict: String = conn.query_row("PRAGMA quick_check", [], |row| row.get(0)).context("check")?;
    if verdict != "ok" {
        return Err(StorageError::Corrupt(verdict));
    }
    let mut all = Vec::new();
    for sql in [
        "SELECT id, number, body FROM item ORDER BY id",
        "SELECT id, number, x'' FROM item INDEXED BY item_number ORDER BY number",
        "SELECT key, 0, value FROM pair ORDER BY key",
    ] {
        let mut statement = conn.prepare(sql).context("prepare")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).context("read")?;
        all.extend(rows.collect::<rusqlite::Result<Vec<_>>>().context("read")?);
    }
    Ok(all)
}

/// Creates a file with every kind of page: inner and leaf pages of tables and indexes, overflow pages, free pages.
fn every_kind(path: &Path) {
    let mut random = Random(7);
    let conn = create(path);
    conn.execute_batch(
        "CREATE TABLE item (id INTEGER PRIMARY KEY, number INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
         CREATE INDEX item_number ON item (number);
         CREATE TABLE pair (key INTEGER PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
         BEGIN",
    )
    .expect("tables");
    for id in 0..900 {
        let length = if id % 60 == 0 { 9000 } else { 200 };
        let row = params![id, random.below(1 << 40) as i64, random.bytes(length)];
        conn.execute("INSERT INTO item VALUES (?1, ?2, ?3)", row).expect("inserted");
        conn.execute("INSERT INTO pair VALUES (?1, ?2)", params![id, random.bytes(60)]).expect("inserted");
    }
    conn.execute_batch("COMMIT; DELETE FROM item WHERE id BETWEEN 100 AND 500").expect("deleted");
}

/// The kind of a page, by its first byte. Overflow and free pages are distinguished by the pages that they point to.
fn name(page: &Page) -> &'static str {
    match page[0] {
        b'S' => "first",
        2 => "index, inner",
        5 => "table, inner",
        10 => "index, outer",
        13 => "table, outer",
        _ => "long value or free",
    }
}

#[test]
fn no_flipped_bit_is_ever_read() {
    let seed = getrandom::u64().expect("random");
    println!("seed {seed}");
    let mut random = Random(seed);
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("file");
    every_kind(&path);
    let (expected, bytes) = (content(&path).expect("sound"), fs::read(&path).expect("read"));
    assert!(damaged_page(&bytes).is_none() && bytes.len() > 100 * PAGE_BYTES);
    let file = File::options().write(true).open(&path).expect("open");
    let mut found = BTreeMap::<_, u32>::new();
    // Every bit of the header, and random bits elsewhere.
    let header = 0..100 * 8;
    for bit in header.chain((0..3000).map(|_| random.below(bytes.len() as u64 * 8))) {
        let at = (bit / 8) as usize;
        file.write_all_at(&[bytes[at] ^ (1 << (bit % 8))], at as u64).expect("flipped");
        let number = (at / PAGE_BYTES) as u32 + 1;
        assert_eq!(damaged_page(&fs::read(&path).expect("read")), Some(number));
        match content(&path) {
            // The changed page is empty.
            Ok(read) => assert!(read == expected, "bit {bit}, seed {seed}"),
            Err(error) => {
                assert!(error.is_corruption(), "bit {bit}, seed {seed}: {error}");
                let page = bytes[at - at % PAGE_BYTES..][..PAGE_BYTES].try_into().expect("a page");
                *found.entry(name(page)).or_default() += 1;
            }
        }
        file.write_all_at(&bytes[at..=at], at as u64).expect("flipped back");
    }
    assert!(content(&path).expect("sound") == expected);
    assert!(found.len() == 6 && found["first"] >= 800, "{found:?}");
}

#[test]
fn pages_that_were_exchanged_zeroed_or_cut_off_are_found() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("file");
    every_kind(&path);
    let bytes = fs::read(&path).expect("read");
    let pages = bytes.len() / PAGE_BYTES;
    let page = |number: usize| number * PAGE_BYTES..(number + 1) * PAGE_BYTES;
    let expected = content(&path).expect("sound");
    // Returns `false` if the changed page is empty.
    let refused = |changed: &[u8]| {
        fs::write(&path, changed).expect("written");
        match content(&path) {
            Ok(read) => {
                assert!(read == expected);
                false
            }
            Err(error) => {
                assert!(error.is_corruption(), "{error}");
                true
            }
        }
    };
    let used: Vec<usize> = (1..pages).filter(|&at| matches!(bytes[page(at)][0], 2 | 5 | 10 | 13)).collect();
    let mut found = 0;
    for pair in used.chunks_exact(2).take(40) {
        let mut changed = bytes.clone();
        changed[page(pair[0])].copy_from_slice(&bytes[page(pair[1])]);
        found += u32::from(refused(&changed));
        changed[page(pair[0])].fill(0);
        found += u32::from(refused(&changed));
    }
    assert!(found >= 40, "{found}");
    assert!(refused(&bytes[..bytes.len() / 2]));
    assert!(refused(&bytes[..PAGE_BYTES + 100]));
}

/// Reads return the written data in any order, size and journal mode, and with a cache that is too small for it.
#[test]
fn what_is_written_is_never_taken_for_damage() {
    let seed = getrandom::u64().expect("random");
    println!("seed {seed}");
    let mut random = Random(seed);
    for mode in ["WAL", "DELETE"] {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("file");
        let mut expected = BTreeMap::<i64, Vec<u8>>::new();
        let setup = format!("PRAGMA journal_mode = {mode}; PRAGMA cache_size = 10; PRAGMA synchronous = OFF");
        let reopen = || {
            let conn = create(&path);
            conn.execute_batch(&setup).expect("set up");
            conn
        };
        let mut conn = reopen();
        conn.execute_batch("CREATE TABLE item (id INTEGER PRIMARY KEY, body BLOB)").expect("table");
        for _ in 0..150 {
            let kept = expected.clone();
            let transaction = conn.transaction().expect("begun");
            for _ in 0..random.below(60) {
                let id = random.below(300) as i64;
                if random.below(3) == 0 {
                    transaction.execute("DELETE FROM item WHERE id = ?1", [id]).expect("deleted");
                    expected.remove(&id);
                } else {
                    let length = [20, 300, 5000, 40_000][random.below(4) as usize];
                    let body = random.bytes(length);
                    transaction.execute("REPLACE INTO item VALUES (?1, ?2)", params![id, body]).expect("replaced");
                    expected.insert(id, body);
                }
            }
            if random.below(4) == 0 {
                transaction.rollback().expect("rolled back");
                expected = kept;
            } else {
                transaction.commit().expect("committed");
            }
            match random.below(8) {
                0 if mode == "WAL" => drop(conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))),
                1 => conn.execute_batch("PRAGMA secure_delete = ON").expect("set"),
                2 => conn.execute_batch("VACUUM").expect("vacuum"),
                3 => {
                    drop(conn);
                    conn = reopen();
                }
                _ => {}
            }
            let reader = open_file(&path).expect("open");
            let mut statement = reader.prepare("SELECT id, body FROM item").expect("prepare");
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("read");
            let read: BTreeMap<i64, Vec<u8>> = rows.collect::<rusqlite::Result<_>>().expect("nothing is damaged");
            assert!(read == expected, "seed {seed}");
        }
        let copy = dir.path().join("copy");
        conn.execute("VACUUM INTO ?1", [copy.to_str().expect("a path")]).expect("copied");
        drop(conn);
        assert!(sealed(&copy));
        assert_eq!(damaged_page(&fs::read(&copy).expect("read")), None);
    }
}

fn sealed(path: &Path) -> bool {
    is_sealed(&open_file(path).expect("open")).expect("known")
}

/// A file as earlier versions wrote it, with its latest changes in the write-ahead log.
fn plain(path: &Path) -> Connection {
    let conn = Connection::open(path).expect("open");
    db::keep_wal(&conn).expect("set");
    conn.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE item (id INTEGER PRIMARY KEY, body BLOB)")
        .expect("made");
    for id in 0..100 {
        conn.execute("INSERT INTO item VALUES (?1, zeroblob(1000))", [id]).expect("inserted");
    }
    conn
}

fn rows(path: &Path) -> i64 {
    open_file(path).expect("open").query_row("SELECT count(*) FROM item", [], |row| row.get(0)).expect("counted")
}

#[test]
fn a_file_without_checksums_gets_them() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("file.db");
    let conn = plain(&path);
    assert_eq!((sealed(&path), rows(&path)), (false, 100));
    assert!(seal_pages(&path).is_err(), "there is no space for them");
    let reading = Connection::open(&path).expect("open");
    reading.execute_batch("BEGIN; SELECT * FROM item").expect("begun");
    conn.execute("INSERT INTO item VALUES (100, x'')", []).expect("inserted");
    let error = seal_file(&path, None).expect_err("it is in use");
    assert!(!error.is_corruption(), "{error}");
    drop((conn, reading));
    // As an interrupted earlier run leaves the copy.
    fs::write(unfinished(&path), b"half").expect("written");
    assert!(seal_file(&path, Some(5)).expect("sealed"));
    assert_eq!((sealed(&path), rows(&path)), (true, 101));
    assert_eq!(damaged_page(&fs::read(&path).expect("read")), None);
    assert!(!unfinished(&path).exists());
    let format = |conn: &Connection| conn.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0));
    assert_eq!(format(&open_file(&path).expect("open")).expect("read"), 5);
}

#[test]
fn a_page_that_another_program_has_written_is_damage_until_it_is_sealed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("file");
    every_kind(&path);
    let other = Connection::open(&path).expect("open");
    assert_eq!(other.execute("UPDATE item SET number = 5 WHERE id = 1", []).expect("changed"), 1);
    drop(other);
    let error = content(&path).expect_err("changed");
    assert!(error.is_corruption(), "{error}");
    seal_pages(&path).expect("sealed");
    assert!(content(&path).expect("sound").contains(&(1, 5, Vec::new())));
}

#[test]
fn the_error_names_the_page() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("file");
    every_kind(&path);
    let mut bytes = fs::read(&path).expect("read");
    bytes[2 * PAGE_BYTES + 1000] ^= 1;
    fs::write(&path, bytes).expect("written");
    let conn = open_file(&path).expect("open");
    let error = check(&conn, "quick_check", Path::new("chat.db")).expect_err("damaged");
    assert_eq!(error.to_string(), "the database is damaged: chat.db: page 3 does not match its checksum");
    let sql = "SELECT sum(number) FROM item INDEXED BY item_number";
    let error = conn.query_row(sql, [], |_| Ok(())).context("read it").expect_err("damaged");
    assert_eq!(error.to_string(), "the database is damaged: read it: page 3 does not match its checksum");
}

/// A process that reads and closes a file would remove the write-ahead log if no other process held a lock.
const VISITOR: &str = "import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(connection.execute('SELECT count(*) FROM item').fetchone()[0])
connection.close()
";

#[test]
fn a_connection_takes_no_locks_of_others_away() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("file");
    let conn = create(&path);
    conn.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE item (id INTEGER PRIMARY KEY)").expect("made");
    conn.execute("INSERT INTO item VALUES (1)", []).expect("inserted");
    let wal = dir.path().join("file-wal");
    let bytes = fs::metadata(&wal).expect("there").len();
    // As snapshots, backups and checks do while the node runs.
    assert_eq!(rows(&path), 1);
    let visit = Command::new("python3").args(["-c", VISITOR]).arg(&path).output().expect("python3 runs");
    assert_eq!(visit.stdout, b"1\n", "{visit:?}");
    assert_eq!(fs::metadata(&wal).expect("it is still there").len(), bytes);
    drop(conn);
    assert_eq!(damaged_page(&fs::read(&path).expect("read")), None);
}

#[test]
fn the_page_that_is_never_used_may_be_a_gap() {
    let mut page = [0; PAGE_BYTES];
    assert!(is_valid(page::LOCK_PAGE, &page) && !is_valid(page::LOCK_PAGE - 1, &page));
    page[7] = 1;
    assert!(!is_valid(page::LOCK_PAGE, &page));
}
