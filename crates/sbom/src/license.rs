//! Which declared licenses may stand in a document: SPDX expressions of known names.

/// The names that packages commonly declare. Others are told as comments: a document with an unknown name is not valid.
const KNOWN: &[&str] = &[
    "0BSD",
    "AFL-2.1",
    "AFL-3.0",
    "AGPL-3.0-only",
    "AGPL-3.0-or-later",
    "Apache-1.1",
    "Apache-2.0",
    "Artistic-1.0",
    "Artistic-1.0-Perl",
    "Artistic-2.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-2-Clause-Patent",
    "BSD-3-Clause",
    "BSD-4-Clause",
    "BSL-1.0",
    "BlueOak-1.0.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-SA-4.0",
    "CC0-1.0",
    "CDDL-1.0",
    "CDDL-1.1",
    "CNRI-Python",
    "EPL-1.0",
    "EPL-2.0",
    "GFDL-1.3-or-later",
    "GPL-1.0-or-later",
    "GPL-2.0-only",
    "GPL-2.0-or-later",
    "GPL-3.0-only",
    "GPL-3.0-or-later",
    "HPND",
    "ICU",
    "IJG",
    "ISC",
    "LGPL-2.0-or-later",
    "LGPL-2.1-only",
    "LGPL-2.1-or-later",
    "LGPL-3.0-only",
    "LGPL-3.0-or-later",
    "Libpng",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-1.1",
    "MPL-2.0",
    "MS-PL",
    "NCSA",
    "OFL-1.1",
    "OLDAP-2.8",
    "OpenSSL",
    "PSF-2.0",
    "PostgreSQL",
    "Python-2.0",
    "Ruby",
    "SSH-OpenSSH",
    "Sleepycat",
    "TCL",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "UPL-1.0",
    "Vim",
    "W3C",
    "WTFPL",
    "X11",
    "XFree86-1.1",
    "ZPL-2.1",
    "Zlib",
    "bzip2-1.0.6",
    "curl",
    "libtiff",
    "zlib-acknowledgement",
    "GCC-exception-3.1",
    "Classpath-exception-2.0",
    "LLVM-exception",
    "Autoconf-exception-2.0",
    "Bison-exception-2.2",
];

/// Tells whether `text` is an expression of known names.
pub(crate) fn is_expression(text: &str) -> bool {
    let mut wants_name = true;
    let mut open = 0_i32;
    let spaced = text.replace('(', " ( ").replace(')', " ) ");
    for word in spaced.split_whitespace() {
        let fits = match word {
            "(" => {
                open += 1;
                wants_name
            }
            ")" => {
                open -= 1;
                !wants_name && open >= 0
            }
            "AND" | "OR" | "WITH" => !std::mem::replace(&mut wants_name, true),
            name => std::mem::replace(&mut wants_name, false) && KNOWN.contains(&name.trim_end_matches('+')),
        };
        if !fits {
            return false;
        }
    }
    !wants_name && open == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_told_from_prose() {
        for good in ["MIT", "(MIT OR Apache-2.0) AND ISC", "GPL-2.0-or-later WITH GCC-exception-3.1", "Apache-2.0"] {
            assert!(is_expression(good), "{good}");
        }
        for bad in ["", "BSD", "MIT/Apache-2.0", "MIT OR", "(MIT", "MIT)", "MIT MIT", "AND", "see LICENSE", ")MIT("] {
            assert!(!is_expression(bad), "{bad}");
        }
    }
}
