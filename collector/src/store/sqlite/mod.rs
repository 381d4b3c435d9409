//! The index in one SQLite file: WAL, `synchronous = FULL`, one writer, several readers.
//!
//! * [`ingest`]: the transaction that commits a batch of segments; [`rows`]: many rows by one statement
//! * [`exchanges`]: exchanges, read back out of their small rows
//! * [`nodes`]: nodes, their enrolment, wraps and keys
//! * [`fleet`]: how nodes stand, and the times in which they gave no sign of life
//! * [`access`]: credentials, join tokens, the access log, alerts
//! * [`reads`]: what people ask for; [`search`]: what they search for
//! * [`stored`]: what is held as it came, for playing and proving
//! * [`text`]: full text, in a file of its own beside it
//! * [`retention`]: what deletes

mod access;
mod exchanges;
mod fleet;
mod ingest;
mod nodes;
mod reads;
mod retention;
mod rows;
mod search;
mod stored;
mod text;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Row, SqlSafeStr, Sqlite, Transaction};
use tokio::sync::{Mutex, Notify};

use super::StoreError;

pub use access::AccessEntry;
pub use reads::{BadCursor, ReadError, RunFilter, SessionFilter, Subject, coverage_name};
pub use search::{Extent, HitRow, SearchError, Seeking, Sought};
pub use text::TextTurn;

/// (version, name, SQL), in order. A released migration is never edited: a new one is added.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "recordings", include_str!("../../../migrations/sqlite/0001_recordings.sql")),
    (2, "exchange rows", include_str!("../../../migrations/sqlite/0002_exchange_rows.sql")),
    (3, "fleet", include_str!("../../../migrations/sqlite/0003_fleet.sql")),
    (4, "expired", include_str!("../../../migrations/sqlite/0004_expired.sql")),
];
const TEXT_FILE: &str = "text.sqlite";
const READERS: u32 = 4;
/// Pages of the log (4 KiB each) that are written back at once: a page that many batches change is written once for them all.
const WAL_PAGES: &str = "8192";
/// How long a writer waits for another process (`weir-collector token`) to finish its transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// Cheap to clone.
#[derive(Clone)]
pub struct SqliteIndex {
    writer: SqlitePool,
    readers: SqlitePool,
    text: SqlitePool,
    text_turn: Arc<Mutex<()>>,
    text_waits: Arc<Notify>,
}

impl SqliteIndex {
    pub async fn open(file: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("wal_autocheckpoint", WAL_PAGES)
            // What retention deletes must not stay readable in free pages.
            .pragma("secure_delete", "ON");
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        migrator(MIGRATIONS).run(&writer).await?;
        // Of their own: what sets up the writer's connection (journal mode, vacuum) writes, and they must not.
        let reading = SqliteConnectOptions::new().filename(file).read_only(true).busy_timeout(BUSY_TIMEOUT);
        let text_file = file.with_file_name(TEXT_FILE);
        let text = text::open(&text_file, &writer).await?;
        let text_file = text_file.to_string_lossy().into_owned();
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .after_connect(move |connection, _| {
                let words = sqlx::query("ATTACH DATABASE ? AS words").bind(text_file.clone());
                Box::pin(async move { words.execute(connection).await.map(drop) })
            })
            .connect_with(reading)
            .await?;
        Ok(Self { writer, readers, text, text_turn: Arc::default(), text_waits: Arc::default() })
    }

    /// Takes the write lock at once, so that no transaction fails half way for want of it.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// A small fact about this collector.
    pub async fn meta_value(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let row = sqlx::query("SELECT value FROM meta WHERE key = ?")
            .bind(key)
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| Ok(row.try_get(0)?)).transpose()
    }

    /// Sets it unless it is there; answers what is there now.
    pub async fn meta_set_once(&self, key: &str, value: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(key)
            .bind(value)
            .execute(&mut *tx)
            .await?;
        let row = sqlx::query("SELECT value FROM meta WHERE key = ?").bind(key).fetch_one(&mut *tx).await?;
        tx.commit().await?;
        Ok(row.try_get(0)?)
    }

    /// Sets it, whatever was there.
    pub async fn meta_set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
            .bind(key)
            .bind(value)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Ready for use: a transaction can be made.
    pub async fn probe(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").fetch_one(&self.readers).await?;
        Ok(())
    }

    /// Waits for what is under way and writes the log back into the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.text.close().await;
        self.writer.close().await;
    }
}

fn migrator(migrations: &[(i64, &'static str, &'static str)]) -> Migrator {
    let migrations = migrations
        .iter()
        .map(|(version, name, sql)| {
            Migration::new(*version, (*name).into(), MigrationType::Simple, (*sql).into_sql_str(), false)
        })
        .collect();
    Migrator::with_migrations(migrations)
}

/// SQLite's integers are signed; a peer's absurd number saturates instead of turning negative.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn uint(row: &SqliteRow, column: &str) -> Result<u64, StoreError> {
    let value: i64 = row.try_get(column)?;
    Ok(u64::try_from(value).unwrap_or(0))
}

