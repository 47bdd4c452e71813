//! Numbers for people: sizes, rates, times and counts, both ways.

use std::time::Duration;

/// Bytes with a binary unit: `1.4 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Bytes per second.
pub(crate) fn rate(bytes: u64, time: Duration) -> String {
    format!("{}/s", size(per_second(bytes, time) as u64))
}

/// How many a second; 0 if no time has passed.
pub(crate) fn per_second(n: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}

/// A number with its thousands set apart: `20,481`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number and the noun it counts: `1 file`, `20,481 files`.
pub(crate) fn things(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

/// A time in the unit that suits it: `57 µs`, `1.24 s`, `4 min 05 s`.
pub(crate) fn time(t: Duration) -> String {
    let ns = t.as_nanos() as f64;
    match t.as_secs() {
        _ if ns < 1e3 => format!("{ns:.0} ns"),
        _ if ns < 1e4 => format!("{:.1} µs", ns / 1e3),
        _ if ns < 1e6 => format!("{:.0} µs", ns / 1e3),
        _ if ns < 1e7 => format!("{:.2} ms", ns / 1e6),
        _ if ns < 1e9 => format!("{:.0} ms", ns / 1e6),
        s if s < 60 => format!("{:.2} s", t.as_secs_f64()),
        s if s < 3600 => format!("{} min {:02} s", s / 60, s % 60),
        s => format!("{} h {:02} min", s / 3600, s / 60 % 60),
    }
}

/// Reads a size: `4096`, `64K`, `64KiB`, `1M`, `1 GiB`. Units are powers of 1024.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err("a size is a number with an optional unit: 4096, 64K, 1MiB, 2G".to_owned()),
    };
    let number: u64 =
        number.parse().map_err(|_| "a size begins with a number: 4096, 64K, 1MiB".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "the size is too large".to_owned())
}

/// Reads a number of seconds, such as `60` or `0.2`.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 =
        text.trim().trim_end_matches('s').parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "not a time".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_digit_and_a_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(rate(1 << 20, Duration::from_millis(500)), "2.0 MiB/s");
        assert_eq!(rate(1, Duration::ZERO), "0 B/s");
    }

    #[test]
    fn counts_have_commas() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), text);
        }
        assert_eq!(things(1, "file", "files"), "1 file");
        assert_eq!(things(2, "file", "files"), "2 files");
    }

    #[test]
    fn times_choose_their_unit() {
        for (ns, text) in [
            (12, "12 ns"),
            (1_240, "1.2 µs"),
            (57_000, "57 µs"),
            (1_240_000, "1.24 ms"),
            (999_000_000, "999 ms"),
            (1_500_000_000, "1.50 s"),
            (245_000_000_000, "4 min 05 s"),
            (7_500_000_000_000, "2 h 05 min"),
        ] {
            assert_eq!(time(Duration::from_nanos(ns)), text);
        }
    }

    #[test]
    fn sizes_are_read_with_and_without_unit() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("64K", 65536), ("64 KiB", 65536), ("1m", 1 << 20), ("2G", 2 << 30)]
        {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for bad in ["", "K", "1X", "-1", "1.5M", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_seconds("0.25"), Ok(Duration::from_millis(250)));
        assert!(parse_seconds("-1").is_err() && parse_seconds("soon").is_err());
    }
}
