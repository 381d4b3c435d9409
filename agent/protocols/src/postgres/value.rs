//! Values as people read them: text as it is, the common types' binary form decoded, anything else as hex.
//!
//! Binary forms are those of the types' send functions in the server.

use std::fmt::Write as _;

use super::frame::Fields;
use super::types::TYPES;

/// The value, in at most about `bytes_max` bytes, and whether it was cut.
pub(crate) fn shown(oid: u32, format: i16, bytes: &[u8], bytes_max: usize) -> (String, bool) {
    if format == 0 {
        return text(bytes, bytes_max);
    }
    let mut out = String::new();
    if binary(oid, bytes, bytes_max, &mut out).is_some() {
        let cut = out.len() > bytes_max;
        if cut {
            truncate(&mut out, bytes_max);
        }
        return (out, cut);
    }
    hex(bytes, bytes_max)
}

fn text(bytes: &[u8], bytes_max: usize) -> (String, bool) {
    let cut = bytes.len() > bytes_max;
    let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(bytes_max)]).into_owned();
    if cut {
        // A character that the cut went through.
        while text.ends_with(char::REPLACEMENT_CHARACTER) {
            text.pop();
        }
    }
    (text, cut)
}

fn hex(bytes: &[u8], bytes_max: usize) -> (String, bool) {
    let shown = bytes.len().min(bytes_max / 2);
    let mut out = String::with_capacity(2 + shown * 2);
    out.push_str("\\x");
    for byte in &bytes[..shown] {
        let _ = write!(out, "{byte:02x}");
    }
    (out, shown < bytes.len())
}

