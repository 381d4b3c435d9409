//! One exchange that was found: for people, and as a line of JSON.

use std::io::IsTerminal;

use anyhow::Result;
use serde_json::{Value, json};
use weir_proto::v1;

use crate::output::{self, address, clean, id, one_line, outcome, principal, time};
use crate::timeline::{exchange_json, result};

/// Characters of a statement on one line.
const STATEMENT_CHARS: usize = 160;
/// Digits of the end of an id that name it among millions.
const SHORT_ID_DIGITS: usize = 12;

/// How hits are printed.
#[derive(Clone, Copy)]
pub(crate) struct Print {
    json: bool,
    /// What was found is bold on a terminal.
    bold: bool,
}

impl Print {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, bold: !json && std::io::stdout().is_terminal() }
    }

    pub(crate) fn hit(&self, hit: &v1::SearchHit) -> Result<()> {
        if self.json { output::json(&hit_json(hit)) } else { self.tell(hit) }
    }

    fn tell(&self, hit: &v1::SearchHit) -> Result<()> {
        let exchange = hit.exchange.clone().unwrap_or_default();
        let finished = exchange.finished.clone().unwrap_or_default();
        let operation = finished.operation.clone().unwrap_or_default();
        let to = match (exchange.target.as_str(), address(exchange.origin.as_ref())) {
            ("", address) => address,
            (target, address) => format!("{address} ({target})"),
        };
        output::line(format!(
            "{}  {}  {}@{} → {}  {}  {}",
            time(exchange.asked_unix_ns),
            clean(&named(&exchange)),
            clean(&principal(hit.principal.as_ref())),
            clean(&hit.node_name),
            clean(&to),
            clean(&operation.verb),
            outcome(finished.outcome),
        ))?;
        let in_statement = hit.snippets.iter().find(|snippet| snippet.of == "statement");
        let statement = match in_statement {
            Some(snippet) => self.snippet(snippet),
            None => one_line(&operation.text, STATEMENT_CHARS),
        };
        output::line(format!("    {statement}  {}", clean(&result(&exchange, &finished))))?;
        for snippet in hit.snippets.iter().filter(|snippet| snippet.of != "statement") {
            output::line(format!("    {}: {}", clean(&snippet.of), self.snippet(snippet)))?;
        }
        Ok(())
    }

    /// On one line, with what was found in bold. Nothing of the text reaches the terminal unescaped.
    fn snippet(&self, snippet: &v1::Snippet) -> String {
        let chars: Vec<char> = snippet.text.chars().collect();
        let part = |from: usize, to: usize| {
            let text: String = chars.get(from..to.min(chars.len())).unwrap_or_default().iter().collect();
            clean(&text.replace(['\n', '\t', '\r'], " "))
        };
        let mut shown = String::new();
        let mut at = 0;
        for highlight in &snippet.highlights {
            let (from, length) = (highlight.start as usize, highlight.length as usize);
            if from < at || from + length > chars.len() {
                continue;
            }
            shown.push_str(&part(at, from));
            let found = part(from, from + length);
            shown.push_str(&if self.bold { format!("\x1b[1m{found}\x1b[0m") } else { found });
            at = from + length;
        }
        shown.push_str(&part(at, chars.len()));
        let (before, after) = (snippet.cut_before, snippet.cut_after);
        format!("{}{shown}{}", if before { "…" } else { "" }, if after { "…" } else { "" })
    }
}

/// The end of the session's id and the exchange: what `weir play` takes.
fn named(exchange: &v1::ExchangeSummary) -> String {
    format!("{}/{}", short(&exchange.session_id), exchange.ordinal)
}

pub(crate) fn short(field: &[u8]) -> String {
    let digits = hex::encode(field);
    digits[digits.len().saturating_sub(SHORT_ID_DIGITS)..].to_owned()
}

fn hit_json(hit: &v1::SearchHit) -> Value {
    let mut value = exchange_json(&hit.exchange.clone().unwrap_or_default());
    let snippets = hit.snippets.iter().map(|snippet| {
        json!({
            "of": snippet.of,
            "text": snippet.text,
            "highlights": snippet.highlights.iter().map(|at| [at.start, at.length]).collect::<Vec<_>>(),
            "cut_before": snippet.cut_before,
            "cut_after": snippet.cut_after,
        })
    });
    let more = json!({
        "run": id(&hit.run_id),
        "node": id(&hit.node_id),
        "node_name": hit.node_name,
        "run_host": hit.run_host,
        "principal": hit.principal.as_ref().map(|p| json!({
            "issuer": p.issuer, "subject": p.subject, "verified": !p.verified_by.is_empty(),
        })),
        "snippets": snippets.collect::<Vec<_>>(),
    });
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    value
}
