//! Records on disk (SQLite), so that a daemon that was killed finds its sandboxes again.
//!
//! Sandboxes and groups each have a table, a record as JSON in each row: what is asked of it is one record or all of them. Each write is whole or not there. A file that cannot be read is an
//! error that names it, never an empty store.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use apex_api::v1::CreateRequest;
use rusqlite::{Connection, OptionalExtension, params};

use crate::group::{Asked, State};
use crate::record::Record;

/// Number of the last of the migrations.
const VERSION: i64 = 3;

/// The open file.
pub struct Store {
    connection: Mutex<Connection>,
    path: PathBuf,
}

impl Store {
    /// Opens it, made and migrated as needed.
    pub fn open(path: &Path) -> Result<Store> {
        let open = || -> Result<Connection> {
            let connection = Connection::open(path)?;
            // Survives the death of the process whole; a loss of power may take the last moments, as it takes the sandboxes.
            connection
                .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000;")?;
            let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            if version > VERSION {
                bail!("it was written by a newer apexd (version {version}, this one knows {VERSION})");
            }
            if version < 1 {
                connection.execute_batch(
                    "BEGIN; CREATE TABLE sandbox (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT; PRAGMA user_version = 1; COMMIT;",
                )?;
            }
            if version < 2 {
                // What was asked for is written once, what became of it with each change.
                connection.execute_batch(
                    "BEGIN; CREATE TABLE supervised (name TEXT PRIMARY KEY, asked TEXT NOT NULL, state TEXT NOT NULL) STRICT; PRAGMA user_version = 2; COMMIT;",
                )?;
            }
            if version < 3 {
                // What a sandbox was made from, which is written once.
                connection.execute_batch(
                    "BEGIN; ALTER TABLE sandbox ADD COLUMN request TEXT; PRAGMA user_version = 3; COMMIT;",
                )?;
            }
            Ok(connection)
        };
        let connection =
            open().with_context(|| format!("opening the store {}; move it away to begin anew", path.display()))?;
        Ok(Store { connection: Mutex::new(connection), path: path.to_owned() })
    }

    /// Every record.
    pub fn all(&self) -> Result<Vec<Record>> {
        let read = || -> Result<Vec<Record>> {
            let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
            let mut statement = connection.prepare("SELECT record FROM sandbox")?;
            let texts: rusqlite::Result<Vec<String>> = statement.query_map([], |row| row.get(0))?.collect();
            texts?.iter().map(|text| Ok(serde_json::from_str(text)?)).collect()
        };
        read().with_context(|| format!("reading the store {}", self.path.display()))
    }

    /// Writes a record, and beside a new one what it is made from.
    pub fn put(&self, record: &Record, request: Option<&str>) -> Result<()> {
        let text = serde_json::to_string(record)?;
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection
            .prepare_cached(
                "INSERT INTO sandbox (id, record, request) VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE SET record = ?2",
            )
            .and_then(|mut statement| statement.execute(params![record.id, text, request]))
            .map(drop)
            .with_context(|| format!("writing to the store {}", self.path.display()))
    }

    /// What a sandbox was made from; `None` when an earlier apexd made it, which did not keep that.
    pub fn request(&self, id: &str) -> Result<Option<CreateRequest>> {
        let read = || -> Result<Option<CreateRequest>> {
            let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
            let text: Option<Option<String>> = connection
                .query_row("SELECT request FROM sandbox WHERE id = ?1", params![id], |row| row.get(0))
                .optional()?;
            Ok(text.flatten().map(|text| serde_json::from_str(&text)).transpose()?)
        };
        read().with_context(|| format!("reading the store {}", self.path.display()))
    }

    /// Forgets a record.
    pub fn forget(&self, id: &str) -> Result<()> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection
            .execute("DELETE FROM sandbox WHERE id = ?1", params![id])
            .map(drop)
            .with_context(|| format!("writing to the store {}", self.path.display()))
    }

    /// Every group: what was asked for, and what became of it.
    pub fn groups(&self) -> Result<Vec<(Asked, State)>> {
        let read = || -> Result<Vec<(Asked, State)>> {
            let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
            let mut statement = connection.prepare("SELECT asked, state FROM supervised ORDER BY name")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let texts: rusqlite::Result<Vec<(String, String)>> = rows.collect();
            texts?
                .iter()
                .map(|(asked, state)| Ok((serde_json::from_str(asked)?, serde_json::from_str(state)?)))
                .collect()
        };
        read().with_context(|| format!("reading groups from the store {}", self.path.display()))
    }

    /// Writes a new group.
    pub fn put_group(&self, asked: &Asked, state: &State) -> Result<()> {
        let texts = (serde_json::to_string(asked)?, serde_json::to_string(state)?);
        self.about_groups(
            "INSERT INTO supervised (name, asked, state) VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE SET asked = ?2, state = ?3",
            params![asked.name, texts.0, texts.1],
        )
    }

    /// Writes what became of a group.
    pub fn put_group_state(&self, name: &str, state: &State) -> Result<()> {
        let text = serde_json::to_string(state)?;
        self.about_groups("UPDATE supervised SET state = ?2 WHERE name = ?1", params![name, text])
    }

    /// Forgets a group.
    pub fn forget_group(&self, name: &str) -> Result<()> {
        self.about_groups("DELETE FROM supervised WHERE name = ?1", params![name])
    }

    fn about_groups(&self, statement: &str, params: impl rusqlite::Params) -> Result<()> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection
            .prepare_cached(statement)
            .and_then(|mut statement| statement.execute(params))
            .map(drop)
            .with_context(|| format!("writing to the store {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use apex_core::policy::Mode;

    use super::*;

    /// A store of the version before has no requests; what is new has, once and for all.
    #[test]
    fn what_a_sandbox_is_made_from_is_kept_beside_its_record() {
        let path = std::env::temp_dir().join(format!("apex-store-{}.db", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let record = |id: &str| Record::new(id.to_owned(), 0, Mode::Isolation, 1);
        {
            let old = Connection::open(&path).expect("a file");
            let text = serde_json::to_string(&record("old")).expect("plain values");
            old.execute_batch("CREATE TABLE sandbox (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT; CREATE TABLE supervised (name TEXT PRIMARY KEY, asked TEXT NOT NULL, state TEXT NOT NULL) STRICT; PRAGMA user_version = 2;").expect("its tables");
            old.execute("INSERT INTO sandbox (id, record) VALUES ('old', ?1)", params![text]).expect("a row");
        }
        let store = Store::open(&path).expect("it is migrated");
        assert_eq!(store.all().expect("readable").len(), 1);
        assert_eq!(store.request("old").expect("readable"), None);
        let request = CreateRequest { command: vec!["true".to_owned()], ..Default::default() };
        let text = serde_json::to_string(&request).expect("plain values");
        store.put(&record("new"), Some(&text)).expect("room");
        store.put(&record("new"), None).expect("room");
        assert_eq!(store.request("new").expect("readable"), Some(request));
        assert_eq!(store.request("none").expect("readable"), None);
        drop(store);
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", path.display()));
        }
    }
}
