//! Content digests as OCI writes them: `sha256:<64 lower-case hex>` or `sha512:<128 lower-case hex>`.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// The hash functions that a [`Digest`] may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, which every registry speaks and which the chain swarms.
    Sha256,
    /// SHA-512, allowed by the image specification; proven as a whole.
    Sha512,
}

impl Algorithm {
    /// Length of the digest in bytes.
    #[must_use]
    pub const fn digest_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The name before the colon.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

/// The name of a blob: a hash function and its value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    /// Zero beyond the algorithm's length.
    bytes: [u8; 64],
}

impl Digest {
    /// A SHA-256 digest from its 32 bytes.
    #[must_use]
    pub const fn sha256(value: [u8; 32]) -> Self {
        let mut bytes = [0; 64];
        let mut at = 0;
        while at < 32 {
            bytes[at] = value[at];
            at += 1;
        }
        Self { algorithm: Algorithm::Sha256, bytes }
    }

    /// A SHA-512 digest from its 64 bytes.
    #[must_use]
    pub const fn sha512(bytes: [u8; 64]) -> Self {
        Self { algorithm: Algorithm::Sha512, bytes }
    }

    /// The digest of `data`.
    #[must_use]
    pub fn of(algorithm: Algorithm, data: &[u8]) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::sha256(sha2::Sha256::digest(data).into()),
            Algorithm::Sha512 => Self::sha512(sha2::Sha512::digest(data).into()),
        }
    }

    /// The hash function.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The value, 32 or 64 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.digest_bytes()]
    }

    /// The value as lower-case hex: safe as a file name.
    #[must_use]
    pub fn hex(&self) -> String {
        let mut text = String::with_capacity(self.algorithm.digest_bytes() * 2);
        for byte in self.as_bytes() {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        text
    }

    /// The first twelve hex digits, for logs.
    #[must_use]
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }
}

impl Ord for Digest {
    fn cmp(&self, other: &Self) -> Ordering {
        self.algorithm.cmp(&other.algorithm).then_with(|| self.bytes.cmp(&other.bytes))
    }
}

impl PartialOrd for Digest {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.short())
    }
}

/// Why a text is not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No `algorithm:` in front.
    #[error("a digest is written as algorithm:hex")]
    Form,
    /// Neither sha256 nor sha512.
    #[error("unsupported digest algorithm (sha256 and sha512 are supported)")]
    Algorithm,
    /// Wrong number of hex digits.
    #[error("wrong digest length")]
    Length,
    /// Something other than `0-9a-f`.
    #[error("a digest has lower-case hex digits only")]
    Hex,
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::Form)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::Algorithm),
        };
        if hex.len() != algorithm.digest_bytes() * 2 {
            return Err(DigestError::Length);
        }
        let mut bytes = [0; 64];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self { algorithm, bytes })
    }
}

const fn nibble(digit: u8) -> Result<u8, DigestError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(DigestError::Hex),
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_prints_as_it_was_written() {
        for data in [b"".as_slice(), b"shoal"] {
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let digest = Digest::of(algorithm, data);
                assert_eq!(digest.to_string().parse(), Ok(digest));
            }
        }
    }

    #[test]
    fn malformed_digests_are_refused_with_their_reason() {
        let hex = "0".repeat(64);
        for (text, error) in [
            (String::from("latest"), DigestError::Form),
            (format!("sha384:{hex}"), DigestError::Algorithm),
            (format!("SHA256:{hex}"), DigestError::Algorithm),
            (String::from("sha256:baddigeststring"), DigestError::Length),
            (format!("sha256:{hex}0"), DigestError::Length),
            (format!("sha512:{hex}"), DigestError::Length),
            (format!("sha256:{}", "A".repeat(64)), DigestError::Hex),
            (format!("sha256:{}", "é".repeat(32)), DigestError::Hex),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
    }
}
