//! Generates the wire types of `proto/ops.proto` without needing protoc.

/// Numbers of field types and labels in `descriptor.proto`.
const BYTES: i32 = 12;
const REPEATED: i32 = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/ops.proto");
    let files = protox::compile(["proto/ops.proto"], ["proto"])?;
    let mut config = prost_build::Config::new();
    // Go sorts map keys when it encodes an op for hashing; so must we.
    config.btree_map(["."]);
    config.bytes([".pb.Definition.def", ".pb.SourceInfo.data", ".pb.FileActionMkFile.data"]);
    config.enable_type_names();
    // The JSON that BuildKit's messages have: fields by their names in the definition, nothing for default values.
    // What is one of several has a field of its own, named as in Go.
    config
        .message_attribute(".", "#[derive(serde::Serialize)]\n#[serde(rename_all = \"PascalCase\")]")
        .enum_attribute(".", "#[derive(serde::Serialize)]");
    for message in files.file.iter().flat_map(|file| &file.message_type) {
        let path = format!(".pb.{}", message.name());
        for field in &message.field {
            let name = field.name();
            if let Some(oneof) = field.oneof_index.and_then(|i| message.oneof_decl.get(usize::try_from(i).ok()?)) {
                config
                    .field_attribute(format!("{path}.{}.{name}", oneof.name()), format!("#[serde(rename = {name:?})]"));
                continue;
            }
            let with = match (field.r#type, field.label) {
                (Some(BYTES), Some(REPEATED)) => ", serialize_with = \"crate::json::base64_list\"",
                (Some(BYTES), _) => ", serialize_with = \"crate::json::base64\"",
                _ => "",
            };
            let skip = "skip_serializing_if = \"crate::json::is_default\"";
            config.field_attribute(format!("{path}.{name}"), format!("#[serde(rename = {name:?}, {skip}{with})]"));
        }
    }
    config.compile_fds(files)?;
    Ok(())
}
