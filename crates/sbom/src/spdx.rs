//! SPDX 2.3 documents in JSON.

use kiln_stdx::StableHasher;
use serde_json::{Value, json};

use crate::license;
use crate::os::OsRelease;
use crate::package::Package;

/// The predicate type of such a document in an in-toto statement.
pub const PREDICATE_TYPE: &str = "https://spdx.dev/Document";
const NOBODY_KNOWS: &str = "NOASSERTION";
const ROOT: &str = "SPDXRef-DocumentRoot";

/// What a document says of itself.
#[derive(Debug, Clone)]
pub struct About {
    /// What was scanned: `sbom` for the result, else the name of a stage or `context`.
    pub name: String,
    /// When, as `YYYY-MM-DDThh:mm:ssZ`.
    pub created: String,
    /// The version of whoever scanned.
    pub version: String,
}

/// Returns the document of what was found. The same packages at the same time are the same bytes.
pub fn document(about: &About, os: &OsRelease, found: &[Package]) -> Vec<u8> {
    let mut packages = vec![root(about, os)];
    let mut relationships = vec![relationship("SPDXRef-DOCUMENT", "DESCRIBES", ROOT)];
    for package in found {
        let id = id(package);
        relationships.push(relationship(ROOT, "CONTAINS", &id));
        packages.push(described(package, &id));
    }
    // A document is told from others by what it says.
    let name = StableHasher::new("kiln.spdx.v1").str("packages", &json!(packages).to_string());
    let name = name.str("created", &about.created).finish().hex();
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": about.name,
        "documentNamespace": format!("https://spdx.org/spdxdocs/kiln/{}-{name}", plain(&about.name)),
        "creationInfo": { "created": about.created, "creators": [format!("Tool: kiln-{}", about.version)] },
        "packages": packages,
        "relationships": relationships,
    });
    document.to_string().into_bytes()
}

fn root(about: &About, os: &OsRelease) -> Value {
    let mut root = json!({
        "name": about.name,
        "SPDXID": ROOT,
        "downloadLocation": NOBODY_KNOWS,
        "filesAnalyzed": false,
        "licenseConcluded": NOBODY_KNOWS,
        "licenseDeclared": NOBODY_KNOWS,
        "copyrightText": NOBODY_KNOWS,
        "primaryPackagePurpose": "CONTAINER",
    });
    if !os.id.is_empty() {
        let pretty = if os.pretty.is_empty() { os.distro() } else { os.pretty.clone() };
        root["comment"] = json!(format!("operating system: {pretty}"));
    }
    root
}

fn described(package: &Package, id: &str) -> Value {
    let paths: Vec<String> = package.found.iter().map(|path| format!("/{path}")).collect();
    let declared = license::is_expression(&package.license);
    let mut told = json!({
        "name": package.full_name(),
        "SPDXID": id,
        "supplier": if package.supplier.is_empty() { NOBODY_KNOWS } else { &package.supplier },
        "downloadLocation": NOBODY_KNOWS,
        "filesAnalyzed": false,
        "sourceInfo": format!("named by {}", paths.join(", ")),
        "licenseConcluded": NOBODY_KNOWS,
        "licenseDeclared": if declared { &package.license } else { NOBODY_KNOWS },
        "copyrightText": NOBODY_KNOWS,
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": package.purl(),
        }],
    });
    if !package.version.is_empty() {
        told["versionInfo"] = json!(package.version);
    }
    if !declared && !package.license.is_empty() {
        told["licenseComments"] = json!(format!("declared as: {}", package.license));
    }
    told
}

fn relationship(from: &str, kind: &str, to: &str) -> Value {
    json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to })
}

fn id(package: &Package) -> String {
    let hash = StableHasher::new("kiln.spdx.package.v1").str("purl", &package.purl()).finish().hex();
    let kind = package.ecosystem.purl_type();
    format!("SPDXRef-Package-{kind}-{}-{}", plain(&package.name), hash.get(..16).unwrap_or(&hash))
}

/// Identifiers are letters, digits, dots and hyphens.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::Ecosystem;

    #[test]
    fn a_document_has_what_the_format_asks_for() {
        let mut package = Package::new(Ecosystem::Npm, "a_b", "1.0.0", "x/node_modules/a_b/package.json");
        package.license = "Custom".to_owned();
        let other = Package::new(Ecosystem::Cargo, "c", "", "Cargo.lock");
        let about = About { name: "sbom".into(), created: "1970-01-01T00:00:00Z".into(), version: "1".into() };
        let os = OsRelease { id: "debian".into(), version: "12".into(), pretty: String::new() };
        let bytes = document(&about, &os, &[package.clone(), other.clone()]);
        assert_eq!(bytes, document(&about, &os, &[package.clone(), other]));
        assert_ne!(
            bytes,
            document(&About { created: "1970-01-01T00:00:01Z".into(), ..about.clone() }, &os, &[package])
        );
        let json: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(json["spdxVersion"], json!("SPDX-2.3"));
        assert_eq!(json["packages"][0]["comment"], json!("operating system: debian-12"));
        let told = &json["packages"][1];
        assert_eq!(told["licenseComments"], json!("declared as: Custom"));
        assert_eq!(told["externalRefs"][0]["referenceLocator"], json!("pkg:npm/a_b@1.0.0"));
        assert_eq!(told["sourceInfo"], json!("named by /x/node_modules/a_b/package.json"));
        assert!(told["SPDXID"].as_str().expect("id").starts_with("SPDXRef-Package-npm-a-b-"), "{told}");
        assert_eq!(json["packages"][2].get("versionInfo"), None);
        assert_eq!(json["relationships"][1]["relatedSpdxElement"], told["SPDXID"]);
    }
}
