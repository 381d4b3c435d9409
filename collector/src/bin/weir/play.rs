//! `weir play`: the recorded rows and bytes themselves, exchange by exchange, rendered by `weir-protocols`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weir_proto::v1::{self, event::Kind};
use weir_protocols::Side;
use weir_protocols::view::{self, Line, Piece};

use crate::How;
use crate::client::{Client, Subject};
use crate::output::{self, id, one_line, plural, time_json};

/// Recorded bytes of one exchange held until it is finished and can be shown; more is counted and left out.
const EXCHANGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The same of all exchanges that run at a time: above it the largest are shown in parts.
const ALL_BYTES_MAX: usize = 256 * 1024 * 1024;
const STATEMENT_CHARS: usize = 200;

#[derive(clap::Args)]
pub(crate) struct Play {
    /// RUN, SESSION or `last`
    subject: String,
    /// Only this exchange of a session
    #[arg(long, value_name = "N")]
    exchange: Option<u64>,
}

/// One exchange while its events come.
#[derive(Default)]
struct Playing {
    operation: v1::Operation,
    pieces: Vec<Piece>,
    bytes: usize,
    left_out: u64,
}

struct Player {
    json: bool,
    /// What each session speaks, by its id.
    protocols: BTreeMap<Vec<u8>, String>,
    playing: BTreeMap<(Vec<u8>, u64), Playing>,
    held: usize,
    shown: Vec<Value>,
}

impl Play {
    pub(crate) async fn run(self, how: &How) -> Result<()> {
        let mut client = Client::connect(how).await?;
        let subject = client.subject(&self.subject).await?;
        anyhow::ensure!(
            self.exchange.is_none() || matches!(subject, Subject::Session(_)),
            "--exchange names an exchange of a session: give the session"
        );
        let (run_id, session_id) = subject.fields();
        let mut player = Player {
            json: how.json,
            protocols: protocols(&mut client, &run_id, &session_id).await?,
            playing: BTreeMap::new(),
            held: 0,
            shown: Vec::new(),
        };
        let asked = v1::PlayRequest { run_id, session_id, exchange: self.exchange.unwrap_or(0) };
        let mut events = client.query.play(asked).await?.into_inner();
        while let Some(played) = events.message().await? {
            player.take(played)?;
        }
        player.finish()
    }
}

/// One exchange alone does not say what its session speaks.
async fn protocols(
    client: &mut Client,
    run_id: &prost::bytes::Bytes,
    session_id: &prost::bytes::Bytes,
) -> Result<BTreeMap<Vec<u8>, String>> {
    let asked =
        v1::SessionsRequest { run_id: run_id.clone(), session_id: session_id.clone(), ..Default::default() };
    let sessions = client.sessions(asked, usize::MAX).await?;
    Ok(sessions.into_iter().map(|session| (session.session_id.to_vec(), session.protocol)).collect())
}

impl Player {
    fn take(&mut self, played: v1::PlayedEvent) -> Result<()> {
        let session = played.session_id.to_vec();
        let event = played.event.context("the collector sent an empty event")?;
        match event.kind {
            Some(Kind::Asked(asked)) => {
                self.playing.entry((session, asked.exchange)).or_default().operation =
                    asked.operation.unwrap_or_default();
            }
            Some(Kind::Data(data)) => self.data((session, data.exchange), data)?,
            Some(Kind::Finished(finished)) => self.finished(&session, finished, played.unix_ns)?,
            Some(Kind::Gap(gap)) => self.note(&session, played.unix_ns, "gap", &gap.reason)?,
            Some(Kind::Closed(closed)) => {
                self.rest(&session, played.unix_ns)?;
                self.note(&session, played.unix_ns, "closed", &closed.cause)?;
            }
            Some(Kind::Opened(opened)) => {
                let to = output::address(opened.origin.as_ref());
                self.note(&session, played.unix_ns, "opened", &to)?;
            }
            Some(Kind::Judged(judged)) if judged.would_deny => {
                let detail = format!("by {}, which observes: {}", judged.rule, judged.reason);
                self.note(&session, played.unix_ns, "would be denied", &detail)?;
            }
            Some(Kind::Judged(_) | Kind::Facts(_)) | None => {}
        }
        Ok(())
    }

    fn data(&mut self, at: (Vec<u8>, u64), data: v1::Data) -> Result<()> {
        let from = match data.direction() {
            v1::Direction::Response => Side::Upstream,
            v1::Direction::Request | v1::Direction::Unspecified => Side::Client,
        };
        let len = data.bytes.len();
        let full = self.held + len > ALL_BYTES_MAX;
        let playing = self.playing.entry(at).or_default();
        if full || playing.bytes + len > EXCHANGE_BYTES_MAX {
            playing.left_out += len as u64;
        } else {
            playing.bytes += len;
            self.held += len;
            playing.pieces.push(Piece { from, bytes: data.bytes });
        }
        Ok(())
    }

    fn finished(&mut self, session: &[u8], finished: v1::Finished, unix_ns: i64) -> Result<()> {
        let playing = self.playing.remove(&(session.to_vec(), finished.exchange)).unwrap_or_default();
        self.held -= playing.bytes;
        self.exchange(session, &finished, playing, unix_ns)
    }

