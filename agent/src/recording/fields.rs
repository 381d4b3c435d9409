//! Protobuf fields from borrowed values: what prost writes, without building its messages first. As in proto3, a value that is
//! its type's default is left out.

/// A field of a length and as many bytes.
const LENGTH_DELIMITED: u32 = 2;
const VARINT_BYTES_MAX: usize = 10;

pub(crate) fn uint(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        varint(out, u64::from(field << 3));
        varint(out, value);
    }
}

pub(crate) fn flag(out: &mut Vec<u8>, field: u32, value: bool) {
    uint(out, field, u64::from(value));
}

pub(crate) fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    if !value.is_empty() {
        length(out, field, value.len());
        out.extend_from_slice(value);
    }
}

/// Strings are UTF-8; what is not is shown as what it is not.
pub(crate) fn text(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    match std::str::from_utf8(value) {
        Ok(_) => bytes(out, field, value),
        Err(_) => bytes(out, field, String::from_utf8_lossy(value).as_bytes()),
    }
}

/// Tag and length of a field whose bytes are to follow.
pub(crate) fn length(out: &mut Vec<u8>, field: u32, length: usize) {
    varint(out, u64::from(field << 3 | LENGTH_DELIMITED));
    varint(out, length as u64);
}

/// A message, also when nothing is in it. `after` bytes of it are not written here, they follow.
pub(crate) fn message(out: &mut Vec<u8>, field: u32, after: usize, write: impl FnOnce(&mut Vec<u8>)) {
    varint(out, u64::from(field << 3 | LENGTH_DELIMITED));
    // Most messages are short enough for a length of one byte; else what is written makes room for a longer one.
    let place = out.len();
    out.push(0);
    write(out);
    let end = out.len();
    let (encoded, count) = encode((end - place - 1 + after) as u64);
    if count > 1 {
        out.resize(end + count - 1, 0);
        out.copy_within(place + 1..end, place + count);
    }
    out[place..place + count].copy_from_slice(&encoded[..count]);
}

fn varint(out: &mut Vec<u8>, value: u64) {
    if value < 0x80 {
        out.push(value as u8);
        return;
    }
    let (encoded, count) = encode(value);
    out.extend_from_slice(&encoded[..count]);
}

/// Seven bits a byte, the lowest first; all but the last have their highest bit set.
fn encode(mut value: u64) -> ([u8; VARINT_BYTES_MAX], usize) {
    let mut encoded = [0; VARINT_BYTES_MAX];
    let mut count = 0;
    while value >= 0x80 {
        encoded[count] = value as u8 | 0x80;
        value >>= 7;
        count += 1;
    }
    encoded[count] = value as u8;
    (encoded, count + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_any_length_are_those_of_prost() {
        use prost::Message;
        use weir_proto::v1;
        for count in [0, 1, 100, 127, 128, 129, 20_000, 3_000_000] {
            let gap = v1::Gap { reason: "x".repeat(count), bytes: u64::MAX, ..Default::default() };
            let event = v1::Event { at_ns: 1 << 40, kind: Some(v1::event::Kind::Gap(gap.clone())) };
            let mut out = Vec::new();
            uint(&mut out, 1, event.at_ns);
            message(&mut out, 7, 0, |out| {
                text(out, 1, gap.reason.as_bytes());
                uint(out, 2, gap.from_ns);
                uint(out, 4, gap.bytes);
            });
            assert_eq!(out, event.encode_to_vec());
        }
    }
}
