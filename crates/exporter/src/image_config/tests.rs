//! What happens to configs on their way out.

use kiln_stdx::Digest;

use super::*;

/// A note of a layer that was made so many milliseconds after 1970.
fn note(description: &str, created: u64) -> LayerNote {
    LayerNote { description: description.to_owned(), created: Some(created * 1_000_000) }
}

fn ids(count: usize) -> Vec<DiffId> {
    (0..count).map(|i| DiffId(Digest::of(i.to_string()))).collect()
}

fn run(config: &str, base: Option<&str>, notes: Vec<LayerNote>, epoch: Option<i64>) -> Result<String> {
    let input = ConfigInput {
        config: Some(config.as_bytes()),
        base: base.map(str::as_bytes),
        diff_ids: ids(notes.len()),
        notes,
        epoch,
        inline_cache: None,
    };
    Ok(String::from_utf8(patch(&input)?).unwrap())
}

fn history(json: &str) -> Vec<(Option<String>, String, bool)> {
    let config = ImageConfig::from_json(json.as_bytes()).unwrap();
    config.history.into_iter().map(|h| (h.created, h.created_by, h.empty_layer)).collect()
}

const AMD64: &str = r#""architecture":"amd64","os":"linux""#;

#[test]
fn unknown_fields_survive_byte_for_byte() {
    let config = r#"{ "os" : "linux","zz": {"b": 1, "a": "x \" y"}, "architecture":"amd64", "config":{"Cmd":["a  b"],"Aa":1.50}}"#;
    let out = run(config, None, vec![], None).unwrap();
    let want = r#"{"architecture":"amd64","config":{"Cmd":["a  b"],"Aa":1.50},"created":null,"history":[],"os":"linux","rootfs":{"type":"layers","diff_ids":[]},"zz":{"b":1,"a":"x \" y"}}"#;
    assert_eq!(out, want);
}

#[test]
fn missing_history_is_filled_from_the_layers() {
    let config = format!(r#"{{{AMD64},"history":[{{"created":"2020-01-01T00:00:00Z","created_by":"base"}}]}}"#);
    let out = run(&config, None, vec![note("base", 5), note("RUN make", 100_000), note("", 200_120)], None).unwrap();
    assert!(out.contains(r#""comment":"buildkit.exporter.image.v0""#));
    let want = [
        (Some("2020-01-01T00:00:00Z".into()), "base".into(), false),
        (Some("1970-01-01T00:01:40Z".into()), "RUN make".into(), false),
        (Some("1970-01-01T00:03:20.12Z".into()), "created by buildkit".into(), false),
    ];
    assert_eq!(history(&out), want);
    assert!(out.contains(r#""created":"1970-01-01T00:03:20.12Z","history""#), "{out}");
}

#[test]
fn surplus_history_becomes_empty_layers() {
    let config = format!(r#"{{{AMD64},"history":[{{"created_by":"a"}},{{"created_by":"b"}},{{"created_by":"c"}}]}}"#);
    let got = history(&run(&config, None, vec![note("x", 7_000)], None).unwrap());
    assert_eq!(got.iter().map(|h| h.2).collect::<Vec<_>>(), [false, true, true]);
    assert!(got.iter().all(|h| h.0.as_deref() == Some("1970-01-01T00:00:07Z")));
}

#[test]
fn entries_without_a_time_take_that_of_the_next_new_layer() {
    let config = format!(
        r#"{{{AMD64},"history":[{{"created":"2001-01-01T00:00:00Z","created_by":"base"}},
           {{"created_by":"ENV","empty_layer":true}},{{"created_by":"RUN"}},{{"created_by":"CMD","empty_layer":true}}]}}"#
    );
    let got = history(&run(&config, None, vec![note("base", 1), note("RUN", 60_000)], None).unwrap());
    let times: Vec<_> = got.iter().map(|h| h.0.clone().unwrap()).collect();
    let new = "1970-01-01T00:01:00Z";
    assert_eq!(times, ["2001-01-01T00:00:00Z", new, new, new]);
}

#[test]
fn the_epoch_cuts_new_times_and_keeps_the_bases() {
    let base = format!(r#"{{{AMD64},"history":[{{"created":"2030-01-01T00:00:00Z","created_by":"base"}}]}}"#);
    let config = format!(
        r#"{{{AMD64},"created":"2030-05-05T00:00:00Z","history":[{{"created":"2030-01-01T00:00:00Z","created_by":"base"}},
           {{"created":"2030-02-02T00:00:00.5Z","created_by":"late"}},{{"created":"1999-01-01T00:00:00Z","created_by":"old"}}]}}"#
    );
    let notes = vec![note("", 1), note("", 2), note("", 3)];
    let out = run(&config, Some(&base), notes, Some(1_000_000_000)).unwrap();
    let times: Vec<_> = history(&out).into_iter().map(|h| h.0.unwrap()).collect();
    assert_eq!(times, ["2030-01-01T00:00:00Z", "2001-09-09T01:46:40Z", "1999-01-01T00:00:00Z"]);
    assert!(out.contains(r#""created":"2001-09-09T01:46:40Z","history""#));
}

#[test]
fn diff_ids_come_from_the_layers_alone() {
    let config = format!(r#"{{{AMD64},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#, Digest::of("stale"));
    let out = run(&config, None, vec![note("a", 1), note("b", 2)], None).unwrap();
    assert_eq!(ImageConfig::from_json(out.as_bytes()).unwrap().rootfs.diff_ids, ids(2));
}

#[test]
fn no_config_gives_a_minimal_one_for_this_machine() {
    let input = ConfigInput {
        config: None,
        base: None,
        diff_ids: vec![],
        notes: vec![],
        epoch: None,
        inline_cache: Some(b"[1]"),
    };
    let config = ImageConfig::from_json(&patch(&input).unwrap()).unwrap();
    assert_eq!((config.platform(), config.config.working_dir.as_str()), (Platform::host(), "/"));
    assert_eq!(config.extra[INLINE_CACHE_KEY], "WzFd");
}

#[test]
fn configs_that_no_image_can_have_are_refused() {
    for (config, part) in [
        ("{}", "missing os"),
        (r#"{"os":"linux"}"#, "os and architecture must be specified together"),
        ("null", "image config"),
        ("[", "image config"),
        (r#"{"os":"linux","architecture":"amd64","created":"yesterday"}"#, "yesterday"),
    ] {
        let error = run(config, None, vec![], Some(0)).unwrap_err().to_string();
        assert!(error.contains(part), "{config}: {error}");
    }
}
