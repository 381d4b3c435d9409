//! Inserts of many rows by one statement. What a statement costs on its way to SQLite's thread is more than what a row
//! costs once it is there.

use std::sync::OnceLock;

use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Sqlite, SqliteConnection};

/// Rows of one statement: each size is prepared once per connection.
const SIZES: [usize; 4] = [256, 32, 4, 1];

pub(super) type Values<'q> = Query<'q, Sqlite, SqliteArguments>;

/// One table's insert.
pub(super) struct Insert {
    /// `INSERT INTO t (a, b) VALUES`
    head: &'static str,
    columns: usize,
    /// ` ON CONFLICT ...`
    tail: &'static str,
    sql: [OnceLock<String>; SIZES.len()],
}

impl Insert {
    pub(super) const fn new(head: &'static str, columns: usize, tail: &'static str) -> Self {
        Self { head, columns, tail, sql: [const { OnceLock::new() }; SIZES.len()] }
    }

    /// `bind` binds the columns of one row, in order.
    pub(super) async fn all<T>(
        &'static self,
        to: &mut SqliteConnection,
        mut rows: &[T],
        bind: impl for<'q> Fn(Values<'q>, &T) -> Values<'q>,
    ) -> Result<(), sqlx::Error> {
        while !rows.is_empty() {
            let fits = |size: &usize| *size <= rows.len();
            let Some(place) = SIZES.iter().position(fits) else { break };
            let (now, later) = rows.split_at(SIZES[place]);
            let sql = self.sql[place].get_or_init(|| self.text(now.len()));
            let query = now.iter().fold(sqlx::query(sql.as_str()), &bind);
            query.execute(&mut *to).await?;
            rows = later;
        }
        Ok(())
    }

    fn text(&self, rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.columns].join(","));
        format!("{} {}{}", self.head, vec![row; rows].join(","), self.tail)
    }
}
