//! The plans that come with the program.

/// Name and text of each plan that comes with the program.
pub const PLANS: [(&str, &str); 6] = [
    ("demo-8", include_str!("../../plans/demo-8.toml")),
    ("demo-12", include_str!("../../plans/demo-12.toml")),
    ("crowd-100", include_str!("../../plans/crowd-100.toml")),
    ("crowd-1000", include_str!("../../plans/crowd-1000.toml")),
    ("holder-killed", include_str!("../../plans/holder-killed.toml")),
    ("late-joiners", include_str!("../../plans/late-joiners.toml")),
];
