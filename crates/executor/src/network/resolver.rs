//! What `/etc/resolv.conf` says in a network from which the host's loopback cannot be reached.

use std::net::IpAddr;

/// The host's own file, and the one of a resolver that only answers on loopback.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// Servers that anybody may ask, for hosts that name none which a step could reach.
const PUBLIC: &str = "nameserver 8.8.8.8\nnameserver 8.8.4.4\n";

/// Returns the host's configuration without servers on its loopback.
pub(super) fn reachable() -> Vec<u8> {
    let texts = FILES.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    choose(texts).into_bytes()
}

/// Returns the host's configuration with one server in place of its own.
pub(super) fn served_by(server: IpAddr) -> Vec<u8> {
    let text = std::fs::read_to_string(FILES[0]).unwrap_or_default();
    let rest = text.lines().filter(|line| server_of(line).is_none()).map(|line| format!("{line}\n"));
    std::iter::once(format!("nameserver {server}\n")).chain(rest).collect::<String>().into_bytes()
}

fn choose(texts: impl Iterator<Item = String>) -> String {
    let mut first = None;
    for text in texts {
        let keep = |line: &&str| server_of(line).is_none_or(|server| !server.is_some_and(|ip| ip.is_loopback()));
        let kept: String = text.lines().filter(keep).map(|line| format!("{line}\n")).collect();
        if kept.lines().any(|line| server_of(line).is_some()) {
            return kept;
        }
        first.get_or_insert(kept);
    }
    first.unwrap_or_default() + PUBLIC
}

/// Returns the server that a line names, if that is what it does; none inside when it is no address.
fn server_of(line: &str) -> Option<Option<IpAddr>> {
    let mut words = line.split_whitespace();
    (words.next() == Some("nameserver")).then(|| words.next().and_then(|w| w.split('%').next()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_on_loopback_are_left_out() {
        let choose = |texts: &[&str]| choose(texts.iter().map(|t| (*t).to_owned()));
        assert_eq!(
            choose(&["search a\nnameserver 10.0.0.1\nnameserver 127.0.0.1\n"]),
            "search a\nnameserver 10.0.0.1\n"
        );
        assert_eq!(choose(&["nameserver 127.0.0.53\n", "nameserver 10.9.9.9\n"]), "nameserver 10.9.9.9\n");
        assert_eq!(choose(&["nameserver ::1\nsearch b\n"]), format!("search b\n{PUBLIC}"));
        assert_eq!(choose(&[]), PUBLIC);
    }
}
