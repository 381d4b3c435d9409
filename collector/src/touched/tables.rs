//! The tables of a statement, by the grammar of PostgreSQL as `sqlparser` knows it. That is a reading of what was asked:
//! what functions, triggers, views, rules and procedures do besides is the server's to know.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

use sqlparser::ast::{
    CopySource, Expr, FromTable, Ident, ObjectName, ObjectType, Query, Select, Statement, TableFactor,
    TableObject, TableWithJoins, UtilityOption, Visit, Visitor,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

/// Longer statements count as unparsed, bytes.
pub const SQL_BYTES_MAX: usize = 32 * 1024;
/// Expressions, queries and statements inside each other.
const DEPTH_MAX: usize = 64;
/// Tables told of one statement.
const TABLES_MAX: usize = 256;
/// Longest name, characters.
const NAME_CHARS_MAX: usize = 200;

/// What a statement does with a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub read: bool,
    pub written: bool,
}

/// By name, as written: what `search_path` would add is not known.
pub type Tables = BTreeMap<String, Access>;

/// `None`: it does not parse, or runs something that another statement said.
pub fn tables(sql: &str) -> Option<Tables> {
    if sql.len() > SQL_BYTES_MAX {
        return None;
    }
    let parser = Parser::new(&PostgreSqlDialect {}).with_recursion_limit(DEPTH_MAX);
    let statements = parser.try_with_sql(sql).and_then(|mut parser| parser.parse_statements()).ok()?;
    let mut reading = Reading::default();
    for statement in &statements {
        match statement {
            Statement::Execute { .. } => return None,
            // Neither runs what it holds.
            Statement::Explain { analyze: false, options, .. } if !analyzes(options.as_deref()) => {}
            Statement::Prepare { .. } => {}
            statement => {
                let _ = statement.visit(&mut reading);
            }
        }
    }
    Some(reading.tables)
}

/// `EXPLAIN (ANALYZE)`, unless it says that it is off.
fn analyzes(options: Option<&[UtilityOption]>) -> bool {
    options.unwrap_or_default().iter().any(|option| option.name.value.eq_ignore_ascii_case("analyze"))
}

/// The walk over a statement.
#[derive(Default)]
struct Reading {
    tables: Tables,
    /// Names that the walk meets and that are no reads: told already, or not tables. By place, not by text: a statement
    /// may read what it writes.
    not_read: HashSet<usize>,
    scopes: Vec<Scope>,
}

/// The names that a query's WITH defines, and how many of them can be seen where the walk is.
#[derive(Default)]
struct Scope {
    names: Vec<(String, usize)>,
    recursive: bool,
    seen: usize,
}

fn place<T>(thing: &T) -> usize {
    std::ptr::from_ref(thing).addr()
}

impl Reading {
    fn note(&mut self, name: String, access: Access) {
        let full = self.tables.len() >= TABLES_MAX;
        if !full || self.tables.contains_key(&name) {
            let known = self.tables.entry(name).or_default();
            known.read |= access.read;
            known.written |= access.written;
        }
    }

    fn written(&mut self, name: &ObjectName) {
        self.not_read.insert(place(name));
        self.note(shown(name), Access { read: false, written: true });
    }

    fn written_tables(&mut self, tables: &[TableWithJoins]) {
        tables.iter().for_each(|table| self.written_factor(&table.relation));
    }

    fn written_factor(&mut self, factor: &TableFactor) {
        if let TableFactor::Table { name, .. } = factor {
            self.written(name);
        }
    }

    /// Whether an unqualified name is that of a WITH query here.
    fn is_defined(&self, name: &str) -> bool {
        self.scopes.iter().any(|scope| scope.names.iter().take(scope.seen).any(|(known, _)| known == name))
    }
}

