//! `kiln cache ls`, `inspect`, `rm` and `cat`: the cache mounts of RUN steps.

use std::io::Write;

use jiff::Timestamp;
use kiln_session::proto::kiln_v1::{CacheFile, CacheMount, CacheMountsRequest, CachePath, RemoveCacheMountsRequest};
use serde_json::{Value, json};

use super::record::{ago, columns};
use crate::args::{CacheCatFlags, CacheInspectFlags, CacheLsFlags, CacheRmFlags};
use crate::client::failure::of_status;
use crate::error::{CliError, io_text};
use crate::launch::Engine;
use crate::progress::event::Stamp;
use crate::units::human_size;

/// Prints all cache mounts, or what is in one.
pub async fn ls(flags: CacheLsFlags, engine: &Engine) -> Result<(), CliError> {
    let as_json = is_json(&flags.format, "table")?;
    let Some(place) = &flags.place else {
        let mounts = mounts(engine, true).await?;
        return if as_json {
            print_json(mounts.iter().map(value))
        } else {
            crate::print(&table(&mounts, Stamp::now()))
        };
    };
    let known = mounts(engine, false).await?;
    let (mount, path) = one(&known, place)?;
    let failed = |e: tonic::Status| of_status(&e, "failed to list");
    let request = CachePath { directory: mount.directory.clone(), path };
    let mut stream = engine.own().list_cache_files(request).await.map_err(failed)?.into_inner();
    let mut files = Vec::new();
    while let Some(part) = stream.message().await.map_err(failed)? {
        files.extend(part.files);
    }
    if as_json { print_json(files.iter().map(file_value)) } else { crate::print(&listing(&files)) }
}

/// Prints all that is known of cache mounts.
pub async fn inspect(flags: CacheInspectFlags, engine: &Engine) -> Result<(), CliError> {
    let as_json = is_json(&flags.format, "text")?;
    let known = mounts(engine, true).await?;
    let wanted = all(&known, &flags.ids)?;
    if as_json {
        return print_json(wanted.into_iter().map(value));
    }
    let blocks: Vec<String> = wanted.into_iter().map(|mount| details(mount, Stamp::now())).collect();
    crate::print(&blocks.join("\n"))
}

/// Removes cache mounts and prints their ids.
pub async fn rm(flags: CacheRmFlags, engine: &Engine) -> Result<(), CliError> {
    let known = mounts(engine, false).await?;
    let wanted = all(&known, &flags.ids)?;
    let directories = wanted.iter().map(|mount| mount.directory.clone()).collect();
    let request = RemoveCacheMountsRequest { directories };
    let failed = |e: tonic::Status| of_status(&e, "failed to remove").hint("try again when its builds have ended");
    engine.own().remove_cache_mounts(request).await.map_err(failed)?;
    let lines = wanted.iter().map(|mount| format!("{} {} {}\n", mount.id, mount.platform, mount.directory));
    crate::print(&lines.collect::<String>())
}

/// Prints a file of a cache mount.
pub async fn cat(flags: CacheCatFlags, engine: &Engine) -> Result<(), CliError> {
    let known = mounts(engine, false).await?;
    let (mount, path) = one(&known, &flags.place)?;
    let failed = |e: tonic::Status| of_status(&e, "failed to read");
    let request = CachePath { directory: mount.directory.clone(), path };
    let mut stream = engine.own().read_cache_file(request).await.map_err(failed)?.into_inner();
    let mut out = std::io::stdout();
    while let Some(part) = stream.message().await.map_err(failed)? {
        match out.write_all(&part.data) {
            // Whoever reads has had enough.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.map_err(|e| CliError::environment(format!("cannot write: {}", io_text(&e))))?,
        }
    }
    out.flush().map_err(|e| CliError::environment(format!("cannot write: {}", io_text(&e))))
}

async fn mounts(engine: &Engine, measure: bool) -> Result<Vec<CacheMount>, CliError> {
    let answer = engine.own().cache_mounts(CacheMountsRequest { measure }).await;
    Ok(answer.map_err(|e| of_status(&e, "failed to list cache mounts"))?.into_inner().mounts)
}

fn is_json(format: &str, other: &str) -> Result<bool, CliError> {
    match format {
        "json" => Ok(true),
        _ if format == other => Ok(false),
        _ => Err(CliError::user(format!("--format: {format:?} is neither {other} nor json"))),
    }
}

fn print_json(values: impl Iterator<Item = Value>) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(&values.collect::<Vec<_>>());
    crate::print(&format!("{}\n", text.map_err(|e| CliError::environment(e.to_string()))?))
}

