//! Methods as words of the record: those that are registered, and a few more.

/// What stands for a method that is none of [`METHODS`]; the record's name tells which.
const OTHER: &str = "OTHER";

/// The IANA registry of HTTP methods, the common ones first, and `PURGE`, `QUERY` of caches and drafts.
const METHODS: [&str; 42] = [
    "GET",
    "POST",
    "PUT",
    "HEAD",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "CONNECT",
    "TRACE",
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    "NOTIFY",
];

/// The word, and whether it says all.
pub(crate) fn of(method: &[u8]) -> (&'static str, bool) {
    match METHODS.iter().find(|known| known.as_bytes() == method) {
        Some(known) => (known, true),
        None => (OTHER, false),
    }
}