impl Visitor for Reading {
    type Break = ();

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        match statement {
            Statement::Insert(insert) => {
                if let TableObject::TableName(name) = &insert.table {
                    self.written(name);
                }
            }
            Statement::Update(update) => self.written_factor(&update.table.relation),
            Statement::Delete(delete) => {
                let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
                delete.tables.iter().for_each(|name| self.written(name));
                if delete.tables.is_empty() {
                    self.written_tables(from);
                }
            }
            Statement::Merge(merge) => self.written_factor(&merge.table),
            Statement::Truncate(truncate) => {
                truncate.table_names.iter().for_each(|target| self.written(&target.name));
            }
            Statement::Drop { object_type, names, .. } => {
                if matches!(object_type, ObjectType::Table | ObjectType::View | ObjectType::MaterializedView)
                {
                    names.iter().for_each(|name| self.written(name));
                }
            }
            Statement::CreateTable(create) => self.written(&create.name),
            Statement::CreateView(create) => self.written(&create.name),
            Statement::AlterView { name, .. } => self.written(name),
            Statement::AlterTable(alter) => self.written(&alter.name),
            Statement::CreateIndex(create) => self.written(&create.table_name),
            Statement::Copy { source: CopySource::Table { table_name, .. }, to, .. } => {
                self.note(shown(table_name), Access { read: *to, written: !*to });
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let at = place(query);
        if let Some(scope) = self.scopes.last_mut()
            && let Some(nth) = scope.names.iter().position(|(_, place)| *place == at)
        {
            scope.seen = if scope.recursive { scope.names.len() } else { nth };
        }
        let mut scope = Scope::default();
        if let Some(with) = &query.with {
            scope.recursive = with.recursive;
            scope.names =
                with.cte_tables.iter().map(|cte| (part(&cte.alias.name), place(&*cte.query))).collect();
        }
        self.scopes.push(scope);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.scopes.pop();
        let at = place(query);
        if let Some(scope) = self.scopes.last_mut()
            && let Some(nth) = scope.names.iter().position(|(_, place)| *place == at)
        {
            scope.seen = nth + 1;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        for target in select.into.iter().flat_map(|into| &into.targets) {
            let name = match target {
                Expr::Identifier(ident) => part(ident),
                Expr::CompoundIdentifier(idents) => idents.iter().map(part).collect::<Vec<_>>().join("."),
                _ => continue,
            };
            self.note(cut(name), Access { read: false, written: true });
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args: Some(_), .. } = factor {
            self.not_read.insert(place(name));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        let name = shown(relation);
        let defined = relation.0.len() == 1 && self.is_defined(&name);
        if !defined && !self.not_read.contains(&place(relation)) {
            self.note(name, Access { read: true, written: false });
        }
        ControlFlow::Continue(())
    }
}

fn shown(name: &ObjectName) -> String {
    let parts = name.0.iter().map(|one| one.as_ident().map_or_else(|| one.to_string(), part));
    cut(parts.collect::<Vec<_>>().join("."))
}

/// As the server folds it.
fn part(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

fn cut(name: String) -> String {
    if name.chars().count() > NAME_CHARS_MAX { name.chars().take(NAME_CHARS_MAX).collect() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `r`, `w` or `rw` before each name.
    fn told(sql: &str) -> String {
        let Some(tables) = tables(sql) else { return "unparsed".into() };
        let one = |(name, access): (&String, &Access)| {
            let letters = [(access.read, "r"), (access.written, "w")];
            let access: String = letters.iter().filter(|(on, _)| *on).map(|(_, letter)| *letter).collect();
            format!("{access} {name}")
        };
        tables.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn what_is_read_and_what_is_written() {
        for (sql, tables) in [
            (
                "SELECT * FROM orders o JOIN public.Customers c ON c.id = o.customer",
                "r orders, r public.customers",
            ),
            ("SELECT 1", ""),
            ("SELECT * FROM \"Order Lines\" WHERE id IN (SELECT id FROM t)", "r Order Lines, r t"),
            ("INSERT INTO t SELECT * FROM t, u", "rw t, r u"),
            ("INSERT INTO t (a) VALUES ($1) ON CONFLICT DO NOTHING RETURNING a", "w t"),
            ("UPDATE t SET a = (SELECT max(b) FROM u) FROM v WHERE t.id = v.id", "w t, r u, r v"),
            ("DELETE FROM t USING u WHERE t.id = u.id", "w t, r u"),
            ("MERGE INTO t USING u ON t.id = u.id WHEN MATCHED THEN DELETE", "w t, r u"),
            ("TRUNCATE a, s.b", "w a, w s.b"),
            ("DROP TABLE IF EXISTS a, b CASCADE", "w a, w b"),
            ("CREATE TABLE a AS SELECT * FROM b", "w a, r b"),
            ("SELECT * INTO a FROM b", "w a, r b"),
            ("CREATE VIEW v AS SELECT * FROM b", "r b, w v"),
            ("ALTER TABLE a ADD COLUMN b int", "w a"),
            ("CREATE INDEX i ON a (b)", "w a"),
            ("COPY a TO STDOUT", "r a"),
            ("COPY a FROM STDIN", "w a"),
            ("COPY (SELECT * FROM a) TO STDOUT", "r a"),
            ("TABLE a", "unparsed"),
            ("SELECT * FROM generate_series(1, 10) g, a", "r a"),
            ("BEGIN; DELETE FROM a; COMMIT", "w a"),
            ("EXPLAIN DELETE FROM a", ""),
            ("EXPLAIN ANALYZE DELETE FROM a", "w a"),
            ("EXPLAIN (ANALYZE, BUFFERS) DELETE FROM a", "w a"),
            ("PREPARE p AS DELETE FROM a", ""),
            ("EXECUTE p", "unparsed"),
            ("SELEKT 1", "unparsed"),
        ] {
            assert_eq!(told(sql), tables, "{sql}");
        }
    }

    #[test]
    fn a_with_query_is_no_table_but_may_hide_one() {
        for (sql, tables) in [
            ("WITH x AS (SELECT * FROM a) SELECT * FROM x", "r a"),
            ("WITH a AS (SELECT * FROM a) SELECT * FROM a", "r a"),
            ("WITH x AS (SELECT * FROM y), y AS (SELECT 1) SELECT * FROM x, y", "r y"),
            ("WITH RECURSIVE x AS (SELECT 1 UNION ALL SELECT * FROM x) SELECT * FROM x", ""),
            ("WITH x AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM x", "w a, w b"),
            ("SELECT (WITH x AS (SELECT 1) SELECT * FROM x), (SELECT max(n) FROM x)", "r x"),
            ("WITH x AS (SELECT 1) SELECT * FROM public.x", "r public.x"),
        ] {
            assert_eq!(told(sql), tables, "{sql}");
        }
    }
}
