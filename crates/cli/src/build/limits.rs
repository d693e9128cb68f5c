//! `--add-host` and `--ulimit`, in the forms the frontend takes.

use std::net::IpAddr;

use super::csv;
use crate::error::CliError;

/// Limits a step can be given.
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Turns `host:ip` and `host=ip` items into `host=ip,host=ip`. IPv6 addresses may stand in brackets.
pub fn extra_hosts(values: &[String]) -> Result<String, CliError> {
    let mut out = Vec::new();
    for value in values {
        for item in csv::fields(value).map_err(|e| CliError::user(format!("invalid host: {e}")))? {
            let bad = || {
                CliError::user(format!("invalid host {item}"))
                    .hint("write a host as name:address, for example db:10.0.0.5")
            };
            let (host, address) = item.split_once('=').or_else(|| item.split_once(':')).ok_or_else(bad)?;
            if host.is_empty() || address.is_empty() {
                return Err(bad());
            }
            if address == "host-gateway" {
                return Err(CliError::user("unable to derive the IP value for host-gateway")
                    .hint("steps share the host's network: give the address itself, for example 127.0.0.1"));
            }
            let address = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
            address.parse::<IpAddr>().map_err(|_| bad())?;
            out.push(format!("{host}={address}"));
        }
    }
    Ok(out.join(","))
}

/// Turns `name=soft[:hard]` items into `name=soft:hard,...`; -1 means no limit.
pub fn ulimits(values: &[String]) -> Result<String, CliError> {
    let mut out: Vec<(String, String)> = Vec::new();
    for value in values {
        let (name, text) = parse_ulimit(value)?;
        match out.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => *old = text,
            None => out.push((name, text)),
        }
    }
    out.sort();
    Ok(out.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(","))
}

fn parse_ulimit(value: &str) -> Result<(String, String), CliError> {
    let Some((name, limits)) = value.split_once('=') else {
        return Err(CliError::user(format!("invalid ulimit argument: {value}"))
            .hint("write a limit as name=soft[:hard], for example nofile=1024:2048"));
    };
    if !ULIMITS.contains(&name) {
        return Err(CliError::user(format!("invalid ulimit type: {name}")).nearest(
            "limit",
            name,
            ULIMITS.iter().copied(),
        ));
    }
    let number = |text: &str| {
        text.parse::<i64>()
            .ok()
            .filter(|n| *n >= -1)
            .ok_or_else(|| CliError::user(format!("invalid ulimit argument: {value}")))
    };
    let parts: Vec<&str> = limits.split(':').collect();
    let (soft, hard) = match parts[..] {
        [soft] => (number(soft)?, number(soft)?),
        [soft, hard] => (number(soft)?, number(hard)?),
        _ => {
            return Err(CliError::user(format!(
                "too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`"
            )));
        }
    };
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(CliError::user(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        )));
    }
    Ok((name.to_owned(), format!("{name}={soft}:{hard}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(values: &[&str]) -> Vec<String> {
        values.iter().map(|v| (*v).to_owned()).collect()
    }

    #[test]
    fn hosts() {
        for (values, want) in [
            (vec![], Ok("")),
            (vec!["db:10.0.0.5"], Ok("db=10.0.0.5")),
            (vec!["db=10.0.0.5,web:1.2.3.4"], Ok("db=10.0.0.5,web=1.2.3.4")),
            (vec!["six:[::1]", "seven=fe80::7"], Ok("six=::1,seven=fe80::7")),
            (vec!["db"], Err("invalid host db")),
            (vec!["db:nowhere"], Err("invalid host db:nowhere")),
            (vec![":1.2.3.4"], Err("invalid host :1.2.3.4")),
        ] {
            let got = extra_hosts(&strings(&values)).map_err(|e| e.message().to_owned());
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{values:?}");
        }
    }

    #[test]
    fn limits() {
        for (values, want) in [
            (vec!["nofile=1024:2048"], Ok("nofile=1024:2048")),
            (vec!["nofile=1024"], Ok("nofile=1024:1024")),
            (vec!["nproc=5", "core=-1", "nproc=6"], Ok("core=-1:-1,nproc=6:6")),
            (vec!["nofile"], Err("invalid ulimit argument: nofile")),
            (vec!["nofiles=1"], Err("invalid ulimit type: nofiles")),
            (vec!["nofile=9:3"], Err("ulimit soft limit must be less than or equal to hard limit: 9 > 3")),
            (vec!["nofile=-1:3"], Err("ulimit soft limit must be less than or equal to hard limit: -1 > 3")),
            (vec!["nofile=x"], Err("invalid ulimit argument: nofile=x")),
        ] {
            let got = ulimits(&strings(&values)).map_err(|e| e.message().to_owned());
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{values:?}");
        }
    }
}
