//! The plans that come with the program.

/// Name and text of each plan that comes with the program; small ones first.
pub const PLANS: [(&str, &str); 22] = [
    ("demo-8", include_str!("../../plans/demo-8.toml")),
    ("demo-12", include_str!("../../plans/demo-12.toml")),
    ("crowd-100", include_str!("../../plans/crowd-100.toml")),
    ("crowd-1000", include_str!("../../plans/crowd-1000.toml")),
    ("holder-killed", include_str!("../../plans/holder-killed.toml")),
    ("late-joiners", include_str!("../../plans/late-joiners.toml")),
    ("zones-small", include_str!("../../plans/zones-small.toml")),
    ("slow-parts", include_str!("../../plans/slow-parts.toml")),
    ("troubled", include_str!("../../plans/troubled.toml")),
    ("kraken", include_str!("../../plans/kraken.toml")),
    ("crowd-10k", include_str!("../../plans/crowd-10k.toml")),
    ("slow-origin", include_str!("../../plans/slow-origin.toml")),
    ("many-layers", include_str!("../../plans/many-layers.toml")),
    ("zones", include_str!("../../plans/zones.toml")),
    ("fail-slow", include_str!("../../plans/fail-slow.toml")),
    ("crash-20", include_str!("../../plans/crash-20.toml")),
    ("crash-50", include_str!("../../plans/crash-50.toml")),
    ("rolling", include_str!("../../plans/rolling.toml")),
    ("origin-trouble", include_str!("../../plans/origin-trouble.toml")),
    ("liars-5", include_str!("../../plans/liars-5.toml")),
    ("liars-20", include_str!("../../plans/liars-20.toml")),
    ("no-dht", include_str!("../../plans/no-dht.toml")),
];
