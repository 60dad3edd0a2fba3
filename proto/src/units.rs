//! Sizes and rates as people write them: `512MiB`, `1.5GiB`, `25MB/s`, `10Gbit/s`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes. Written with a binary or decimal unit, or as a plain number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

/// Bytes per second, at least one. Written with a binary or decimal unit of bytes or a decimal unit of bits per second,
/// or as a plain number of bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(pub u64);

impl ByteSize {
    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl Rate {
    /// Bytes per second.
    #[must_use]
    pub const fn bytes_per_second(self) -> u64 {
        self.0
    }
}

/// Why a text is not a size or a rate. Says which forms are allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a number with a known unit of size.
    #[error(
        "{0:?} is not a size: write a number of bytes, or a number with one of \
         B, kB, MB, GB, TB, KiB, MiB, GiB, TiB (for example 512MiB)"
    )]
    Size(String),
    /// Not a number with a known unit of rate.
    #[error(
        "{0:?} is not a rate: write a number of bytes per second, or a number with one of B/s, kB/s, MB/s, GB/s, KiB/s, \
         MiB/s, GiB/s, bit/s, kbit/s, Mbit/s, Gbit/s (for example 25MB/s)"
    )]
    Rate(String),
    /// A rate below one byte per second.
    #[error("the rate {0:?} is less than one byte per second: leave it out for no limit")]
    NoRate(String),
    /// More than 2^64 - 1 bytes.
    #[error("{0:?} is too large")]
    TooLarge(String),
}

/// A unit: its name and how many eighths of a byte (bits) it is.
type Unit = (&'static str, u64);

const BYTE: u64 = 8;

/// Units of size. For printing, earlier ones are preferred.
const SIZES: [Unit; 9] = [
    ("TiB", BYTE << 40),
    ("GiB", BYTE << 30),
    ("MiB", BYTE << 20),
    ("KiB", BYTE << 10),
    ("TB", BYTE * 1_000_000_000_000),
    ("GB", BYTE * 1_000_000_000),
    ("MB", BYTE * 1_000_000),
    ("kB", BYTE * 1000),
    ("B", BYTE),
];

/// Other common spellings, taken in but never printed; the short ones are those of Kubernetes.
const SIZE_ALIASES: [Unit; 5] =
    [("KB", BYTE * 1000), ("Ti", BYTE << 40), ("Gi", BYTE << 30), ("Mi", BYTE << 20), ("Ki", BYTE << 10)];

/// Units of rate. For printing, earlier ones are preferred.
const RATES: [Unit; 11] = [
    ("GiB/s", BYTE << 30),
    ("MiB/s", BYTE << 20),
    ("KiB/s", BYTE << 10),
    ("GB/s", BYTE * 1_000_000_000),
    ("MB/s", BYTE * 1_000_000),
    ("kB/s", BYTE * 1000),
    ("B/s", BYTE),
    ("Gbit/s", 1_000_000_000),
    ("Mbit/s", 1_000_000),
    ("kbit/s", 1000),
    ("bit/s", 1),
];

/// Other common spellings, taken in but never printed.
const RATE_ALIASES: [Unit; 1] = [("KB/s", BYTE * 1000)];

/// Digits behind the point that are taken in; more cannot matter in 64 bits.
const DECIMALS_MAX: usize = 18;

enum Number {
    Malformed,
    TooLarge,
}

/// The bytes that a text means, rounded down to whole ones.
fn parse(text: &str, units: &[Unit], aliases: &[Unit]) -> Result<u64, Number> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim_start();
    let bits = if unit.is_empty() {
        BYTE
    } else {
        units.iter().chain(aliases).find(|(name, _)| *name == unit).ok_or(Number::Malformed)?.1
    };
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let malformed = whole.is_empty() || decimals.is_empty() || decimals.contains('.');
    if malformed || decimals.len() > DECIMALS_MAX {
        return Err(Number::Malformed);
    }
    let whole: u64 = whole.parse().map_err(|_| Number::TooLarge)?;
    let decimals: u128 = format!("{decimals:0<DECIMALS_MAX$}").parse().map_err(|_| Number::Malformed)?;
    // At most 2^64 * 2^43 and 10^18 * 2^43: both fit.
    let bits = u128::from(bits);
    let total = u128::from(whole) * bits + decimals * bits / 10_u128.pow(DECIMALS_MAX as u32);
    u64::try_from(total / u128::from(BYTE)).map_err(|_| Number::TooLarge)
}

/// Writes the shortest number of at most two decimals that is exact in one of the units.
fn print(f: &mut fmt::Formatter<'_>, bytes: u64, units: &[Unit]) -> fmt::Result {
    let exact = |(name, bits): &Unit| {
        let hundredths = u128::from(bytes) * u128::from(BYTE) * 100;
        let bits = u128::from(*bits);
        if hundredths % bits != 0 || hundredths / bits < 100 {
            return None;
        }
        let (whole, decimals) = (hundredths / bits / 100, hundredths / bits % 100);
        let number = match decimals {
            0 => whole.to_string(),
            tenths if tenths % 10 == 0 => format!("{whole}.{}", tenths / 10),
            _ => format!("{whole}.{decimals:02}"),
        };
        Some((number, *name))
    };
    // Of equally short ones, the first.
    let shortest = units.iter().filter_map(exact).min_by_key(|(number, _)| number.len());
    match shortest {
        Some((number, unit)) => f.pad(&format!("{number}{unit}")),
        None => f.pad(&bytes.to_string()),
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match parse(text, &SIZES, &SIZE_ALIASES) {
            Ok(bytes) => Ok(Self(bytes)),
            Err(Number::Malformed) => Err(UnitError::Size(text.to_owned())),
            Err(Number::TooLarge) => Err(UnitError::TooLarge(text.to_owned())),
        }
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match parse(text, &RATES, &RATE_ALIASES) {
            Ok(0) => Err(UnitError::NoRate(text.to_owned())),
            Ok(bytes) => Ok(Self(bytes)),
            Err(Number::Malformed) => Err(UnitError::Rate(text.to_owned())),
            Err(Number::TooLarge) => Err(UnitError::TooLarge(text.to_owned())),
        }
    }
}

