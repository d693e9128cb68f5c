//! `HEALTHCHECK NONE`, `HEALTHCHECK [--interval=… …] CMD command`.

use super::{Request, at_least_one};
use crate::ast::Healthcheck;
use crate::diag::{Fault, Outcome};
use crate::gofmt::{parse_duration, quote};

const MILLISECOND: i64 = 1_000_000;

pub(super) fn parse(request: &Request<'_>) -> Outcome<Healthcheck> {
    let (kind, rest) = match request.rest.split_once(char::is_whitespace) {
        Some((kind, rest)) => (kind, rest.trim_start()),
        None => (request.rest, ""),
    };
    if kind.is_empty() {
        return Err(at_least_one("HEALTHCHECK"));
    }
    let upper = kind.to_uppercase();
    if upper == "NONE" {
        if !rest.is_empty() {
            return Err(Fault::new("HEALTHCHECK NONE takes no arguments").word(rest));
        }
        return Ok(Healthcheck { test: vec![upper], ..Healthcheck::default() });
    }
    let (mut interval, mut timeout, mut start_period, mut start_interval, mut retries) = (None, None, None, None, None);
    request
        .flags()
        .text("interval", &mut interval)
        .text("timeout", &mut timeout)
        .text("start-period", &mut start_period)
        .text("start-interval", &mut start_interval)
        .text("retries", &mut retries)
        .parse()?;
    if upper != "CMD" {
        return Err(Fault::new(format!("Unknown type {} in HEALTHCHECK (try CMD)", quote(&upper))).word(kind));
    }
    let command = request.command(rest)?;
    if command.args.is_empty() {
        return Err(Fault::new("Missing command after HEALTHCHECK CMD"));
    }
    let mut test = vec![if command.shell { "CMD-SHELL".to_owned() } else { upper }];
    test.extend(command.args);
    Ok(Healthcheck {
        test,
        interval: duration("interval", interval)?,
        timeout: duration("timeout", timeout)?,
        start_period: duration("start-period", start_period)?,
        start_interval: duration("start-interval", start_interval)?,
        retries: count(retries)?,
    })
}

fn duration(name: &str, text: Option<String>) -> Outcome<i64> {
    let Some(text) = text.filter(|t| !t.is_empty()) else { return Ok(0) };
    let nanos =
        parse_duration(&text).map_err(|e| Fault::new(e).word(&text).hint("write a duration such as 30s or 1m30s"))?;
    if nanos != 0 && nanos < MILLISECOND {
        return Err(Fault::new(format!("Interval {} cannot be less than 1ms", quote(name))).word(text));
    }
    Ok(nanos)
}

fn count(text: Option<String>) -> Outcome<i64> {
    let Some(text) = text.filter(|t| !t.is_empty()) else { return Ok(0) };
    let number: i32 = text.parse().map_err(|_| {
        Fault::new(format!("strconv.ParseInt: parsing {}: invalid syntax", quote(&text)))
            .word(&text)
            .hint("--retries takes a number")
    })?;
    if number < 0 {
        return Err(Fault::new(format!("--retries cannot be negative ({number})")).word(text));
    }
    Ok(i64::from(number))
}
