//! The types of `pg_type` by OID, as far as people know them by name.

use std::borrow::Cow;

/// Added to a column's type when its values are in binary format: `int4 binary`. A recording of an exchange can so be
/// shown without the RowDescription, which may have come exchanges earlier.
pub(crate) const BINARY_SUFFIX: &str = " binary";

/// Name, OID, OID of its array.
pub(super) const TYPES: &[(&str, u32, u32)] = &[
    ("bool", 16, 1000),
    ("bytea", 17, 1001),
    ("char", 18, 1002),
    ("name", 19, 1003),
    ("int8", 20, 1016),
    ("int2", 21, 1005),
    ("int4", 23, 1007),
    ("regproc", 24, 1008),
    ("text", 25, 1009),
    ("oid", 26, 1028),
    ("tid", 27, 1010),
    ("xid", 28, 1011),
    ("cid", 29, 1012),
    ("json", 114, 199),
    ("xml", 142, 143),
    ("point", 600, 1017),
    ("cidr", 650, 651),
    ("float4", 700, 1021),
    ("float8", 701, 1022),
    ("unknown", 705, 0),
    ("money", 790, 791),
    ("macaddr", 829, 1040),
    ("inet", 869, 1041),
    ("bpchar", 1042, 1014),
    ("varchar", 1043, 1015),
    ("date", 1082, 1182),
    ("time", 1083, 1183),
    ("timestamp", 1114, 1115),
    ("timestamptz", 1184, 1185),
    ("interval", 1186, 1187),
    ("timetz", 1266, 1270),
    ("bit", 1560, 1561),
    ("varbit", 1562, 1563),
    ("numeric", 1700, 1231),
    ("refcursor", 1790, 2201),
    ("regclass", 2205, 2210),
    ("regtype", 2206, 2211),
    ("record", 2249, 2287),
    ("void", 2278, 0),
    ("uuid", 2950, 2951),
    ("jsonb", 3802, 3807),
];

/// `int4`, `int4[]`, `oid 12345`; what nobody declared is `unspecified`.
pub(crate) fn type_name(oid: u32) -> Cow<'static, str> {
    if oid == 0 {
        return Cow::Borrowed("unspecified");
    }
    for (name, scalar, array) in TYPES {
        if *scalar == oid {
            return Cow::Borrowed(name);
        }
        if *array == oid {
            return Cow::Owned(format!("{name}[]"));
        }
    }
    Cow::Owned(format!("oid {oid}"))
}

/// A column's type with its format.
pub(crate) fn column_type(oid: u32, format: i16) -> Cow<'static, str> {
    let name = type_name(oid);
    if format == 1 { Cow::Owned(format!("{name}{BINARY_SUFFIX}")) } else { name }
}

/// The way back, for rendering: OID and format of what [`column_type`] said.
pub(crate) fn parse_column_type(name: &str) -> (u32, i16) {
    let (name, format) = name.strip_suffix(BINARY_SUFFIX).map_or((name, 0), |name| (name, 1));
    let oid = if let Some(number) = name.strip_prefix("oid ") {
        number.parse().unwrap_or(0)
    } else if let Some(element) = name.strip_suffix("[]") {
        TYPES.iter().find(|(known, ..)| *known == element).map_or(0, |(_, _, array)| *array)
    } else {
        TYPES.iter().find(|(known, ..)| *known == name).map_or(0, |(_, scalar, _)| *scalar)
    };
    (oid, format)
}