/// A column of 16 or 32 bytes.
fn fixed<const N: usize>(row: &SqliteRow, column: &'static str) -> Result<[u8; N], StoreError> {
    let bytes: &[u8] = row.try_get(column)?;
    bytes.try_into().map_err(|_| StoreError::Damaged(column))
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use sqlx::{Connection, SqliteConnection};
    use weir_proto::v1;

    use super::*;

    /// Rows as the schema before exchange rows had them, with everything else in an encoded `Finished`.
    const BEFORE: &str = "
        INSERT INTO node (id, name, signing_key, enrolled_ms) VALUES (zeroblob(16), 'n', x'01', 1);
        INSERT INTO run (id, node_id, principal_subject, first_unix_ns, last_unix_ns) VALUES (zeroblob(16), zeroblob(16), 'uid:7', 1, 2);
        INSERT INTO session (id, run_id, node_id, node_number, protocol, opened_boot_ns, opened_unix_ns, head_hash, next_seq)
            VALUES (zeroblob(16), zeroblob(16), zeroblob(16), 1, 'postgres', 10, 10, zeroblob(32), 2);
        INSERT INTO bundle VALUES (1, 'k', 1, 1);
        INSERT INTO segment VALUES (zeroblob(16), 0, 1, 0, 10, zeroblob(32), x'', x'', zeroblob(16), 100, 200, 5000000, 100, 4, 5, x'');
        INSERT INTO segment VALUES (zeroblob(16), 1, 1, 0, 10, zeroblob(32), x'', x'', zeroblob(16), 201, 300, 5000000, 100, 4, 6, x'');
        INSERT INTO exchange (session_id, ordinal, run_id, node_id, protocol, target, verb, statement, asked_boot_ns, asked_unix_ns,
            done, outcome, duration_ns, finished) VALUES
            (zeroblob(16), 2, zeroblob(16), zeroblob(16), 'postgres', '', 'query', 'select 2', 120, 0, 1, 3, 100, ?1),
            (zeroblob(16), 1, zeroblob(16), zeroblob(16), 'http', '', 'GET', '/one', 110, 0, 1, 1, 10, x''),
            (zeroblob(16), 3, zeroblob(16), zeroblob(16), 'postgres', '', 'query', 'select 3', 250, 0, 0, 0, 0, x'')";

    #[tokio::test]
    async fn exchanges_of_the_schema_before_move_into_their_segments() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("index.sqlite");
        let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
        let mut before = SqliteConnection::connect_with(&options).await.unwrap();
        migrator(&MIGRATIONS[..1]).run(&mut before).await.unwrap();
        let column = v1::Column { name: "id".into(), r#type: "int4".into() };
        let said = v1::Finished { rule: "no-writes".into(), columns: vec![column], ..Default::default() };
        for statement in BEFORE.split(';') {
            sqlx::query(statement).bind(said.encode_to_vec()).execute(&mut before).await.unwrap();
        }
        before.close().await.unwrap();

        let index = SqliteIndex::open(&file).await.unwrap();
        let session = Subject::Session(weir_proto::SessionId::from_bytes([0; 16]));
        let listed = index.exchange_list(session, &v1::Page::default()).await.unwrap().exchanges;
        let told = |of: &v1::ExchangeSummary| {
            let finished = of.finished.clone().unwrap();
            (
                of.ordinal,
                of.protocol.clone(),
                finished.operation.unwrap().text,
                of.asked_unix_ns,
                of.duration_ns,
            )
        };
        let expected = [
            (1, "http", "/one", 5_000_010, 10),
            (2, "postgres", "select 2", 5_000_020, 100),
            (3, "postgres", "select 3", 5_000_150, 0),
        ];
        let expected = expected.map(|(a, b, c, d, e)| (a, b.to_owned(), c.to_owned(), d, e));
        assert_eq!(listed.iter().map(told).collect::<Vec<_>>(), expected);
        let finished = listed[1].finished.as_ref().unwrap();
        assert_eq!(
            (&finished.rule, &finished.columns, finished.outcome()),
            (&said.rule, &said.columns, v1::Outcome::Denied)
        );
        let texts = index.text_segment_list(1, 10).await.unwrap();
        let rows: Vec<_> =
            texts.iter().map(|segment| segment.exchanges.keys().copied().collect::<Vec<_>>()).collect();
        assert_eq!((rows[0].len(), rows[1].len()), (1, 2), "the second finished in the second segment");
    }

    #[tokio::test]
    async fn opens_twice_and_keeps_what_was_set_first() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("index.sqlite");
        let index = SqliteIndex::open(&file).await.unwrap();
        assert_eq!(index.meta_set_once("a", b"1").await.unwrap(), b"1");
        index.close().await;
        let index = SqliteIndex::open(&file).await.unwrap();
        assert_eq!(index.meta_set_once("a", b"2").await.unwrap(), b"1");
        assert_eq!(index.meta_value("b").await.unwrap(), None);
    }
}
