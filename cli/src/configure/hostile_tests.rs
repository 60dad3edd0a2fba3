//! Whatever stands in a file: an edit of it is refused and changes nothing, or can be undone to the byte.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, fs};

use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    docker::Mirror,
    edit::{Part, Plan},
    hosts::Host,
    k3s::Mirrors,
};

const ENDPOINT: &str = "http://127.0.0.1:5050";

fn undone(part: &impl Part, text: &str) -> Result<(), TestCaseError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, text).unwrap();
    let Ok(plan) = Plan::put(&path, part) else {
        prop_assert_eq!(fs::read_to_string(&path).unwrap(), text);
        return Ok(());
    };
    plan.carry_out().unwrap();
    let put = fs::read_to_string(&path).unwrap();
    if put == text {
        return Ok(());
    }
    prop_assert!(part.is_in(&put), "{}", put);
    Plan::put(&path, part).unwrap().carry_out().unwrap();
    prop_assert_eq!(&fs::read_to_string(&path).unwrap(), &put, "a second time is no time");
    Plan::take(&path, part).unwrap().carry_out().unwrap();
    prop_assert_eq!(fs::read_to_string(&path).unwrap_or_default(), text);
    prop_assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no backup is left");
    Ok(())
}

/// Lines that mean something in a format, in any order and number, and any text at all.
fn lines(known: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![
        4 => vec(select(known), 0..10).prop_map(|lines| lines.concat()),
        1 => any::<String>(),
    ]
}

const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    " ",
    "\n",
    "\"registry-mirrors\"",
    "\"a\"",
    "\"\\\"}\"",
    "1",
    "true",
    "\"registry-mirrors\": [\"https://m.test\"]",
    "\"registry-mirrors\":[]",
    "\"b\": {\"registry-mirrors\": [\"]\"]}",
];

const TOML: &[&str] = &[
    "server = \"https://a.test\"\n",
    "[host.\"https://m.test\"]\n",
    "[host]\n",
    "[[host]]\n",
    "  capabilities = [\"pull\"]\n",
    "[header]\n",
    "x = [\n",
    "[\"a\"],\n",
    "]\n",
    "# comment\n",
    "t = \'\'\'\n",
    "\'\'\'\n",
    "\n",
    "host = {}\n",
];

const YAML: &[&str] = &[
    "mirrors:\n",
    "  docker.io:\n",
    "    endpoint:\n",
    "      - https://m.test\n",
    "  \"*\":\n",
    "configs:\n",
    "  r.test:\n",
    "# comment\n",
    "  # comment\n",
    "\n",
    "---\n",
    "text: |\n",
    "mirrors: {}\n",
    "    endpoint: []\n",
    "  - x\n",
    "a: &x 1\n",
    "    rewrite:\n",
    "      \"^a\": b\n",
    "\t",
    "    endpoint: # why\n",
    "    - https://n.test\n",
];

proptest! {
    #[test]
    fn a_daemon_json_is_refused_or_restored(text in lines(JSON)) {
        undone(&Mirror { endpoint: ENDPOINT }, &text)?;
    }

    #[test]
    fn a_daemon_json_that_is_an_object_is_never_refused_for_its_form(
        object in proptest::collection::btree_map("[a-z\"\\\\{}\\[\\],:]{0,8}", "[a-z\"\\\\{}\\[\\],:]{0,8}", 0..4),
        pretty: bool,
    ) {
        let text = if pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) }.unwrap();
        let put = Mirror { endpoint: ENDPOINT }.put(&text);
        prop_assert!(put.is_ok(), "{}: {:?}", text, put);
        undone(&Mirror { endpoint: ENDPOINT }, &text)?;
    }

    #[test]
    fn a_hosts_toml_is_refused_or_restored(text in lines(TOML)) {
        undone(&Host { registry: "docker.io", endpoint: ENDPOINT }, &text)?;
    }

    #[test]
    fn a_registries_yaml_is_refused_or_restored(text in lines(YAML)) {
        let registries = BTreeSet::from(["*".to_owned(), "docker.io".to_owned()]);
        undone(&Mirrors { registries: &registries, endpoint: ENDPOINT }, &text)?;
    }
}
