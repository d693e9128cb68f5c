//! JSON of wire types, as Go writes it: bytes in base64, default values left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serializer;

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub(crate) fn base64<S: Serializer>(bytes: &impl AsRef<[u8]>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&STANDARD.encode(bytes))
}

pub(crate) fn base64_list<S: Serializer>(list: &[impl AsRef<[u8]>], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(list.iter().map(|bytes| STANDARD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use crate::pb;

    #[test]
    fn operations_have_the_json_of_other_builders() {
        let make =
            pb::FileActionMkFile { path: "/a".into(), data: b"hi".to_vec().into(), mode: 0o644, ..Default::default() };
        let action =
            pb::FileAction { input: 0, action: Some(pb::file_action::Action::Mkfile(make)), ..Default::default() };
        let file = pb::FileOp { actions: vec![action] };
        let op = pb::Op {
            op: Some(pb::op::Op::File(file)),
            platform: Some(pb::Platform { architecture: "arm64".into(), os: "linux".into(), ..Default::default() }),
            ..Default::default()
        };
        let json = serde_json::to_value(&op).unwrap();
        let expected = serde_json::json!({
            "Op": { "file": { "actions": [{ "Action": { "mkfile": { "path": "/a", "mode": 420, "data": "aGk=" } } }] } },
            "platform": { "Architecture": "arm64", "OS": "linux" },
        });
        assert_eq!(json, expected);
        let mount = pb::Mount { mount_type: 3, dest: "/c".into(), ..Default::default() };
        assert_eq!(serde_json::to_value(&mount).unwrap(), serde_json::json!({ "mountType": 3, "dest": "/c" }));
    }
}
