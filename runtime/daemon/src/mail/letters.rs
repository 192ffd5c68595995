//! Messages on disk: one SQLite file, `mail.db`, beside the store. Of its own, so that what sandboxes send does not hold up what the daemon knows of them, and can be thrown away by itself.
//!
//! A message is there before its sender gets its number, and gone before its receiver is told so. That holds over the death of the process; a loss of power may take the last moments.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use apex_core::mail::Letter;
use rusqlite::{Connection, params};

/// Number of the last of the migrations.
const VERSION: i64 = 1;

/// The open file.
pub struct Letters {
    connection: Connection,
    path: PathBuf,
}

/// A message as it lies there, but for its body.
pub struct Stored {
    pub uid: u32,
    pub mailbox: String,
    pub letter: Letter,
}

impl Letters {
    /// Opens it, made and migrated as needed.
    pub fn open(path: &Path) -> Result<Letters> {
        let open = || -> Result<Connection> {
            let connection = Connection::open(path)?;
            connection.execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000; PRAGMA journal_size_limit = 4194304;",
            )?;
            let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            if version > VERSION {
                bail!("it was written by a newer apexd (version {version}, this one knows {VERSION})");
            }
            if version < 1 {
                connection.execute_batch(
                    "BEGIN; CREATE TABLE letter (id INTEGER PRIMARY KEY, uid INTEGER NOT NULL, mailbox TEXT NOT NULL, sender TEXT NOT NULL, name TEXT NOT NULL, at_ms INTEGER NOT NULL, body TEXT NOT NULL) STRICT; PRAGMA user_version = 1; COMMIT;",
                )?;
            }
            Ok(connection)
        };
        let connection = open()
            .with_context(|| format!("opening the messages in {}; move it away to begin anew", path.display()))?;
        Ok(Letters { connection, path: path.to_owned() })
    }

    fn failed(&self, what: &str) -> String {
        format!("{what} messages in {}", self.path.display())
    }

    /// Every message.
    pub fn all(&self) -> Result<Vec<Stored>> {
        let read = || -> rusqlite::Result<Vec<Stored>> {
            let text =
                "SELECT id, uid, mailbox, sender, name, at_ms, length(CAST(body AS BLOB)) FROM letter ORDER BY id";
            let mut statement = self.connection.prepare(text)?;
            let stored = statement.query_map([], |row| {
                let letter = Letter {
                    id: row.get(0)?,
                    from: row.get(3)?,
                    name: row.get(4)?,
                    at_ms: row.get(5)?,
                    bytes: row.get(6)?,
                };
                Ok(Stored { uid: row.get(1)?, mailbox: row.get(2)?, letter })
            })?;
            stored.collect()
        };
        read().with_context(|| self.failed("reading"))
    }

    /// Writes a message.
    pub fn put(&self, uid: u32, mailbox: &str, letter: &Letter, body: &str) -> Result<()> {
        let Letter { id, from, name, at_ms, .. } = letter;
        self.connection
            .prepare_cached(
                "INSERT INTO letter (id, uid, mailbox, sender, name, at_ms, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )
            .and_then(|mut statement| statement.execute(params![id, uid, mailbox, from, name, at_ms, body]))
            .map(drop)
            .with_context(|| self.failed("writing"))
    }

    /// What a message says.
    pub fn body(&self, id: u64) -> Result<String> {
        self.connection
            .prepare_cached("SELECT body FROM letter WHERE id = ?1")
            .and_then(|mut statement| statement.query_row(params![id], |row| row.get(0)))
            .with_context(|| self.failed("reading"))
    }

    /// Forgets a message.
    pub fn remove(&self, id: u64) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM letter WHERE id = ?1")
            .and_then(|mut statement| statement.execute(params![id]))
            .map(drop)
            .with_context(|| self.failed("removing"))
    }

    /// Forgets all of a mailbox.
    pub fn empty(&self, uid: u32, mailbox: &str) -> Result<()> {
        self.connection
            .execute("DELETE FROM letter WHERE uid = ?1 AND mailbox = ?2", params![uid, mailbox])
            .map(drop)
            .with_context(|| self.failed("removing"))
    }
}
