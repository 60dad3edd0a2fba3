//! The pages that say which test shows what.

use std::{fs, path::Path};

use shoal_tests::registries::REGISTRIES;

/// Names of tests in code marks in tables, with modules before them: `a::b::c`.
fn named(page: &str) -> impl Iterator<Item = &str> {
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let marked = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let is_path =
        |text: &&str| text.contains("::") && text.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c));
    marked.filter(is_path)
}

/// Whether the integration tests or the daemon's own have this test, or for a path that ends in `::` this module.
fn is_there(path: &str) -> bool {
    let (modules, test) = path.rsplit_once("::").unwrap();
    let file = format!("{}.rs", modules.replace("::", "/"));
    let texts = ["it", "../daemon/src"].into_iter().filter_map(|root| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
        fs::read_to_string(root.join(&file)).ok()
    });
    texts.into_iter().any(|text| test.is_empty() || text.contains(&format!("fn {test}()")))
}

#[test]
fn every_named_test_is_there() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (page, least) in [("CHECKS.md", 60), ("../README.md", 10)] {
        let text = fs::read_to_string(here.join(page)).unwrap();
        let names: Vec<_> = named(&text).collect();
        assert!(names.len() >= least, "{page} names {names:?}");
        let missing: Vec<_> = names.into_iter().filter(|name| !is_there(name)).collect();
        assert_eq!(missing, Vec::<&str>::new(), "{page}");
    }
}

#[test]
fn every_registry_of_the_table_is_in_the_readme() {
    let page = include_str!("../../README.md");
    for row in &REGISTRIES {
        assert!(page.contains(&format!("`{}`", row.name)), "{}", row.name);
    }
}

#[test]
fn every_check_has_its_row() {
    let page = include_str!("../CHECKS.md");
    for number in 1..=32 {
        let row = format!("| A{number} ");
        assert_eq!(page.lines().filter(|line| line.starts_with(&row)).count(), 1, "A{number}");
    }
}