/// Exact, and read back as the same size.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, self.0, &SIZES)
    }
}

/// Exact, and read back as the same rate.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, self.0, &RATES)
    }
}

/// Takes a text or a plain number for anything that can be read from a text.
struct TextOrNumber<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = UnitError>> de::Visitor<'_> for TextOrNumber<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of bytes or a text such as \"25MB\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

macro_rules! as_text {
    ($($name:ident),+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(TextOrNumber(std::marker::PhantomData))
            }
        }
    )+};
}

as_text!(ByteSize, Rate);

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("1kB", 1000),
            ("1KB", 1000),
            ("1KiB", 1024),
            ("512MiB", 512 << 20),
            ("512Mi", 512 << 20),
            (" 512 MiB ", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("10GB", 10_000_000_000),
            ("0.25TB", 250_000_000_000),
            ("2TiB", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn rates_are_read_in_bytes_and_bits() {
        for (text, bytes) in [
            ("25MB/s", 25_000_000),
            ("1MiB/s", 1 << 20),
            ("10Gbit/s", 1_250_000_000),
            ("2.5Gbit/s", 312_500_000),
            ("100Mbit/s", 12_500_000),
            ("8bit/s", 1),
            ("64kbit/s", 8000),
            ("0.5KiB/s", 512),
            ("1000", 1000),
        ] {
            assert_eq!(text.parse(), Ok(Rate(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused_with_the_allowed_forms() {
        for text in [
            "",
            "MiB",
            "-1",
            "1e9",
            "1.",
            ".5",
            "1.2.3",
            "1Mb",
            "1 mib",
            "12 parsecs",
            "1MB/s",
            "0x10",
            "1.0000000000000000001",
        ] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert_eq!(error, UnitError::Size(text.to_owned()));
            assert!(error.to_string().contains("KiB, MiB, GiB"), "{error}");
        }
        for text in ["18446744073709551616", "16777216TiB", "99999999999999999999GB"] {
            assert_eq!(text.parse::<ByteSize>(), Err(UnitError::TooLarge(text.to_owned())));
        }
    }

    #[test]
    fn what_is_not_a_rate_is_refused_with_the_allowed_forms() {
        for text in ["25MB", "10Gbps", "10Gb/s", "fast", "1Gibit/s"] {
            let error = text.parse::<Rate>().unwrap_err();
            assert_eq!(error, UnitError::Rate(text.to_owned()));
            assert!(error.to_string().contains("Mbit/s"), "{error}");
        }
        for text in ["0", "0MB/s", "7bit/s", "0.9B/s"] {
            assert_eq!(text.parse::<Rate>(), Err(UnitError::NoRate(text.to_owned())));
        }
    }

    #[test]
    fn sizes_and_rates_print_as_people_would_write_them() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1B"),
            (1000, "1kB"),
            (1024, "1KiB"),
            (1536, "1.5KiB"),
            (512 << 20, "512MiB"),
            (3 << 29, "1.5GiB"),
            (10_000_000_000, "10GB"),
            (123_457, "123457B"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        for (bytes, text) in
            [(25_000_000, "25MB/s"), (1 << 20, "1MiB/s"), (1_250_000_000, "10Gbit/s"), (125_000_000, "1Gbit/s")]
        {
            assert_eq!(Rate(bytes).to_string(), text);
        }
    }

    #[test]
    fn configuration_may_use_texts_and_plain_numbers() {
        assert_eq!(serde_json::from_str::<ByteSize>("\"1GiB\"").unwrap(), ByteSize(1 << 30));
        assert_eq!(serde_json::from_str::<ByteSize>("4096").unwrap(), ByteSize(4096));
        assert_eq!(serde_json::from_str::<Rate>("\"25MB/s\"").unwrap(), Rate(25_000_000));
        assert_eq!(serde_json::to_string(&Rate(25_000_000)).unwrap(), "\"25MB/s\"");
        for refused in ["0", "-1", "\"25MB\"", "1.5", "true"] {
            assert!(serde_json::from_str::<Rate>(refused).is_err(), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(bytes in prop_oneof![any::<u64>(), 1..5000_u64, (1..5000_u64).prop_map(|n| n << 18), (1..5000_u64).prop_map(|n| n * 10_000)]) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
            if bytes > 0 {
                prop_assert_eq!(Rate(bytes).to_string().parse(), Ok(Rate(bytes)));
            }
        }

        #[test]
        fn no_text_breaks_the_reader(text in "[0-9. ]{0,30}[KkMGTi]{0,2}(B|bit)?(/s)?|\\PC{0,20}") {
            if let Ok(size) = text.parse::<ByteSize>() {
                prop_assert_eq!(size.to_string().parse(), Ok(size));
            }
            if let Ok(rate) = text.parse::<Rate>() {
                prop_assert!(rate.0 > 0);
            }
        }
    }
}