/// Returns the mounts that an id names: by what steps call them, else by directory.
fn named<'m>(mounts: &'m [CacheMount], id: &str) -> Vec<&'m CacheMount> {
    let by_id: Vec<_> = mounts.iter().filter(|mount| mount.id == id).collect();
    if by_id.is_empty() { mounts.iter().filter(|mount| mount.directory == id).collect() } else { by_id }
}

/// Returns the mounts of all ids, each once.
fn all<'m>(mounts: &'m [CacheMount], ids: &[String]) -> Result<Vec<&'m CacheMount>, CliError> {
    let mut found: Vec<&CacheMount> = Vec::new();
    for id in ids {
        let named = named(mounts, id);
        if named.is_empty() {
            return Err(unknown(mounts, id));
        }
        found.extend(named);
    }
    found.sort_by_key(|mount| (&mount.id, &mount.platform, &mount.directory));
    found.dedup_by_key(|mount| &mount.directory);
    Ok(found)
}

/// Returns the mount and the path in it that `ID:/PATH` names. An id may hold `:/` itself, so the longest that is one counts.
fn one<'m>(mounts: &'m [CacheMount], place: &str) -> Result<(&'m CacheMount, String), CliError> {
    let cuts = place.match_indices(":/").map(|(at, _)| at).collect::<Vec<_>>();
    let splits = cuts.iter().rev().map(|&at| (&place[..at], &place[at + 1..]));
    let whole = std::iter::once((place, "/"));
    for (id, path) in whole.chain(splits) {
        match named(mounts, id)[..] {
            [] => {}
            [mount] => return Ok((mount, path.to_owned())),
            ref many => {
                let choices: Vec<String> = many.iter().map(|m| format!("{} ({})", m.directory, m.platform)).collect();
                return Err(CliError::user(format!("{} cache mounts have the id {id}", many.len()))
                    .hint(format!("name one by its directory: {}", choices.join(", "))));
            }
        }
    }
    Err(unknown(mounts, cuts.first().map_or(place, |&at| &place[..at])))
}

fn unknown(mounts: &[CacheMount], id: &str) -> CliError {
    let error = CliError::user(format!("no cache mount {id:?}"));
    match mounts {
        [] => error.hint("there are none: they are made by RUN --mount=type=cache"),
        _ => error.nearest("id", id, mounts.iter().map(|mount| mount.id.as_str())),
    }
}

fn table(mounts: &[CacheMount], now: Stamp) -> String {
    let mut rows = vec![["ID", "PLATFORM", "SIZE", "LAST USED", "IN USE", "MARKED", "DIRECTORY"].map(str::to_owned)];
    rows.extend(mounts.iter().map(|mount| {
        [
            mount.id.clone(),
            mount.platform.clone(),
            human_size(mount.size.unwrap_or(0)),
            ago(seconds(mount.last_used), now),
            mount.in_use.to_string(),
            if mount.mark.is_empty() { "-" } else { &mount.mark }.to_owned(),
            mount.directory.clone(),
        ]
    }));
    columns(&rows)
}

fn details(mount: &CacheMount, now: Stamp) -> String {
    let mut rows = vec![
        ["ID:".to_owned(), mount.id.clone()],
        ["Platform:".to_owned(), mount.platform.clone()],
        ["Directory:".to_owned(), mount.directory.clone()],
        ["Size:".to_owned(), human_size(mount.size.unwrap_or(0))],
        ["Created:".to_owned(), ago(seconds(mount.created), now)],
        ["Last used:".to_owned(), ago(seconds(mount.last_used), now)],
        ["Uses:".to_owned(), mount.uses.to_string()],
        ["In use:".to_owned(), mount.in_use.to_string()],
    ];
    if !mount.mark.is_empty() {
        let what = format!("its last writer {}, {}", mount.mark, ago(seconds(mount.marked_at), now));
        rows.push(["May be damaged:".to_owned(), what]);
    }
    columns(&rows)
}

fn value(mount: &CacheMount) -> Value {
    let mark = (!mount.mark.is_empty()).then(|| json!({ "why": mount.mark, "at": utc(mount.marked_at) }));
    json!({
        "id": mount.id,
        "platform": mount.platform,
        "directory": mount.directory,
        "size": mount.size,
        "created": utc(mount.created),
        "lastUsed": utc(mount.last_used),
        "uses": mount.uses,
        "inUse": mount.in_use,
        "marked": mark,
    })
}

fn seconds(at: u64) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

fn utc(at: u64) -> String {
    Timestamp::from_second(seconds(at)).unwrap_or_default().to_string()
}

