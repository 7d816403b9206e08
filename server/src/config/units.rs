//! Values as people write them: `"100GiB"`, `"50ms"`, `"group"`.

use refrain_store::drive::IoEngine;
use refrain_store::engine::Durability;
use serde::de::{self, Deserializer, Visitor};
use std::fmt;
use std::time::Duration;
use thiserror::Error;

/// Why a text is no value.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnitError {
    #[error("{text:?} is no size: write bytes, or a number and its unit as in 100GiB")]
    Size { text: String },
    #[error("{text:?} is no time: write a whole number and its unit as in 10s, 50ms or 2m")]
    Duration { text: String },
    #[error("{text:?} is no I/O engine: write auto, uring or blocking")]
    IoEngine { text: String },
    #[error("{text:?} is no durability: write none, group or sync")]
    Durability { text: String },
}

/// Bytes, as in `100GiB`, `1.5 TB` or `4096`.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let wrong = || UnitError::Size { text: text.into() };
    // A number that is too large saturates in the parser, and is refused here.
    match text.trim().parse::<bytesize::ByteSize>() {
        Ok(size) if size.as_u64() < u64::MAX => Ok(size.as_u64()),
        Ok(_) | Err(_) => Err(wrong()),
    }
}

/// A time, as in `10s`; the units are us, ms, s, m and h.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let wrong = || UnitError::Duration { text: text.into() };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let microseconds = match unit.trim_start() {
        "us" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(microseconds).map(Duration::from_micros).ok_or_else(wrong)
}

pub fn parse_io_engine(text: &str) -> Result<IoEngine, UnitError> {
    match text {
        "auto" => Ok(IoEngine::Auto),
        "uring" => Ok(IoEngine::Uring),
        "blocking" => Ok(IoEngine::Blocking),
        _ => Err(UnitError::IoEngine { text: text.into() }),
    }
}

pub fn parse_durability(text: &str) -> Result<Durability, UnitError> {
    match text {
        "none" => Ok(Durability::None),
        "group" => Ok(Durability::Group),
        "sync" => Ok(Durability::Sync),
        _ => Err(UnitError::Durability { text: text.into() }),
    }
}

/// A value that is written as a text, and as a plain number where `from_number` takes one.
struct Written<T> {
    expected: &'static str,
    from_text: fn(&str) -> Result<T, UnitError>,
    from_number: Option<fn(u64) -> T>,
}

impl<T> Visitor<'_> for Written<T> {
    type Value = T;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.from_text)(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        match (self.from_number, u64::try_from(number)) {
            (Some(from_number), Ok(number)) => Ok(from_number(number)),
            (None, _) | (_, Err(_)) => Err(E::invalid_value(de::Unexpected::Signed(number), &self)),
        }
    }
}

const SIZE: Written<u64> = Written {
    expected: "bytes, as a number or as in \"100GiB\"",
    from_text: parse_size,
    from_number: Some(|bytes| bytes),
};

pub(super) fn size<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    from.deserialize_any(SIZE)
}

pub(super) fn optional_size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    size(from).map(Some)
}

pub(super) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let expected = "a time as in \"10s\" or \"50ms\"";
    from.deserialize_any(Written { expected, from_text: parse_duration, from_number: None })
}

pub(super) fn io_engine<'de, D: Deserializer<'de>>(from: D) -> Result<IoEngine, D::Error> {
    let expected = "\"auto\", \"uring\" or \"blocking\"";
    from.deserialize_any(Written { expected, from_text: parse_io_engine, from_number: None })
}

pub(super) fn durability<'de, D: Deserializer<'de>>(from: D) -> Result<Durability, D::Error> {
    let expected = "\"none\", \"group\" or \"sync\"";
    from.deserialize_any(Written { expected, from_text: parse_durability, from_number: None })
}
