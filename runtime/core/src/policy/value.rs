//! Values with a form of their own: sizes, counts, times, and the rules on paths.
//!
//! Input: one TOML value or the text of a flag. Output: a number in the unit that the type names, or an error that says
//! what is accepted. Nothing here knows where a value stands; `file` adds file and line.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Unexpected, Visitor};

/// A number that people write with a unit, or `unlimited`.
pub(super) trait Amount: Sized {
    /// Ends the sentence "expected ...".
    const ACCEPTED: &'static str;
    /// From text.
    fn from_text(text: &str) -> Option<Self>;
    /// From a bare TOML integer.
    fn from_number(number: u64) -> Option<Self>;
}

/// Bytes; `None` is unlimited. Zero is refused below `MIN`, since zero means "no limit" to tmpfs and "nothing runs" to a memory limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes<const MIN: u64>(pub Option<u64>);

/// Bytes that are always finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FiniteBytes(pub u64);

/// A count from 1; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub Option<u64>);

/// Percent of one core from 1; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(pub Option<u32>);

/// Milliseconds from 1; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Millis(pub Option<u64>);

const UNLIMITED: &str = "unlimited";

impl<const MIN: u64> Amount for Bytes<MIN> {
    const ACCEPTED: &'static str = if MIN == 0 {
        "a size such as \"512M\" (K, M, G, T: powers of 1024; no unit: bytes) or \"unlimited\""
    } else {
        "a size above zero such as \"512M\" (K, M, G, T: powers of 1024; no unit: bytes) or \"unlimited\""
    };
    fn from_text(text: &str) -> Option<Self> {
        if text == UNLIMITED { Some(Bytes(None)) } else { Self::from_number(parse_bytes(text)?) }
    }
    fn from_number(number: u64) -> Option<Self> {
        (number >= MIN).then_some(Bytes(Some(number)))
    }
}

impl Amount for FiniteBytes {
    const ACCEPTED: &'static str =
        "a finite size above zero such as \"64M\" (K, M, G, T: powers of 1024; no unit: bytes)";
    fn from_text(text: &str) -> Option<Self> {
        Self::from_number(parse_bytes(text)?)
    }
    fn from_number(number: u64) -> Option<Self> {
        (number > 0).then_some(FiniteBytes(number))
    }
}

impl Amount for Count {
    const ACCEPTED: &'static str = "a whole number from 1 or \"unlimited\"";
    fn from_text(text: &str) -> Option<Self> {
        if text == UNLIMITED { Some(Count(None)) } else { Self::from_number(digits(text)?) }
    }
    fn from_number(number: u64) -> Option<Self> {
        (number > 0).then_some(Count(Some(number)))
    }
}

impl Amount for Percent {
    const ACCEPTED: &'static str = "percent of one core as a whole number from 1 (200 is two cores) or \"unlimited\"";
    fn from_text(text: &str) -> Option<Self> {
        if text == UNLIMITED {
            return Some(Percent(None));
        }
        Self::from_number(digits(text.strip_suffix('%').unwrap_or(text))?)
    }
    fn from_number(number: u64) -> Option<Self> {
        u32::try_from(number).ok().filter(|percent| *percent > 0).map(|percent| Percent(Some(percent)))
    }
}

impl Amount for Millis {
    const ACCEPTED: &'static str = "a time above zero with its unit such as \"10m\" (ms, s, m, h, d) or \"unlimited\"";
    fn from_text(text: &str) -> Option<Self> {
        if text == UNLIMITED {
            return Some(Millis(None));
        }
        let (number, unit) = split_unit(text)?;
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60 * 1000,
            "h" => 60 * 60 * 1000,
            "d" => 24 * 60 * 60 * 1000,
            _ => return None,
        };
        number.checked_mul(unit_ms).filter(|ms| *ms > 0).map(|ms| Millis(Some(ms)))
    }
    fn from_number(_number: u64) -> Option<Self> {
        // A bare number could mean seconds as well as milliseconds: refuse to guess.
        None
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let shift = match unit {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return None,
    };
    // Above i64::MAX the kernel's own interfaces turn sizes negative.
    number.checked_mul(1 << shift).filter(|bytes| i64::try_from(*bytes).is_ok())
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((digits(number)?, unit))
}

fn digits(text: &str) -> Option<u64> {
    // `parse` alone would also take a leading plus sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

struct AmountVisitor<T>(PhantomData<T>);

impl<T: Amount> Visitor<'_> for AmountVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::ACCEPTED)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::from_text(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        u64::try_from(number)
            .ok()
            .and_then(T::from_number)
            .ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        T::from_number(number).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }
}

