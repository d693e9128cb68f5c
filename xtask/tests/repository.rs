//! The repository keeps its own rules.

#[test]
fn sources_are_tidy() {
    let findings = xtask::tidy::check(&xtask::root());
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn crate_graph_is_as_listed() {
    let findings = xtask::layers::check(&xtask::root());
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn pages_of_the_checks_are_current() {
    let findings = xtask::rules::check(&xtask::root());
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn the_table_of_features_is_current() {
    let findings = xtask::features::check(&xtask::root());
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}