fn truncate(text: &mut String, bytes_max: usize) {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

/// Decodes; `None` when the bytes are not that type's binary form or the type is not known.
fn binary(oid: u32, bytes: &[u8], bytes_max: usize, out: &mut String) -> Option<()> {
    let mut fields = Fields::at(bytes, 0);
    match oid {
        16 => out.push_str(if int(bytes)? == 0 { "f" } else { "t" }),
        18 | 19 | 25 | 114 | 142 | 705 | 1042 | 1043 | 1790 => {
            let (shown, cut) = text(bytes, bytes_max);
            out.push_str(&shown);
            if cut {
                // Says to the caller that there is more.
                out.extend(std::iter::repeat_n('.', bytes_max + 1 - out.len().min(bytes_max)));
            }
        }
        20 | 21 | 23 => write!(out, "{}", int(bytes)?).ok()?,
        24 | 26 | 28 | 29 | 2205 | 2206 => write!(out, "{}", fields.u32()?).ok()?,
        700 => write!(out, "{}", f32::from_bits(fields.u32()?)).ok()?,
        701 => write!(out, "{}", f64::from_bits(long(&mut fields)?.cast_unsigned())).ok()?,
        790 => {
            let cents = long(&mut fields)?;
            let sign = if cents < 0 { "-" } else { "" };
            write!(out, "{sign}{}.{:02}", (cents / 100).unsigned_abs(), (cents % 100).unsigned_abs()).ok()?;
        }
        1082 => date(i64::from(fields.i32()?), out),
        1083 => time_of_day(long(&mut fields)?, out),
        1114 | 1184 => timestamp(long(&mut fields)?, oid == 1184, out),
        1186 => interval(&mut fields, out)?,
        1266 => {
            time_of_day(long(&mut fields)?, out);
            let west_s = fields.i32()?;
            let sign = if west_s > 0 { '-' } else { '+' };
            let minutes = west_s.unsigned_abs() / 60;
            write!(out, "{sign}{:02}:{:02}", minutes / 60, minutes % 60).ok()?;
        }
        1700 => numeric(&mut fields, bytes_max, out)?,
        2950 => uuid(fields.take(16)?, out),
        3802 => {
            // A version byte, then JSON.
            (fields.u8()? == 1).then_some(())?;
            let (shown, cut) = text(fields.rest(), bytes_max);
            out.push_str(&shown);
            if cut {
                out.extend(std::iter::repeat_n('.', bytes_max + 1 - out.len().min(bytes_max)));
            }
            fields.take(fields.rest().len())?;
        }
        _ if TYPES.iter().any(|(_, _, array)| *array == oid) => array(&mut fields, bytes_max, out)?,
        _ => return None,
    }
    let fixed = matches!(
        oid,
        24 | 26 | 28 | 29 | 2205 | 2206 | 700 | 701 | 790 | 1082 | 1083 | 1114 | 1184 | 1186 | 1266 | 2950
    );
    (!fixed || fields.rest().is_empty()).then_some(())
}

fn int(bytes: &[u8]) -> Option<i64> {
    match *bytes {
        [a] => Some(i64::from(a.cast_signed())),
        [a, b] => Some(i64::from(i16::from_be_bytes([a, b]))),
        [a, b, c, d] => Some(i64::from(i32::from_be_bytes([a, b, c, d]))),
        [a, b, c, d, e, f, g, h] => Some(i64::from_be_bytes([a, b, c, d, e, f, g, h])),
        _ => None,
    }
}

fn long(fields: &mut Fields<'_>) -> Option<i64> {
    int(fields.take(8)?)
}

const DAY_US: i64 = 86_400_000_000;
/// Days from 0000-03-01 to 2000-01-01, PostgreSQL's epoch, in the proleptic Gregorian calendar.
const EPOCH_DAYS: i64 = 730_425;

/// Years are counted from March so that the leap day is the last of its year.
fn date(days: i64, out: &mut String) {
    match i32::try_from(days) {
        Ok(i32::MAX) => return out.push_str("infinity"),
        Ok(i32::MIN) => return out.push_str("-infinity"),
        _ => {}
    }
    let days = days + EPOCH_DAYS;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    if year > 0 {
        let _ = write!(out, "{year:04}-{month:02}-{day:02}");
    } else {
        let _ = write!(out, "{:04}-{month:02}-{day:02} BC", 1 - year);
    }
}

fn time_of_day(us: i64, out: &mut String) {
    let (s, us) = (us.div_euclid(1_000_000), us.rem_euclid(1_000_000));
    let _ = write!(out, "{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
    if us != 0 {
        let fraction = format!("{us:06}");
        let _ = write!(out, ".{}", fraction.trim_end_matches('0'));
    }
}

fn timestamp(us: i64, zone: bool, out: &mut String) {
    match us {
        i64::MAX => return out.push_str("infinity"),
        i64::MIN => return out.push_str("-infinity"),
        _ => {}
    }
    let mut day = String::new();
    date(us.div_euclid(DAY_US), &mut day);
    let (day, era) = day.strip_suffix(" BC").map_or((day.as_str(), ""), |day| (day, " BC"));
    out.push_str(day);
    out.push(' ');
    time_of_day(us.rem_euclid(DAY_US), out);
    if zone {
        out.push_str("+00");
    }
    out.push_str(era);
}

fn interval(fields: &mut Fields<'_>, out: &mut String) -> Option<()> {
    let us = long(fields)?;
    let (days, months) = (fields.i32()?, fields.i32()?);
    let sign = if us < 0 { "-" } else { "" };
    write!(out, "{months} mons {days} days {sign}").ok()?;
    time_of_day(i64::try_from(us.unsigned_abs()).unwrap_or(i64::MAX), out);
    Some(())
}

fn uuid(bytes: &[u8], out: &mut String) {
    for (n, byte) in bytes.iter().enumerate() {
        if matches!(n, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        let _ = write!(out, "{byte:02x}");
    }
}

/// Digits in base 10 000, the first has this weight; then as many decimals as the scale says.
fn numeric(fields: &mut Fields<'_>, bytes_max: usize, out: &mut String) -> Option<()> {
    let count = fields.count()?;
    let (weight, sign, scale) = (i32::from(fields.i16()?), fields.i16()?.cast_unsigned(), fields.count()?);
    let special = match sign {
        0xc000 => "NaN",
        0xd000 => "Infinity",
        0xf000 => "-Infinity",
        0x4000 => "-",
        0 => "",
        _ => return None,
    };
    out.push_str(special);
    if special.len() > 1 {
        return Some(());
    }
    let mut digits = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        let digit = fields.i16()?;
        (0..10_000).contains(&digit).then_some(())?;
        digits.push(digit);
    }
    let digit =
        |place: i32| usize::try_from(place).ok().and_then(|place| digits.get(place)).copied().unwrap_or(0);
    if weight < 0 {
        out.push('0');
    }
    for place in 0..=weight.max(-1) {
        if out.len() > bytes_max {
            return Some(());
        }
        let _ = if place == 0 { write!(out, "{}", digit(0)) } else { write!(out, "{:04}", digit(place)) };
    }
    if scale > 0 {
        out.push('.');
        let mut decimals = String::new();
        let mut place = weight + 1;
        while decimals.len() < scale && decimals.len() <= bytes_max {
            let _ = write!(decimals, "{:04}", digit(place));
            place += 1;
        }
        decimals.truncate(scale);
        out.push_str(&decimals);
    }
    Some(())
}

/// Elements of one dimension, or of several flattened row by row, in braces.
fn array(fields: &mut Fields<'_>, bytes_max: usize, out: &mut String) -> Option<()> {
    let dimensions = usize::try_from(fields.i32()?).ok().filter(|n| *n <= 6)?;
    fields.i32()?;
    let element = fields.u32()?;
    (!TYPES.iter().any(|(_, _, array)| *array == element && element != 0)).then_some(())?;
    for _ in 0..dimensions {
        fields.take(8)?;
    }
    out.push('{');
    let mut first = true;
    while !fields.rest().is_empty() {
        if !first {
            out.push(',');
        }
        first = false;
        let length = fields.i32()?;
        match usize::try_from(length) {
            Err(_) => out.push_str("NULL"),
            Ok(length) => {
                let value = fields.take(length)?;
                let left = bytes_max.saturating_sub(out.len());
                let (shown, _) = shown(element, 1, value, left);
                out.push_str(&shown);
            }
        }
        if out.len() > bytes_max {
            return Some(());
        }
    }
    out.push('}');
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::types::{column_type, parse_column_type};
    use super::*;

    fn decoded(name: &str, bytes: &[u8]) -> String {
        let (oid, _) = parse_column_type(name);
        assert_ne!(oid, 0, "{name}");
        shown(oid, 1, bytes, 200).0
    }

    #[test]
    fn binary_values_read_like_the_servers_text() {
        assert_eq!(decoded("bool", &[1]), "t");
        assert_eq!(decoded("int2", &[0xff, 0xfe]), "-2");
        assert_eq!(decoded("int4", &7i32.to_be_bytes()), "7");
        assert_eq!(decoded("int8", &i64::MIN.to_be_bytes()), "-9223372036854775808");
        assert_eq!(decoded("float8", &1.5f64.to_be_bytes()), "1.5");
        assert_eq!(decoded("text", "grün".as_bytes()), "grün");
        assert_eq!(decoded("bytea", &[0xde, 0xad]), "\\xdead");
        assert_eq!(decoded("date", &0i32.to_be_bytes()), "2000-01-01");
        assert_eq!(decoded("date", &8820i32.to_be_bytes()), "2024-02-24");
        assert_eq!(decoded("date", &59i32.to_be_bytes()), "2000-02-29");
        assert_eq!(decoded("date", &(-730_119i32).to_be_bytes()), "0001-01-01");
        assert_eq!(decoded("date", &(-730_120i32).to_be_bytes()), "0001-12-31 BC");
        assert_eq!(decoded("timestamptz", &(-1i64).to_be_bytes()), "1999-12-31 23:59:59.999999+00");
        assert_eq!(decoded("time", &3_600_500_000i64.to_be_bytes()), "01:00:00.5");
        assert_eq!(decoded("uuid", &[0x11; 16]), "11111111-1111-1111-1111-111111111111");
        assert_eq!(decoded("jsonb", b"\x01{\"a\":1}"), "{\"a\":1}");
        assert_eq!(decoded("oid", &u32::MAX.to_be_bytes()), "4294967295");
    }

    fn number(weight: i16, sign: u16, scale: i16, digits: &[i16]) -> String {
        let mut bytes = (digits.len() as i16).to_be_bytes().to_vec();
        bytes.extend(weight.to_be_bytes());
        bytes.extend(sign.to_be_bytes());
        bytes.extend(scale.to_be_bytes());
        bytes.extend(digits.iter().flat_map(|digit| digit.to_be_bytes()));
        decoded("numeric", &bytes)
    }

    #[test]
    fn numerics() {
        assert_eq!(number(0, 0, 0, &[]), "0");
        assert_eq!(number(0, 0x4000, 2, &[12, 3400]), "-12.34");
        assert_eq!(number(1, 0, 0, &[12, 34]), "120034");
        assert_eq!(number(-1, 0, 4, &[5]), "0.0005");
        assert_eq!(number(-2, 0, 8, &[1234]), "0.00001234");
        assert_eq!(number(2, 0, 1, &[1]), "100000000.0");
        assert_eq!(number(0, 0xc000, 0, &[]), "NaN");
        assert!(number(i16::MAX, 0, i16::MAX, &[1]).len() <= 200);
    }

    #[test]
    fn arrays_are_lists() {
        let mut bytes = vec![0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 2, 0, 0, 0, 1];
        bytes.extend([0, 0, 0, 4, 0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(decoded("int4[]", &bytes), "{9,NULL}");
        bytes.truncate(26);
        assert!(decoded("int4[]", &bytes).starts_with("\\x"), "what does not decode is hex");
    }

    #[test]
    fn long_values_are_cut_at_a_character() {
        let (shown, cut) = shown(25, 0, "ääää".as_bytes(), 5);
        assert_eq!((shown.as_str(), cut), ("ää", true));
    }

    #[test]
    fn type_names_go_both_ways() {
        for (_, scalar, array) in TYPES {
            for oid in [*scalar, *array] {
                if oid != 0 {
                    assert_eq!(parse_column_type(&column_type(oid, 1)), (oid, 1));
                }
            }
        }
        assert_eq!(parse_column_type(&column_type(99_999, 0)), (99_999, 0));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(oid in 0u32..4000, bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80), max in 0usize..64) {
            let (text, _) = shown(oid, 1, &bytes, max);
            proptest::prop_assert!(text.len() <= max + 64);
        }
    }
}
