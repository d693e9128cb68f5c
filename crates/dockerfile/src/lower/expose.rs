//! `EXPOSE`: ports, ranges, protocols.

use serde_json::Value;

use super::Lowering;
use super::stage::Stage;
use crate::ast::Instruction;
use crate::diag::{Fault, Outcome};
use crate::gofmt::quote;
use crate::lint;

impl Lowering<'_> {
    pub(super) fn expose(&mut self, stage: &mut Stage, instruction: &Instruction, ports: &[String]) -> Outcome<()> {
        let mut words = Vec::new();
        for port in ports {
            words.extend(self.lexer().expand(port, &stage.env).map_err(Fault::new)?.words);
        }
        let mut shown = Vec::new();
        for word in &words {
            let port = Port::parse(word)?;
            lint::expose_proto_casing::check(instruction, word, &port.protocol, &mut self.linter);
            lint::expose_format::check(instruction, word, port.mapped, &mut self.linter);
            // A range of all ports takes as much as a hundred ordinary lines.
            self.spend((usize::from(port.last - port.first) + 1) * 64)?;
            for number in port.first..=port.last {
                shown.push(format!("{number}/{}", port.protocol.to_lowercase()));
            }
        }
        for port in &shown {
            stage.image.config.exposed_ports.insert(port.clone(), Value::Object(serde_json::Map::new()));
        }
        stage.history(format!("EXPOSE [{}]", shown.join(" ")), false, self.plan.epoch);
        Ok(())
    }
}

/// One word of an `EXPOSE`.
#[derive(Debug, PartialEq, Eq)]
struct Port {
    first: u16,
    last: u16,
    /// As written, `tcp` where it is left out.
    protocol: String,
    /// It names an address or a port of the host, which mean nothing here.
    mapped: bool,
}

impl Port {
    fn parse(text: &str) -> Outcome<Self> {
        let (front, container) = text.rsplit_once(':').unwrap_or(("", text));
        let (address, host) = front.rsplit_once(':').unwrap_or(("", front));
        let invalid = |cause: &str| Fault::new(format!("invalid port: {}: {cause}", quote(text))).word(text);
        let (container, protocol) = container.split_once('/').unwrap_or((container, ""));
        if container.is_empty() {
            return Err(invalid("no port specified"));
        }
        let protocol = match protocol.to_lowercase().as_str() {
            "" => "tcp",
            "tcp" | "udp" | "sctp" => protocol,
            _ => return Err(invalid(&format!("invalid proto: {protocol}")).hint("known: tcp, udp, sctp")),
        };
        let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
        if !bare.is_empty() && bare.parse::<std::net::IpAddr>().is_err() {
            return Err(Fault::new(format!("invalid IP address: {bare}")).word(text));
        }
        let (first, last) =
            range(container).ok_or_else(|| Fault::new(format!("invalid containerPort: {container}")).word(text))?;
        if !host.is_empty() {
            let (low, high) = range(host).ok_or_else(|| Fault::new(format!("invalid hostPort: {host}")).word(text))?;
            if first != last && high - low != last - first {
                return Err(Fault::new(format!(
                    "invalid ranges specified for container and host Ports: {container} and {host}"
                ))
                .word(text));
            }
        }
        Ok(Self { first, last, protocol: protocol.to_owned(), mapped: !front.is_empty() })
    }
}

/// Reads `80` or `80-90`.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        let port = |text| Port::parse(text).map(|p| (p.first, p.last, p.protocol, p.mapped)).map_err(|f| f.message);
        assert_eq!(port("80"), Ok((80, 80, "tcp".into(), false)));
        assert_eq!(port("8000-8010/UDP"), Ok((8000, 8010, "UDP".into(), false)));
        assert_eq!(port("[::1]:81:80"), Ok((80, 80, "tcp".into(), true)));
        assert_eq!(port("8080-8090:80"), Ok((80, 80, "tcp".into(), true)));
        assert_eq!(port("80/x"), Err("invalid port: \"80/x\": invalid proto: x".into()));
        assert_eq!(port("/tcp"), Err("invalid port: \"/tcp\": no port specified".into()));
        assert_eq!(port("70000"), Err("invalid containerPort: 70000".into()));
        assert_eq!(port("90-80"), Err("invalid containerPort: 90-80".into()));
        assert_eq!(port("x:80:80"), Err("invalid IP address: x".into()));
        assert_eq!(port("a:80"), Err("invalid hostPort: a".into()));
    }
}
