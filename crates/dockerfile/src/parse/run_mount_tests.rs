//! Keys of mounts: defaults and spellings.

use super::*;

fn mount(text: &str) -> Mount {
    parse(text, |v| Ok(v.replace("$V", "val"))).unwrap_or_else(|f| panic!("{text}: {}", f.message))
}

#[test]
fn defaults_depend_on_the_type() {
    assert!(mount("target=/x").readonly);
    assert!(!mount("type=cache,target=/x").readonly);
    assert!(!mount("type=TMPFS,target=/x").readonly);
    assert!(mount("type=cache,target=/x,ro").readonly);
    assert!(!mount("target=/x,rw").readonly);
    assert!(mount("target=/x,readwrite=false").readonly);
}

#[test]
fn keys_have_several_spellings() {
    for text in ["source=/s,target=/t", "src=/s,dst=/t", "src=/s,destination=/t", "SOURCE=/s,Target=/t"] {
        let m = mount(text);
        assert_eq!((m.source.as_str(), m.target.as_str()), ("/s", "/t"), "{text}");
    }
    assert_eq!(mount("\"target=/a,b\",type=bind").target, "/a,b");
    assert_eq!(mount("type=cache,id=$V,target=/$V").id, "val");
    assert_eq!(mount("type=secret,id=a,mode=0440,uid=7").mode, Some(0o440));
    assert_eq!(mount("type=tmpfs,target=/t,size=1g").size, 1 << 30);
    assert_eq!(mount("type=secret,id=a,env=E").env.as_deref(), Some("E"));
}

#[test]
fn from_is_read_before_variables_are() {
    assert_eq!(scan("type=bind,from=stage").unwrap().from.as_deref(), Some("stage"));
    assert_eq!(scan("from=a$").unwrap().from.as_deref(), Some("a$"));
    assert!(scan("from=$A").is_err());
    assert_eq!(scan("target=$X,from=").unwrap().from, None);
}

#[test]
fn half_a_name_of_a_mount_type_is_completed() {
    let fault = parse("type=tmp,target=/x", |v| Ok(v.to_owned())).unwrap_err();
    assert!(fault.message.contains("did you mean tmpfs?"), "{}", fault.message);
    let fault = parse("type=zzz,target=/x", |v| Ok(v.to_owned())).unwrap_err();
    assert!(!fault.message.contains("did you mean"), "{}", fault.message);
}
