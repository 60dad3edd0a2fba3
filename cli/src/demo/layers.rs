//! The layers of a demo's image: how many, or of which sizes.

use std::{fmt, str::FromStr};

use shoal_proto::units::ByteSize;

use super::image::{ImageError, LAYER_MIN, LAYERS_MAX, TAR_BLOCK};

/// Size of an image for which none is given.
const SIZE: ByteSize = ByteSize(512 << 20);

/// What `--layers` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layers {
    /// So many, of uneven sizes.
    Count(usize),
    /// Of these sizes, lowest first.
    Sizes(Vec<ByteSize>),
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(count) = text.trim().parse() {
            return match count {
                1..=LAYERS_MAX => Ok(Self::Count(count)),
                _ => Err(format!("an image has 1 to {LAYERS_MAX} layers (a size needs a unit, for example 4096B)")),
            };
        }
        let sizes: Result<Vec<ByteSize>, _> = text.split(',').map(str::parse).collect();
        let sizes = sizes.map_err(|error| format!("{error}; or write how many layers, for example 3"))?;
        match sizes.iter().find(|size| size.0 < LAYER_MIN) {
            Some(size) => Err(format!("a layer of {size} is too small for a tar: {LAYER_MIN} bytes at least")),
            None if sizes.len() > LAYERS_MAX => Err(format!("an image has at most {LAYERS_MAX} layers")),
            None => Ok(Self::Sizes(sizes)),
        }
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Sizes(sizes) => {
                let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
                f.write_str(&sizes.join(","))
            }
        }
    }
}

impl Layers {
    /// Bytes of each layer, in an image of `size`; sizes of layers have a sum of their own.
    ///
    /// # Errors
    /// [`ImageError::Shape`]: the size is too small for so many.
    pub fn sizes(&self, size: Option<ByteSize>) -> Result<Vec<u64>, ImageError> {
        match self {
            Self::Count(count) => uneven(size.unwrap_or(SIZE).0, *count),
            Self::Sizes(sizes) => Ok(sizes.iter().map(|size| size.0).collect()),
        }
    }
}

/// Uneven sizes, as images have: the first layer is the largest, each next one smaller (1, 1/2, 1/3, ...). They add up to
/// `bytes`, rounded down to a multiple of 512.
///
/// # Errors
/// [`ImageError::Shape`]: no layers, too many, or too few bytes for them.
pub fn uneven(bytes: u64, layers: usize) -> Result<Vec<u64>, ImageError> {
    let shape = ImageError::Shape { bytes, layers };
    if layers == 0 || layers > LAYERS_MAX {
        return Err(shape);
    }
    let count = layers as u64;
    let spare = bytes.checked_sub(count * LAYER_MIN).ok_or(shape)?;
    let scale = 1 << 20;
    let weights: Vec<u64> = (1..=count).map(|rank| scale / rank).collect();
    let total: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    let mut sizes: Vec<u64> = weights
        .iter()
        .map(|&weight| {
            let share = u128::from(spare) * u128::from(weight) / total;
            let share = u64::try_from(share).unwrap_or(spare);
            LAYER_MIN + share / TAR_BLOCK * TAR_BLOCK
        })
        .collect();
    let rest = bytes - sizes.iter().sum::<u64>();
    sizes[0] += rest / TAR_BLOCK * TAR_BLOCK;
    Ok(sizes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn layers_are_uneven_and_add_up_to_the_size_asked_for() {
        for (bytes, layers) in [(4096, 1), (3 << 20, 3), (512 << 20, 5), (1 << 40, LAYERS_MAX), (4096 * 127 + 512, 127)]
        {
            let sizes = uneven(bytes, layers).unwrap();
            assert_eq!(sizes.len(), layers);
            assert_eq!(sizes.iter().sum::<u64>(), bytes);
            assert!(sizes.iter().all(|size| *size >= LAYER_MIN && size % TAR_BLOCK == 0));
        }
        assert!(uneven(3 << 20, 3).unwrap().is_sorted_by(|a, b| a > b));
        for (bytes, layers) in [(4095, 1), (1 << 20, 0), (8191, 2), (1 << 40, LAYERS_MAX + 1)] {
            assert!(matches!(uneven(bytes, layers), Err(ImageError::Shape { .. })));
        }
    }

    #[test]
    fn layers_are_given_as_a_number_or_as_sizes() {
        let sizes = |sizes: &[u64]| Layers::Sizes(sizes.iter().map(|size| ByteSize(*size)).collect());
        for (text, layers) in [
            ("3", Layers::Count(3)),
            ("4096B", sizes(&[4096])),
            ("160MiB,64MiB,5000", sizes(&[160 << 20, 64 << 20, 5000])),
        ] {
            assert_eq!(text.parse(), Ok(layers.clone()));
            assert_eq!(layers.to_string().parse(), Ok(layers));
        }
        for text in ["", "0", "128", "4096", "1MiB,", "1MiB,4095", "many"] {
            assert!(text.parse::<Layers>().is_err(), "{text}");
        }
    }
}
