//! Durations and sizes as people write them, both ways.

use std::time::Duration;

const DURATIONS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
];

/// Splits `12abc34d` into `(12, "abc", "34d")`; underscores may group digits.
fn number_and_unit(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let number = text.get(..digits)?.replace('_', "").parse().ok()?;
    let rest = text.get(digits..)?.trim_start();
    let unit = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    Some((number, rest.get(..unit)?, rest.get(unit..)?.trim_start()))
}

/// `500ms`, `30s`, `5m`, `1h30m`, `2d`, `1w`; a plain number means seconds. `None` if it is none of these.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total: u64 = 0;
    let mut first = true;
    while first || !rest.is_empty() {
        let (number, unit, tail) = number_and_unit(rest)?;
        let unit_ms = match unit {
            "" if first && tail.is_empty() => 1000,
            _ => DURATIONS.iter().find(|(name, _)| *name == unit)?.1,
        };
        total = total.checked_add(number.checked_mul(unit_ms)?)?;
        rest = tail;
        first = false;
    }
    Some(Duration::from_millis(total))
}

/// `512`, `64KiB`, `10MB`: 1024 for KiB, MiB, GiB, TiB and 1000 for kB, MB, GB, TB; a plain number means bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit, tail) = number_and_unit(text.trim())?;
    let factor = match unit {
        "" => 1,
        _ => SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    tail.is_empty().then_some(number.checked_mul(factor)?)
}

/// A count; underscores may group digits.
pub fn parse_count(text: &str) -> Option<u64> {
    match number_and_unit(text.trim())? {
        (number, "", "") => Some(number),
        _ => None,
    }
}

/// The shortest exact form of `ms` milliseconds in one unit.
pub fn show_duration(ms: u64) -> String {
    show(ms, &DURATIONS)
}

/// The shortest exact form of `bytes` in one binary unit.
pub fn show_size(bytes: u64) -> String {
    let binary: Vec<_> = SIZES.into_iter().filter(|(name, _)| name.len() != 2).collect();
    show(bytes, &binary)
}

fn show(value: u64, units: &[(&str, u64)]) -> String {
    match units.iter().find(|(_, factor)| value > 0 && value.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", value / factor),
        None => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        let cases = [
            ("0", Some(0)),
            ("30", Some(30_000)),
            ("500ms", Some(500)),
            ("30s", Some(30_000)),
            ("5 m", Some(300_000)),
            ("1h30m", Some(5_400_000)),
            ("1d 2h", Some(93_600_000)),
            ("1_000s", Some(1_000_000)),
            ("", None),
            ("s", None),
            ("5x", None),
            ("1.5h", None),
            ("-5s", None),
            ("5s3", None),
            ("18446744073709551615w", None),
        ];
        for (text, ms) in cases {
            assert_eq!(parse_duration(text), ms.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn sizes_are_read() {
        let cases = [
            ("0", Some(0)),
            ("512", Some(512)),
            ("64KiB", Some(65_536)),
            ("64 kib", Some(65_536)),
            ("10MB", Some(10_000_000)),
            ("1_000B", Some(1000)),
            ("10M", None),
            ("1.5GiB", None),
            ("1KiB2", None),
            ("", None),
            ("99999999999TiB", None),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn shown_values_read_back() {
        for value in [0, 1, 500, 1000, 1024, 60_000, 65_536, 1 << 30, 3_600_000, 86_400_000] {
            assert_eq!(parse_size(&show_size(value)), Some(value));
            if value > 0 {
                assert_eq!(parse_duration(&show_duration(value)), Some(Duration::from_millis(value)));
            }
        }
        assert_eq!(show_size(1 << 20), "1MiB");
        assert_eq!(show_duration(5_400_000), "90m");
    }
}