/// One line a file, as `ls -l` has it; what would change the terminal is escaped.
fn listing(files: &[CacheFile]) -> String {
    let rows: Vec<[String; 5]> = files
        .iter()
        .map(|file| {
            let at = Timestamp::from_nanosecond(i128::from(file.mtime)).unwrap_or_default();
            let arrow = if file.target.is_empty() { String::new() } else { format!(" -> {}", shown(&file.target)) };
            [
                mode(file.mode),
                format!("{}:{}", file.uid, file.gid),
                file.size.to_string(),
                at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
                format!("{}{arrow}", shown(&file.name)),
            ]
        })
        .collect();
    columns(&rows)
}

fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn file_value(file: &CacheFile) -> Value {
    let at = Timestamp::from_nanosecond(i128::from(file.mtime)).unwrap_or_default();
    json!({
        "name": String::from_utf8_lossy(&file.name),
        "mode": mode(file.mode),
        "uid": file.uid,
        "gid": file.gid,
        "size": file.size,
        "modified": at.to_string(),
        "target": (!file.target.is_empty()).then(|| String::from_utf8_lossy(&file.target).into_owned()),
    })
}

/// Writes kind and permissions in the ten letters of `ls -l`.
fn mode(mode: u32) -> String {
    let kind = match mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o010_000 => 'p',
        0o140_000 => 's',
        0o020_000 => 'c',
        0o060_000 => 'b',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 > 0 { 'r' } else { '-' });
        text.push(if bits & 2 > 0 { 'w' } else { '-' });
        text.push(match (bits & 1 > 0, mode & special > 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(id: &str, directory: &str) -> CacheMount {
        CacheMount {
            id: id.into(),
            directory: directory.into(),
            platform: "linux/amd64".into(),
            size: Some(1500),
            ..CacheMount::default()
        }
    }

    #[test]
    fn places_are_cut_at_an_id_that_is_there() {
        let mounts = [
            mount("npm", "d1"),
            mount("/root/.cache", "d2"),
            mount("x:/y", "d3"),
            mount("two", "d4"),
            mount("two", "d5"),
        ];
        let of = |place: &str| {
            one(&mounts, place).map(|(m, path)| (m.directory.clone(), path)).map_err(|e| e.message().to_owned())
        };
        let is = |directory: &str, path: &str| Ok((directory.to_owned(), path.to_owned()));
        assert_eq!(of("npm"), is("d1", "/"));
        assert_eq!(of("npm:/a/b"), is("d1", "/a/b"));
        assert_eq!(of("npm:/a:/b"), is("d1", "/a:/b"));
        assert_eq!(of("/root/.cache"), is("d2", "/"));
        assert_eq!(of("/root/.cache:/pip"), is("d2", "/pip"));
        assert_eq!(of("x:/y:/z"), is("d3", "/z"));
        assert_eq!(of("d5:/z"), is("d5", "/z"));
        assert_eq!(of("two:/z"), Err("2 cache mounts have the id two".to_owned()));
        assert_eq!(of("nmp:/z"), Err("no cache mount \"nmp\"".to_owned()));
        assert_eq!(unknown(&mounts, "nmp").hints(), ["did you mean `npm`?"]);
        let found = all(&mounts, &["two".into(), "npm".into(), "d4".into()]).map_err(|e| e.to_string());
        let found: Vec<&str> = found.unwrap_or_default().iter().map(|m| m.directory.as_str()).collect();
        assert_eq!(found, ["d1", "d4", "d5"]);
    }

    #[test]
    fn a_table_and_a_listing() {
        let marked = CacheMount { mark: "was killed".into(), in_use: true, last_used: 40, ..mount("npm", "d1") };
        assert_eq!(
            table(&[marked], Stamp(7240 * 1_000_000_000)),
            "ID   PLATFORM     SIZE   LAST USED    IN USE  MARKED      DIRECTORY\n\
             npm  linux/amd64  1.5kB  2 hours ago  true    was killed  d1\n"
        );
        let file = |name: &[u8], mode: u32, target: &[u8]| CacheFile {
            name: name.to_vec(),
            mode,
            target: target.to_vec(),
            ..CacheFile::default()
        };
        let files = [file(b"a\x1b[2J", 0o104755, b""), file(b"l", 0o120777, b"a"), file(b"t", 0o041777, b"")];
        assert_eq!(
            listing(&files),
            "-rwsr-xr-x  0:0  0  1970-01-01 00:00:00  a\\u{1b}[2J\n\
             lrwxrwxrwx  0:0  0  1970-01-01 00:00:00  l -> a\n\
             drwxrwxrwt  0:0  0  1970-01-01 00:00:00  t\n"
        );
    }
}