    /// What never finished, and what belongs to no exchange: at the session's end.
    fn rest(&mut self, session: &[u8], unix_ns: i64) -> Result<()> {
        let from = (session.to_vec(), 0);
        let to = (session.to_vec(), u64::MAX);
        let rest: Vec<_> = self.playing.range(from..=to).map(|(at, _)| at.clone()).collect();
        for at in rest {
            let Some(playing) = self.playing.remove(&at) else { continue };
            self.held -= playing.bytes;
            // Startup and session control are not what was asked to be played, unless there is nothing else.
            let opaque = self
                .protocols
                .get(session)
                .is_none_or(|protocol| protocol.is_empty() || protocol == "opaque");
            if at.1 == 0 && !opaque {
                continue;
            }
            let finished = v1::Finished {
                exchange: at.1,
                operation: Some(playing.operation.clone()),
                ..Default::default()
            };
            self.exchange(session, &finished, playing, unix_ns)?;
        }
        Ok(())
    }

    fn exchange(
        &mut self,
        session: &[u8],
        finished: &v1::Finished,
        playing: Playing,
        unix_ns: i64,
    ) -> Result<()> {
        let protocol = self.protocols.get(session).cloned().unwrap_or_default();
        let columns: Vec<_> = finished.columns.iter().map(|c| (c.name.clone(), c.r#type.clone())).collect();
        let lines = view::render(&protocol, &columns, playing.pieces.into_iter());
        let operation = finished.operation.clone().unwrap_or(playing.operation);
        if self.json {
            self.shown.push(json!({
                "session": id(session),
                "exchange": finished.exchange,
                "protocol": protocol,
                "at": time_json(unix_ns),
                "verb": operation.verb,
                "statement": operation.text,
                "outcome": output::outcome(finished.outcome),
                "status": finished.status,
                "rows": finished.rows,
                "lines": lines.iter().map(line_json).collect::<Vec<_>>(),
                "bytes_left_out": playing.left_out,
            }));
            return Ok(());
        }
        output::line(format!(
            "── {} #{}  {}  {}",
            id(session),
            finished.exchange,
            output::clean(&operation.verb),
            one_line(&operation.text, STATEMENT_CHARS)
        ))?;
        print(&lines)?;
        if playing.left_out > 0 {
            output::line(format!("  ... {} left out", output::bytes(playing.left_out)))?;
        }
        let error = if finished.error.is_empty() { String::new() } else { format!(": {}", finished.error) };
        let rows =
            if finished.rows > 0 { format!(" · {}", plural(finished.rows, "row")) } else { String::new() };
        output::line(output::clean(&format!(
            "  = {} {}{error}{rows}",
            output::outcome(finished.outcome),
            finished.status
        )))
    }

    fn note(&mut self, session: &[u8], unix_ns: i64, what: &str, detail: &str) -> Result<()> {
        if self.json {
            self.shown.push(json!({ "session": id(session), "at": time_json(unix_ns), what: detail }));
            return Ok(());
        }
        output::line(output::clean(&format!("── {} {what} {detail}", id(session))))
    }

    fn finish(mut self) -> Result<()> {
        let open: std::collections::BTreeSet<Vec<u8>> =
            self.playing.keys().map(|(session, _)| session.clone()).collect();
        for session in open {
            self.rest(&session, 0)?;
        }
        if self.json { output::json(&Value::Array(self.shown)) } else { Ok(()) }
    }
}

/// Rows that follow each other are one table.
fn print(lines: &[Line]) -> Result<()> {
    let mut headings: Vec<String> = Vec::new();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for line in lines {
        match line {
            Line::Columns(names) => {
                flush(&mut headings, &mut rows)?;
                headings.clone_from(names);
            }
            Line::Row(values) => {
                rows.push(values.iter().map(|value| value.clone().unwrap_or("NULL".into())).collect())
            }
            other => {
                flush(&mut headings, &mut rows)?;
                output::line(format!("  {}", output::clean(&told(other))))?;
            }
        }
    }
    flush(&mut headings, &mut rows)
}

fn flush(headings: &mut Vec<String>, rows: &mut Vec<Vec<String>>) -> Result<()> {
    if headings.is_empty() && rows.is_empty() {
        return Ok(());
    }
    let mut widths: Vec<usize> = Vec::new();
    let all: Vec<Vec<String>> = std::iter::once(std::mem::take(headings))
        .chain(std::mem::take(rows))
        .map(|row| row.iter().map(|cell| output::clean(cell)).collect())
        .collect();
    for row in &all {
        for (at, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(at) {
                Some(widest) => *widest = (*widest).max(width),
                None => widths.push(width),
            }
        }
    }
    for row in all.iter().filter(|row| !row.is_empty()) {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())))
            .collect();
        output::line(format!("  | {} |", cells.join(" | ")))?;
    }
    Ok(())
}

fn told(line: &Line) -> String {
    match line {
        Line::Request(text) => format!("> {text}"),
        Line::Reply(text) => format!("< {text}"),
        Line::Error(text) => format!("< ERROR {text}"),
        Line::Bytes { from: Side::Client, text } => format!("> {text}"),
        Line::Bytes { from: Side::Upstream, text } => format!("< {text}"),
        Line::Cut { bytes } => format!("... {} more", output::bytes(*bytes)),
        Line::Columns(names) => names.join(" | "),
        Line::Row(values) => {
            values.iter().map(|value| value.as_deref().unwrap_or("NULL")).collect::<Vec<_>>().join(" | ")
        }
    }
}

fn line_json(line: &Line) -> Value {
    match line {
        Line::Request(text) => json!({ "request": text }),
        Line::Columns(names) => json!({ "columns": names }),
        Line::Row(values) => json!({ "row": values }),
        Line::Reply(text) => json!({ "reply": text }),
        Line::Error(text) => json!({ "error": text }),
        Line::Bytes { from, text } => json!({
            "bytes": text, "from": match from { Side::Client => "client", Side::Upstream => "upstream" },
        }),
        Line::Cut { bytes } => json!({ "cut_bytes": bytes }),
    }
}
