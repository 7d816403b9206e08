//! Hashes as people write them: hexadecimal, as many digits as tell them apart.

use std::fmt::Write;
use std::str::FromStr;
use thiserror::Error;

const DIGITS_MAX: usize = 64;

pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}

/// The first hexadecimal digits of a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashPrefix {
    digits: String,
}

/// A text that begins no hash.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{text:?} begins no hash: give 1 to {DIGITS_MAX} hexadecimal digits")]
pub struct HashPrefixError {
    text: String,
}

impl HashPrefix {
    pub fn begins(&self, hash: &[u8]) -> bool {
        hex(hash).starts_with(&self.digits)
    }

    /// The hash itself, where all of its digits are given.
    pub fn whole(&self) -> Option<Vec<u8>> {
        (self.digits.len() == DIGITS_MAX).then(|| self.bytes())
    }

    /// Its digits as bytes; an odd last one is the first half of a byte.
    pub fn bytes(&self) -> Vec<u8> {
        let value = |digit: &u8| char::from(*digit).to_digit(16).expect("checked when read");
        let byte = |pair: &[u8]| value(&pair[0]) * 16 + pair.get(1).map_or(0, value);
        let pairs = self.digits.as_bytes().chunks(2);
        pairs.map(|pair| u8::try_from(byte(pair)).expect("two digits")).collect()
    }

    /// How many of them count.
    pub fn digits(&self) -> u32 {
        u32::try_from(self.digits.len()).expect("a hash has 64")
    }
}

impl FromStr for HashPrefix {
    type Err = HashPrefixError;

    fn from_str(text: &str) -> Result<Self, HashPrefixError> {
        let digits = text.to_ascii_lowercase();
        let good = (1..=DIGITS_MAX).contains(&digits.len())
            && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if good { Ok(Self { digits }) } else { Err(HashPrefixError { text: text.to_owned() }) }
    }
}

impl std::fmt::Display for HashPrefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.digits)
    }
}

#[cfg(test)]
mod tests {
    //! Proves that a prefix is read digit by digit, and anything else refused.

    use super::*;

    #[test]
    fn an_odd_digit_counts_too() {
        let prefix: HashPrefix = "0AB".parse().unwrap();
        assert_eq!((prefix.bytes(), prefix.digits()), (vec![0x0a, 0xb0], 3));
        assert!(prefix.begins(&[0x0a, 0xbf]) && !prefix.begins(&[0x0a, 0xcf]));
    }

    #[test]
    fn what_begins_no_hash_is_refused() {
        for text in ["", "xyz", "0x12", &"a".repeat(65)] {
            assert!(text.parse::<HashPrefix>().is_err(), "{text}");
        }
        let whole: HashPrefix = "a".repeat(64).parse().unwrap();
        assert_eq!(whole.whole(), Some(vec![0xaa; 32]));
        assert_eq!("ab".parse::<HashPrefix>().unwrap().whole(), None);
    }
}
