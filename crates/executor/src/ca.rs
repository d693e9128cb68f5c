//! Extra certificates of the host inside a sandbox.
//!
//! The bundle is bound read-only at [`PATH`], below `/dev`: that is a tmpfs of the sandbox, so nothing of it can reach the
//! image, and no package manager writes there. Programs find it through the variables in [`VARIABLES`], each set
//! only when the step does not set it itself. Neither path nor variables enter a cache key or an image config.

/// Where the bundle is inside a sandbox.
pub const PATH: &str = "/dev/.kiln/ca-certificates.crt";

/// The variables that name a file of certificates, with a program that reads each.
pub const VARIABLES: &[(&str, &str)] = &[
    ("SSL_CERT_FILE", "OpenSSL, Go, Ruby, rustls-native-certs"),
    ("CURL_CA_BUNDLE", "curl"),
    ("REQUESTS_CA_BUNDLE", "Python requests"),
    ("PIP_CERT", "pip"),
    ("NODE_EXTRA_CA_CERTS", "Node.js, npm, yarn"),
    ("NPM_CONFIG_CAFILE", "npm"),
    ("CARGO_HTTP_CAINFO", "cargo"),
    ("GIT_SSL_CAINFO", "git"),
    ("AWS_CA_BUNDLE", "AWS command line and SDKs"),
    ("DENO_CERT", "Deno"),
];

/// Adds the variables that `env` does not have.
pub(crate) fn add_variables(env: &mut Vec<(String, String)>) {
    for (name, _) in VARIABLES {
        if !env.iter().any(|(set, _)| set == name) {
            env.push(((*name).to_owned(), PATH.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_the_step_stay_as_they_are() {
        let mut env = vec![("PIP_CERT".to_owned(), "/own".to_owned())];
        add_variables(&mut env);
        assert_eq!(env.len(), VARIABLES.len());
        assert_eq!(env[0].1, "/own");
        assert!(env[1..].iter().all(|(_, value)| value == PATH));
    }
}
