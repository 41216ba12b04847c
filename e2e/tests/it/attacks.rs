//! Attacks on a cluster where people log in, tried for real: from inside a container, from the
//! network without logging in, and by people with lower roles. docs/concepts/security.md names these tests.

mod consent;
mod files;
mod images;
mod link;
mod network;
mod roles;
mod secrets;
mod sessions;
mod vps;

use std::fs;
use std::path::Path;

/// A page that claims what nobody tries is worse than none.
#[test]
fn docs_name_only_tests_that_exist() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(top.join("docs/concepts/security.md")).unwrap();
    let named = page.split('`').filter_map(|word| word.split_once(".rs::"));
    let mut count = 0;
    for (file, name) in named {
        let source = fs::read_to_string(top.join(format!("{file}.rs")));
        let source = source.unwrap_or_else(|error| panic!("{file}.rs: {error}"));
        assert!(source.contains(&format!("fn {name}(")), "{file}.rs has no test {name}");
        count += 1;
    }
    assert!(count > 50, "{count}");
}
