//! The documentation says what is true: every instrument is in `docs/operations.md`, every link in the README leads
//! somewhere, every test that a rule of Margo is said to be proven by is there.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

use std::path::Path;

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn every_instrument_is_documented_with_its_unit() {
    let text = read("docs/operations.md");
    for instrument in fieldgate::telemetry::CATALOGUE {
        let row = text.lines().find(|line| line.contains(&format!("`{}`", instrument.name)));
        let row = row.unwrap_or_else(|| panic!("{} is missing in docs/operations.md", instrument.name));
        assert!(row.contains(&format!("`{}`", instrument.unit)), "{row}");
        assert!(row.contains(instrument.description), "{row}");
    }
}

#[test]
fn links_of_the_readme_lead_somewhere() {
    let text = read("README.md");
    let mut links = 0;
    for part in text.split("](").skip(1) {
        let target = part.split(')').next().unwrap_or_default();
        if target.starts_with("http") || target.starts_with('#') {
            continue;
        }
        links += 1;
        assert!(
            Path::new(env!("CARGO_MANIFEST_DIR")).join(target).exists(),
            "README links to {target}, which is not there"
        );
    }
    assert!(links >= 5, "the README links to its documentation");
}

#[test]
fn every_rule_of_margo_names_tests_that_are_there() {
    let text = read("docs/margo-rules.md");
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| rule |"));
    let mut rules = 0;
    for row in rows {
        rules += 1;
        let tests: Vec<(&str, &str)> = row.split('`').filter_map(|part| part.split_once("::")).collect();
        assert!(!tests.is_empty(), "no test is named in {row}");
        for (file, name) in tests {
            let path = if file.starts_with("tests/") { file.to_owned() } else { format!("src/{file}") };
            let source = read(&path);
            // Tests that differ in one word are made by a macro, from a line `name: case;`.
            let is_there = source.contains(&format!("fn {name}(")) || source.contains(&format!("\n    {name}: "));
            assert!(is_there, "{path} has no test {name}, which docs/margo-rules.md names");
        }
    }
    assert!(rules > 100, "{rules} rules");
}
