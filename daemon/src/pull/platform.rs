//! Platforms of images, and which one of an index to take.

use std::{fmt, str::FromStr};

/// An operating system and a processor, in the words of Go: `linux/amd64`, `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A text that is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: write OS/ARCH or OS/ARCH/VARIANT, for example linux/arm64")]
pub(super) struct PlatformError(String);

impl Platform {
    /// A platform in normal form, however the parts are spelled.
    pub(super) fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant.map(str::to_ascii_lowercase).filter(|variant| !variant.is_empty());
        let (architecture, implied) = match architecture.to_ascii_lowercase().as_str() {
            "x86_64" | "x86-64" => ("amd64".to_owned(), None),
            "i386" | "x86" => ("386".to_owned(), None),
            "aarch64" => ("arm64".to_owned(), None),
            "arm" | "armhf" => ("arm".to_owned(), Some("v7")),
            "armel" => ("arm".to_owned(), Some("v6")),
            "loongarch64" => ("loong64".to_owned(), None),
            "powerpc64" => ("ppc64le".to_owned(), None),
            other => (other.to_owned(), None),
        };
        let variant = variant.or_else(|| implied.map(str::to_owned));
        // The baselines, which most indexes leave out.
        let baseline =
            matches!((architecture.as_str(), variant.as_deref()), ("amd64", Some("v1")) | ("arm64", Some("v8")));
        Self { os, architecture, variant: variant.filter(|_| !baseline) }
    }

    /// The one of this machine. Images for containers are images for Linux, wherever the daemon runs.
    pub(super) fn of_machine() -> Self {
        let os = if cfg!(target_os = "windows") { "windows" } else { "linux" };
        Self::new(os, std::env::consts::ARCH, None)
    }

    /// How well an image for `self` runs where `wanted` is asked for: smaller is better, none is not at all.
    fn distance(&self, wanted: &Self) -> Option<u32> {
        if self.os != wanted.os || self.architecture != wanted.architecture {
            return None;
        }
        if self.variant == wanted.variant {
            return Some(0);
        }
        // 32-bit ARM processors run what was made for their predecessors.
        let level = |platform: &Self| platform.variant.as_deref()?.strip_prefix('v')?.parse::<u32>().ok();
        match (self.architecture.as_str(), level(self), level(wanted)) {
            ("arm", Some(have), Some(wanted)) => wanted.checked_sub(have),
            _ => None,
        }
    }

    /// The index of the best of `choices`, some of which do not say what they are for.
    pub(super) fn choose<'a>(&self, choices: impl Iterator<Item = Option<&'a Self>>) -> Option<usize> {
        let fitting = choices.enumerate().filter_map(|(at, choice)| Some((choice?.distance(self)?, at)));
        fitting.min().map(|(_, at)| at)
    }

    /// Whether this says nothing: how indexes mark what is no image, for example attestations.
    pub(super) fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        match parts.as_slice() {
            [os, architecture] if parts.iter().all(|part| word(part)) => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] if parts.iter().all(|part| word(part)) => {
                Ok(Self::new(os, architecture, Some(variant)))
            }
            _ => Err(PlatformError(text.to_owned())),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn chosen(wanted: &str, choices: &[&str]) -> Option<usize> {
        let choices: Vec<Option<Platform>> = choices.iter().map(|choice| choice.parse().ok()).collect();
        wanted.parse::<Platform>().unwrap().choose(choices.iter().map(Option::as_ref))
    }

    #[test]
    fn platforms_are_compared_in_one_spelling() {
        for (text, shown) in [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/amd64/v1", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("macos/arm64", "darwin/arm64"),
            ("linux/riscv64", "linux/riscv64"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), shown, "{text}");
        }
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux arm", "linux/a b"] {
            assert_eq!(text.parse::<Platform>(), Err(PlatformError(text.to_owned())));
        }
    }

    #[test]
    fn the_image_for_the_platform_is_chosen_and_never_one_that_does_not_run() {
        let usual =
            ["linux/amd64", "unknown/unknown", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8", "?", "windows/amd64"];
        for (wanted, at) in [
            ("linux/amd64", Some(0)),
            ("linux/arm64", Some(4)),
            ("linux/arm", Some(3)),
            ("linux/arm/v6", Some(2)),
            ("linux/arm/v5", None),
            ("windows/amd64", Some(6)),
            ("linux/386", None),
            ("darwin/amd64", None),
        ] {
            assert_eq!(chosen(wanted, &usual), at, "{wanted}");
        }
        assert_eq!(chosen("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6"]), Some(1));
        assert_eq!(chosen("linux/amd64", &["linux/amd64/v3"]), None);
        assert_eq!(chosen("linux/amd64", &["linux/amd64", "linux/amd64"]), Some(0));
    }
}
