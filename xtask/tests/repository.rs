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
