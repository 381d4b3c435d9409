//! Messages as a client and a server write them.

use bytes::Bytes;

use crate::postgres::frame::message;

fn bytes(tag: u8, parts: &[&[u8]]) -> Bytes {
    Bytes::from(message(tag, &parts.concat()))
}

pub(super) fn startup(parameters: &[(&str, &str)]) -> Bytes {
    startup_version(0x0003_0000, parameters)
}

pub(super) fn startup_version(version: u32, parameters: &[(&str, &str)]) -> Bytes {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    Bytes::from([&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat())
}

pub(super) fn ssl_request() -> Bytes {
    Bytes::from_static(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f])
}

pub(super) fn gssenc_request() -> Bytes {
    Bytes::from_static(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30])
}

pub(super) fn cancel_request(key: &[u8]) -> Bytes {
    let length = (12 + key.len() as u32).to_be_bytes();
    Bytes::from([&length[..], &[0x04, 0xd2, 0x16, 0x2e], &77u32.to_be_bytes(), key].concat())
}

pub(super) fn password(secret: &[u8]) -> Bytes {
    bytes(b'p', &[secret, b"\0"])
}

pub(super) fn query(text: &str) -> Bytes {
    bytes(b'Q', &[text.as_bytes(), b"\0"])
}

pub(super) fn parse(name: &str, text: &str, types: &[u32]) -> Bytes {
    let types: Vec<u8> = (types.len() as u16)
        .to_be_bytes()
        .into_iter()
        .chain(types.iter().flat_map(|oid| oid.to_be_bytes()))
        .collect();
    bytes(b'P', &[name.as_bytes(), b"\0", text.as_bytes(), b"\0", &types])
}

/// All values in one format, results in another.
pub(super) fn bind(
    portal: &str,
    statement: &str,
    format: i16,
    values: &[Option<&[u8]>],
    results: i16,
) -> Bytes {
    let mut body = [portal.as_bytes(), b"\0", statement.as_bytes(), b"\0"].concat();
    body.extend([0, 1]);
    body.extend(format.to_be_bytes());
    body.extend((values.len() as u16).to_be_bytes());
    for value in values {
        body.extend(cell(*value));
    }
    body.extend([0, 1]);
    body.extend(results.to_be_bytes());
    bytes(b'B', &[&body])
}

fn cell(value: Option<&[u8]>) -> Vec<u8> {
    value
        .map_or_else(|| (-1i32).to_be_bytes().to_vec(), |v| [&(v.len() as u32).to_be_bytes()[..], v].concat())
}

pub(super) fn describe(kind: u8, name: &str) -> Bytes {
    bytes(b'D', &[&[kind], name.as_bytes(), b"\0"])
}

pub(super) fn close(kind: u8, name: &str) -> Bytes {
    bytes(b'C', &[&[kind], name.as_bytes(), b"\0"])
}

pub(super) fn execute(portal: &str, rows: u32) -> Bytes {
    bytes(b'E', &[portal.as_bytes(), b"\0", &rows.to_be_bytes()])
}

pub(super) fn call(oid: u32, argument: &[u8]) -> Bytes {
    let length = (argument.len() as u32).to_be_bytes();
    bytes(b'F', &[&oid.to_be_bytes(), &[0, 1, 0, 1, 0, 1], &length, argument, &[0, 1]])
}

pub(super) fn sync() -> Bytes {
    bytes(b'S', &[])
}

pub(super) fn flush() -> Bytes {
    bytes(b'H', &[])
}

pub(super) fn terminate() -> Bytes {
    bytes(b'X', &[])
}

pub(super) fn copy_data(data: &[u8]) -> Bytes {
    bytes(b'd', &[data])
}

pub(super) fn copy_done() -> Bytes {
    bytes(b'c', &[])
}

pub(super) fn copy_fail(why: &str) -> Bytes {
    bytes(b'f', &[why.as_bytes(), b"\0"])
}

// The server's.

pub(super) fn authentication(kind: u32, data: &[u8]) -> Bytes {
    bytes(b'R', &[&kind.to_be_bytes(), data])
}

pub(super) fn parameter(name: &str, value: &str) -> Bytes {
    bytes(b'S', &[name.as_bytes(), b"\0", value.as_bytes(), b"\0"])
}

pub(super) fn key_data(key: &[u8]) -> Bytes {
    bytes(b'K', &[&77u32.to_be_bytes(), key])
}

pub(super) fn ready(state: u8) -> Bytes {
    bytes(b'Z', &[&[state]])
}

pub(super) fn columns(columns: &[(&str, u32, i16)]) -> Bytes {
    let mut body = (columns.len() as u16).to_be_bytes().to_vec();
    for (name, oid, format) in columns {
        body.extend(
            [name.as_bytes(), b"\0", &[0; 6], &oid.to_be_bytes(), &[0, 4, 255, 255, 255, 255]].concat(),
        );
        body.extend(format.to_be_bytes());
    }
    bytes(b'T', &[&body])
}

pub(super) fn parameter_types(types: &[u32]) -> Bytes {
    let types: Vec<u8> = types.iter().flat_map(|oid| oid.to_be_bytes()).collect();
    bytes(b't', &[&((types.len() / 4) as u16).to_be_bytes(), &types])
}

pub(super) fn row(values: &[Option<&[u8]>]) -> Bytes {
    let cells: Vec<u8> = values.iter().flat_map(|value| cell(*value)).collect();
    bytes(b'D', &[&(values.len() as u16).to_be_bytes(), &cells])
}

pub(super) fn complete(tag: &str) -> Bytes {
    bytes(b'C', &[tag.as_bytes(), b"\0"])
}

pub(super) fn error(code: &str, message: &str) -> Bytes {
    bytes(b'E', &[b"SERROR\0VERROR\0C", code.as_bytes(), b"\0M", message.as_bytes(), b"\0\0"])
}

pub(super) fn notice(message: &str) -> Bytes {
    bytes(b'N', &[b"SNOTICE\0M", message.as_bytes(), b"\0\0"])
}

pub(super) fn notification(channel: &str, payload: &str) -> Bytes {
    bytes(b'A', &[&9u32.to_be_bytes(), channel.as_bytes(), b"\0", payload.as_bytes(), b"\0"])
}

/// ParseComplete, BindComplete, CloseComplete, NoData, EmptyQueryResponse, PortalSuspended, CopyDone.
pub(super) fn bare(tag: u8) -> Bytes {
    bytes(tag, &[])
}

/// CopyInResponse, CopyOutResponse, CopyBothResponse of one text column.
pub(super) fn copy_response(tag: u8) -> Bytes {
    bytes(tag, &[&[0, 0, 1, 0, 0]])
}

pub(super) fn call_result(value: &[u8]) -> Bytes {
    bytes(b'V', &[&cell(Some(value))])
}

pub(super) fn join(messages: &[Bytes]) -> Bytes {
    Bytes::from(messages.concat())
}

/// What a server says after a startup without a password.
pub(super) fn welcome() -> Bytes {
    join(&[authentication(0, b""), parameter("server_version", "15.8"), key_data(b"k3y!"), ready(b'I')])
}
