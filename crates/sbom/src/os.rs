//! Which distribution an image is of: os-release(5).

/// What `os-release` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OsRelease {
    /// `debian`
    pub id: String,
    /// `12`
    pub version: String,
    /// `Debian GNU/Linux 12 (bookworm)`
    pub pretty: String,
}

impl OsRelease {
    /// Reads the file.
    pub fn parse(text: &[u8]) -> Self {
        let mut this = Self::default();
        for line in String::from_utf8_lossy(text).lines() {
            let Some((key, value)) = line.trim().split_once('=') else { continue };
            let value = value.trim().trim_matches(['"', '\'']).to_owned();
            match key {
                "ID" => this.id = value,
                "VERSION_ID" => this.version = value,
                "PRETTY_NAME" => this.pretty = value,
                _ => {}
            }
        }
        this
    }

    /// Returns `debian-12`; empty where nobody knows.
    pub fn distro(&self) -> String {
        match self.version.is_empty() {
            true => self.id.clone(),
            false => format!("{}-{}", self.id, self.version),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_order_do_not_matter() {
        let os = OsRelease::parse(b"# c\nVERSION_ID=\"12\"\nPRETTY_NAME='D 12'\nID=debian\n\xff=x\n");
        assert_eq!((os.distro().as_str(), os.pretty.as_str()), ("debian-12", "D 12"));
        assert_eq!(OsRelease::parse(b"").distro(), "");
    }
}