macro_rules! deserialize_amount {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(AmountVisitor(PhantomData))
            }
        }
    )*};
}
deserialize_amount!(Bytes<0>, Bytes<1>, FiniteBytes, Count, Percent, Millis);

/// A rule on one path: `"PATH"` or `{ path = "PATH", ... }`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PathTable {
    /// Path on the host: absolute, `~/...`, with `${HOME}`, `${CWD}` or `${TMPDIR}`, or relative to the directory of this file.
    pub path: String,
    /// Absolute path in the sandbox; the same as `path` by default. Not in `hide` and `deny`.
    pub dest: Option<String>,
    /// Why, in a few words; shown in plans and explanations.
    pub reason: Option<String>,
    /// Whether a host that lacks the path may go without it. Not in `deny`, which holds for paths that do not exist.
    pub optional: Option<bool>,
}

/// A private memory-backed directory: `"PATH"` or `{ path = "PATH", size = "64M" }`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TmpfsTable {
    /// Absolute path in the sandbox.
    pub path: String,
    /// Its size; `resources.tmp_size` by default.
    #[cfg_attr(feature = "schema", schemars(with = "Option<super::schema::SizeOrNumber>"))]
    pub size: Option<FiniteBytes>,
}

/// Either a bare path or its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<T>(pub T);

/// What a bare string becomes.
pub(super) trait FromPath {
    const ACCEPTED: &'static str;
    fn from_path(path: String) -> Self;
}

impl FromPath for PathTable {
    const ACCEPTED: &'static str = "a path or a table `{ path, dest, reason, optional }`";
    fn from_path(path: String) -> Self {
        PathTable { path, dest: None, reason: None, optional: None }
    }
}

impl FromPath for TmpfsTable {
    const ACCEPTED: &'static str = "a path or a table `{ path, size }`";
    fn from_path(path: String) -> Self {
        TmpfsTable { path, size: None }
    }
}

struct EntryVisitor<T>(PhantomData<T>);

impl<'de, T: FromPath + Deserialize<'de>> Visitor<'de> for EntryVisitor<T> {
    type Value = Entry<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::ACCEPTED)
    }
    fn visit_str<E: de::Error>(self, path: &str) -> Result<Entry<T>, E> {
        Ok(Entry(T::from_path(path.to_owned())))
    }
    fn visit_string<E: de::Error>(self, path: String) -> Result<Entry<T>, E> {
        Ok(Entry(T::from_path(path)))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entry<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Entry)
    }
}

impl<'de, T: FromPath + Deserialize<'de>> Deserialize<'de> for Entry<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EntryVisitor(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        #[track_caller]
        fn check(text: &str, expected: Option<Option<u64>>) {
            assert_eq!(Bytes::<1>::from_text(text).map(|bytes| bytes.0), expected, "{text:?}");
        }
        check("1", Some(Some(1)));
        check("512M", Some(Some(512 << 20)));
        check("1KiB", Some(Some(1024)));
        check("3G", Some(Some(3 << 30)));
        check("unlimited", Some(None));
        for bad in
            ["", "0", "M", "-1", "+1", "1.5G", "1 M", "1m", "12Q", "9999999T", "99999999999999999999", "Unlimited", "١"]
        {
            check(bad, None);
        }
    }

    #[test]
    fn zero_swap_is_a_limit_and_zero_memory_is_not() {
        assert_eq!(Bytes::<0>::from_text("0"), Some(Bytes(Some(0))));
        assert_eq!(Bytes::<1>::from_text("0"), None);
        assert_eq!(FiniteBytes::from_text("0"), None);
        assert_eq!(FiniteBytes::from_text("unlimited"), None);
    }

    #[test]
    fn times() {
        #[track_caller]
        fn check(text: &str, expected: Option<Option<u64>>) {
            assert_eq!(Millis::from_text(text).map(|time| time.0), expected, "{text:?}");
        }
        check("1500ms", Some(Some(1500)));
        check("10m", Some(Some(600_000)));
        check("2h", Some(Some(7_200_000)));
        check("1d", Some(Some(86_400_000)));
        check("unlimited", Some(None));
        for bad in ["", "10", "0s", "s", "-1s", "1h30m", "1 s", "1w", "99999999999999999999d", "18446744073709551615d"]
        {
            check(bad, None);
        }
    }

    #[test]
    fn counts_and_percents() {
        assert_eq!(Count::from_text("64"), Some(Count(Some(64))));
        assert_eq!(Count::from_text("0"), None);
        assert_eq!(Percent::from_text("150%"), Some(Percent(Some(150))));
        assert_eq!(Percent::from_text("5000000000"), None);
    }
}
