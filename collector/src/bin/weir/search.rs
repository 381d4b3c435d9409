//! `weir search`: exchanges that a query finds.

use std::ffi::OsString;
use std::io::IsTerminal;

use anyhow::Result;
use weir_collector::search::fields::FIELDS;
use weir_collector::search::parse;
use weir_proto::v1;

use crate::How;
use crate::client::{Client, page_at};
use crate::hits::{Print, short};
use crate::output::{self, plural};

/// Hits asked for at once.
const PAGE_HITS: usize = 200;

#[derive(clap::Args)]
#[command(after_help = help())]
pub(crate) struct Search {
    /// What to look for; without it everything. Put it into single quotes when it has quotation marks or parentheses
    #[arg(value_name = "QUERY")]
    query: Vec<String>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    /// All there are
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// In the order they arrived, instead of the newest first
    #[arg(long)]
    oldest_first: bool,
}

/// The grammar, from the one table of fields.
pub(crate) fn help() -> String {
    let mut text = String::from(
        "A query is words (all must be there), \"phrases\", prefix*, -not, OR, parentheses and fields:\n\n",
    );
    for entry in FIELDS {
        let name = if entry.names[0] == "label" { "label.KEY".to_owned() } else { entry.names.join("|") };
        text.push_str(&format!("  {:<26} {}\n", format!("{name}:{}", entry.takes), entry.about));
    }
    text.push_str(
        "\nA field takes a list (verb:GET,HEAD), a phrase (error:\"no such\"), a beginning (target:ord*);\n\
         numbers take a comparison or a range (rows:>100, duration:10ms..2s). Times are UTC:\n\
         2026-11-20, 2026-11-20T10:30, today, or 1h before now.\n\nExamples:\n  \
         weir search 'drop table'\n  \
         weir search 'run:last outcome:denied,error'\n  \
         weir search 'host:*.example.com method:POST status:5xx after:1h'\n  \
         weir search '(customers OR accounts) -select rows:>1000 label.team:db'",
    );
    text
}

/// `-word` of a query is no option: it is told to the command line as `NOT word`, which means the same. Options stay what
/// they are, wherever they stand.
pub(crate) fn with_negations(mut arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut out: Vec<OsString> = arguments.next().into_iter().collect();
    let (mut is_query, mut options_end) = (false, false);
    for argument in arguments {
        let text = argument.to_str().unwrap_or_default();
        is_query |= matches!(text, "search" | "tail");
        options_end |= text == "--";
        match text.strip_prefix('-') {
            Some(rest)
                if is_query && !options_end && !rest.is_empty() && !rest.starts_with('-') && rest != "h" =>
            {
                out.push(format!("NOT {rest}").into());
            }
            _ => out.push(argument),
        }
    }
    out
}

impl Search {
    pub(crate) async fn run(self, how: &How) -> Result<()> {
        let query = self.query.join(" ");
        let mut client = Client::connect(how).await?;
        let order = match self.oldest_first {
            true => v1::SearchOrder::OldestFirst,
            false => v1::SearchOrder::NewestFirst,
        };
        let limit = if self.all { usize::MAX } else { self.limit };
        let print = Print::new(how.json);
        let mut progress = Progress::new();
        let (mut found, mut cursor) = (0, String::new());
        let mut first: Option<v1::SearchHit> = None;
        let (more, unindexed) = loop {
            let page = page_at(u32::try_from((limit - found).min(PAGE_HITS))?, cursor);
            let asked = v1::SearchRequest { query: query.clone(), page, order: order as i32 };
            let answer =
                client.query.search(asked).await.map_err(|status| explained(&query, status))?.into_inner();
            progress.clear();
            for hit in &answer.hits {
                print.hit(hit)?;
            }
            found += answer.hits.len();
            first = first.or(answer.hits.into_iter().next());
            cursor = answer.next_cursor;
            if cursor.is_empty() || found >= limit {
                break (!cursor.is_empty(), answer.unindexed);
            }
            if answer.incomplete {
                progress.tell(answer.searched_to_unix_ns, found);
            }
        };
        if how.json {
            return Ok(());
        }
        if unindexed > 0 && parse(&query, 0).is_ok_and(|query| query.asks_text()) {
            eprintln!(
                "weir: {} came just now: their words are not in the index yet",
                plural(unindexed, "exchange")
            );
        }
        let Some(exchange) = first.and_then(|hit| hit.exchange) else {
            return output::line("nothing found");
        };
        let session = short(&exchange.session_id);
        let rest = if more { ", --all or a larger --limit for more" } else { "" };
        eprintln!(
            "\n{} shown{rest}; `weir play {session} --exchange {}` for the first of them, `weir show {session}` for its session",
            plural(found as u64, "exchange"),
            exchange.ordinal
        );
        Ok(())
    }
}

/// A refused query with a mark under the place.
pub(crate) fn explained(query: &str, status: tonic::Status) -> anyhow::Error {
    let Err(mistake) = parse(query, 0) else { return status.into() };
    // The collector may be of another version, and know more than this client.
    if status.code() != tonic::Code::InvalidArgument || status.message() != mistake.to_string() {
        return status.into();
    }
    let shown = output::clean(query);
    let before: String = query.chars().take(mistake.at).collect();
    eprintln!("  {shown}\n  {}^", " ".repeat(output::clean(&before).chars().count()));
    status.into()
}

/// How far a long search is, on a terminal.
struct Progress {
    shown: bool,
}

impl Progress {
    fn new() -> Self {
        Self { shown: false }
    }

    fn tell(&mut self, searched_to_unix_ns: i64, found: usize) {
        if std::io::stderr().is_terminal() {
            let to = output::time(searched_to_unix_ns);
            eprint!("\r\x1b[Kweir: searched as far as {to}, {found} found; Ctrl-C ends it");
            self.shown = true;
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negation_is_not_an_option() {
        let read = |line: &str| {
            let words = with_negations(line.split(' ').map(OsString::from));
            words.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(
            read("weir --json search a -b -h --limit 3 -x:y"),
            ["weir", "--json", "search", "a", "NOT b", "-h", "--limit", "3", "NOT x:y"]
        );
        assert_eq!(read("weir tail -- -a - --"), ["weir", "tail", "--", "-a", "-", "--"]);
        assert_eq!(read("weir show -x"), ["weir", "show", "-x"]);
    }
}
