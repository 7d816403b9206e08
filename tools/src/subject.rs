//! What `refrain inspect` is asked about: blocks by their hash, or one segment.

use crate::hex::HashPrefix;
use std::str::FromStr;
use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Block(HashPrefix),
    /// Without a drive: of a store that has one drive alone.
    Segment {
        drive: Option<u32>,
        segment: u32,
    },
}

/// A text that names neither.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{text:?} names no block and no segment: give the first hex digits of a sequence hash, \
     DRIVE/SEGMENT as in 0/12, or a file's name as in segment-00000012"
)]
pub struct SubjectError {
    text: String,
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let segment =
            |drive, number: &str| Some(Self::Segment { drive, segment: number.parse().ok()? });
        let found = if let Some(number) = text.strip_prefix("segment-") {
            segment(None, number)
        } else if let Some((drive, number)) = text.split_once('/') {
            drive.parse().ok().and_then(|drive| segment(Some(drive), number))
        } else {
            text.parse().ok().map(Self::Block)
        };
        found.ok_or_else(|| SubjectError { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    //! Proves which texts name what.

    use super::*;

    #[test]
    fn blocks_and_segments_are_told_apart() {
        let segment = |drive, segment| Ok(Subject::Segment { drive, segment });
        assert_eq!("0/12".parse(), segment(Some(0), 12));
        assert_eq!("segment-00000012".parse(), segment(None, 12));
        assert!(matches!("00ff".parse(), Ok(Subject::Block(_))));
        for text in ["", "zz", "0/", "/1", "segment-", "0/12/3", "0/-1"] {
            assert!(text.parse::<Subject>().is_err(), "{text}");
        }
    }
}
